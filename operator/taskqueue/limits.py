"""Limits and times that more than one room knows, and limits of what others send or read.

Each is written once. A number that only one module relies on, and nobody outside meets, stays in
that module. Defaults of fields are in `taskqueue.defaults`. Lengths are in characters.
"""

from __future__ import annotations

# Names.

#: Of an object's name in Kubernetes, and with it a pod's, a node's and a Secret's.
OBJECT_NAME_LENGTH = 253

#: Of a label's value and of a DNS label in Kubernetes.
LABEL_LENGTH = 63

#: Of the name a worker registers for its code. It travels as an AMQP short string.
HANDLER_NAME_LENGTH = 253

#: Of a reason in a status, and with it an error's type.
STATUS_REASON_LENGTH = 253

#: AMQP's short strings end here, in bytes of UTF-8.
SHORT_STRING_BYTES = 255

#: Of each header of W3C's trace context; longer ones are not passed on.
TRACE_LENGTH = 512

#: Levels of objects and lists in JSON: of a payload, a result, a message. Libraries differ in how
#: deep they go, and writing ends before reading does: what one of them reads, another cannot pass
#: on.
JSON_DEPTH = 100

#: Of all headers of a message that is published again: with its other properties they must fit one
#: frame, of 128 KiB by default.
HEADERS_BYTES = 100 * 1024

#: Of a worker's event without its result or checkpoint.
EVENT_BYTES = 64 * 1024

#: Of all of a worker's event, however it is written. A larger one is not parsed.
PARSED_EVENT_BYTES = 1024 * 1024

#: Of the event about the end of a Task, for its archive: payload, result and history are in it.
ARCHIVE_EVENT_BYTES = 1024 * 1024

#: Of several events in one message, and how many those are.
BATCH_BYTES = 256 * 1024
BATCH_EVENTS = 64

#: Of the message of an error in an event, in UTF-8.
ERROR_MESSAGE_BYTES = 2000

#: Of a heartbeat. A larger one is not parsed.
HEARTBEAT_BYTES = 256 * 1024

# What a Task brings and what its status holds.

#: Of a payload merged with what spec.payloadFrom names, as JSON.
PAYLOAD_BYTES = 200 * 1024
#: Items of a TaskBatch; and those that stand in the object itself, with their bytes as JSON: each
#: write of the status has the API server store the object again.
BATCH_ITEMS = 100_000
INLINE_ITEMS = 1_000
INLINE_BYTES = 256 * 1024

#: Of the payloads that the operator keeps in memory for Tasks that wait, with what keeping each
#: costs. What is not there is read again when it is dispatched.
PAYLOAD_CACHE_BYTES = 32 * 1024 * 1024

#: Of a message in a status: etcd is not a log store.
STATUS_MESSAGE_LENGTH = 1024

#: Of the reason that a message in a dead queue carries, in UTF-8.
DEAD_REASON_BYTES = 2000

#: Of the message of a progress report.
PROGRESS_MESSAGE_LENGTH = 1024

#: Finished attempts that a status keeps.
HISTORY_LENGTH = 10

#: Of a result in a status, as JSON. Larger ones belong in a store of their own.
RESULT_BYTES = 16 * 1024

#: Of a result in a store, in bytes: worker and reader hold it in memory.
STORED_RESULT_BYTES = 32 * 1024 * 1024

#: Of a result that a program or a service gives: the worker reads it on its own loop.
TEXT_RESULT_BYTES = 1024 * 1024

#: Of what an attempt has printed, in UTF-8: its end, in a store, or in the history of a status.
OUTPUT_BYTES = 256 * 1024
STATUS_OUTPUT_BYTES = 4 * 1024

#: A media type, such as ``image/png`` or ``text/csv; charset=utf-8``, in ASCII; and its length.
MEDIA_TYPE_PATTERN = r"^[A-Za-z0-9!#$&^_.+-]+/[A-Za-z0-9!#$&^_.+-]+( *;[ -~]*)?$"
MEDIA_TYPE_LENGTH = 255

#: Of what a handler saves for its next start, as JSON: in a status, and in a header.
CHECKPOINT_BYTES = 16 * 1024

#: Workers that a TaskQueue's status lists, and handlers of each.
STATUS_WORKERS = 20
STATUS_HANDLERS = 50

#: Characters of the names of these handlers, together: the operator keeps them of each worker.
STATUS_HANDLERS_LENGTH = 2048

# Attempts.

#: Longest time limit of an attempt, in seconds.
LONGEST_ATTEMPT_SECONDS = 86_400

#: Longest wait between two attempts, in seconds.
LONGEST_RETRY_SECONDS = 86_400

#: How often a Task may be snoozed, and how long at a time, in seconds.
SNOOZES = 1000
LONGEST_SNOOZE_SECONDS = 30 * 86_400

#: Deliveries of one message, the broker's ``x-delivery-limit``: after them it gives the message up.
DELIVERY_LIMIT = 20

#: How long after its time limit an attempt's outcome may come, in seconds; then the attempt is
#: lost.
REPORT_GRACE_SECONDS = 10.0

# Schedules.

#: Of a cron expression.
CRON_LENGTH = 128

#: Missed runs that are made up for at once, at most.
MISSED_RUNS = 100

#: Runs that wait for the active one, at most.
BUFFERED_RUNS = 100

# Workers.

#: How long the broker user that workers had before the last rotation may still log in, in seconds:
#: the kubelet replaces the files of a changed Secret within two minutes. A rotation sooner than
#: that would lock workers out.
FORMER_USER_SECONDS = 300

#: Shortest and longest time between two rotations of workers' credentials, in seconds.
ROTATION_SECONDS_LEAST = 2 * FORMER_USER_SECONDS
ROTATION_SECONDS_MOST = 31_536_000

#: From one heartbeat of a worker to the next, in seconds.
HEARTBEAT_SECONDS = 10.0

#: Workers of one TaskQueue that the operator remembers, as many as a pool may have. Anybody who may
#: publish heartbeats can invent others.
REGISTERED_WORKERS = 10_000

#: A worker that is silent for this long is lost, in seconds: three heartbeats are missing.
WORKER_LOST_SECONDS = 35.0

#: How long a drained worker waits for SIGTERM before it ends by itself, in seconds.
DRAINED_SECONDS = 60.0

#: How often the operator looks whether what it has declared at a broker is still there, in seconds.
#: Well below `WORKER_LOST_SECONDS`: no worker is lost over a deleted exchange for heartbeats.
TOPOLOGY_CHECK_SECONDS = 10.0

#: Of each queue at a broker that keeps the ends of Tasks for an archive, in bytes. What does not
#: fit is archived later, from the finished Tasks.
OUTBOX_BYTES = 256 * 1024 * 1024

#: The same of each webhook, and of each queue with what is sent to it again later.
WEBHOOK_OUTBOX_BYTES = 64 * 1024 * 1024

#: How long an end is sent to a webhook that does not accept it, in seconds.
WEBHOOK_SECONDS = 86_400

#: Queues of a webhook that no operator has declared for so long are deleted by the broker, in
#: seconds: those of a webhook that was removed while no operator ran.
WEBHOOK_QUEUE_SECONDS = 2 * WEBHOOK_SECONDS

#: Webhooks of a TaskQueue, and characters of the name of one: it is in the names of queues.
WEBHOOKS = 8
WEBHOOK_NAME_LENGTH = 32

#: Of the address of a webhook.
URL_LENGTH = 2048

#: How long the control stream keeps a command.
COMMAND_RETENTION_DAYS = 1

#: Where `taskqueue dev` listens on this machine, unless told otherwise.
DEV_PORT = 8787
