"""The operator's Prometheus metrics."""

from __future__ import annotations

import contextlib

from prometheus_client import Counter, Gauge, Histogram

from taskqueue.kubernetes.client import ApiError
from taskqueue.kubernetes.status_updater import StatusUpdater
from taskqueue.model.task import Phase

TASKS_FINISHED = Counter(
    "taskqueue_tasks_finished_total",
    "Tasks whose final status was written.",
    ("namespace", "queue", "phase"),
)
PUBLISHED = Counter(
    "taskqueue_published_total",
    "Work messages handed to the broker, repeated ones included.",
    ("namespace", "queue"),
)
OUTCOMES_DROPPED = Counter(
    "taskqueue_outcomes_dropped_total",
    "Events from workers that changed nothing, by why: unknown (the Task is finished or deleted), "
    "stale (an earlier attempt or a repeat), forged (wrong token), invalid (not of the contract), "
    "foreign (the TaskQueue is not served here), unrecorded (the API server refuses the status).",
    ("why",),
)
MESSAGES_PARKED = Counter(
    "taskqueue_messages_parked_total",
    "Messages of the operator's inbox moved to a dead queue, because they cannot be read.",
)
STATUS_WRITES = Counter("taskqueue_status_writes_total", "Task statuses written to the API server.")
STATUS_WRITE_FAILURES = Counter(
    "taskqueue_status_write_failures_total",
    "Writes of Task statuses that failed and are tried again, by the HTTP status of the answer; 0: "
    "there was none.",
    ("code",),
)
STATUSES_PENDING = Gauge("taskqueue_statuses_pending", "Tasks with a status still to be written.")
STATUSES_FAILING = Gauge(
    "taskqueue_statuses_failing", "Tasks whose status failed to be written, and is tried again."
)
STATUSES_REFUSED = Counter(
    "taskqueue_statuses_refused_total",
    "Tasks of which the API server has refused every status, however short: their outcomes are not "
    "recorded.",
)
PAYLOAD_READS = Counter(
    "taskqueue_payload_reads_total",
    "Tasks read again when they were dispatched, because their payloads were not kept in memory.",
)
TASKS_HELD = Gauge("taskqueue_tasks_held", "Unfinished Tasks the operator holds.")
TASKS_STORED = Gauge(
    "taskqueue_tasks_stored",
    "Tasks in the API server, finished ones included, as counted each minute.",
)
BATCHES_HELD = Gauge("taskqueue_batches_held", "Unfinished TaskBatches the operator holds.")
BATCH_ITEMS_WAITING = Gauge(
    "taskqueue_batch_items_waiting", "Items of unfinished TaskBatches that have not begun."
)
BATCHES_FINISHED = Counter(
    "taskqueue_batches_finished_total",
    "TaskBatches whose final status was written; their items count as Tasks.",
    ("phase",),
)
SCHEDULE_RUNS = Counter(
    "taskqueue_schedule_runs_total",
    "Runs of TaskSchedules, by what became of them: created, skipped.",
    ("result",),
)
SCHEDULE_LATENESS = Histogram(
    "taskqueue_schedule_lateness_seconds",
    "How long after its time, with jitter, a run of a TaskSchedule was created.",
    buckets=(0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 3600),
)
BACKLOG = Gauge(
    "taskqueue_backlog",
    "Tasks and direct messages of a queue that may run: waiting in the operator, ready at the "
    "broker, and with a worker. Absent while unknown.",
    ("namespace", "queue"),
)
READY = Gauge(
    "taskqueue_ready",
    "Messages of a queue at the broker that no worker has. Absent while unknown.",
    ("namespace", "queue"),
)
RUNNING = Gauge(
    "taskqueue_running",
    "Messages of a queue that a worker has. Absent while unknown.",
    ("namespace", "queue"),
)
DEAD_LETTERS = Gauge(
    "taskqueue_dead_letters",
    "Messages in the dead queue of a TaskQueue. Absent while unknown.",
    ("namespace", "queue"),
)
WORKERS = Gauge("taskqueue_workers", "Workers with recent heartbeats.", ("namespace", "queue"))
WORKER_SLOTS = Gauge(
    "taskqueue_worker_slots",
    "Attempts that the workers which take work can run at once.",
    ("namespace", "queue"),
)
DESIRED_WORKERS = Gauge(
    "taskqueue_desired_workers", "Workers a queue should have.", ("namespace", "queue")
)
COMPLETIONS_PUBLISHED = Counter(
    "taskqueue_announced_total", "Events about ended Tasks that the broker has confirmed."
)
ARCHIVED = Counter("taskqueue_archived_total", "Ends of Tasks written to archives.")
WEBHOOK_RESULTS = ("accepted", "failed", "given_up")
WEBHOOKS_SENT = Counter(
    "taskqueue_webhook_requests_total",
    "Ends of Tasks sent to webhooks, by what became of it: accepted, failed (it is sent again "
    "later), given_up (it was sent for a day).",
    ("namespace", "queue", "result"),
)
COMPLETIONS_DROPPED = Counter(
    "taskqueue_announcements_dropped_total",
    "Events about ended Tasks given up, by why: refused (a queue bound to taskqueue.events is full "
    "and rejects publishes), overflow (too many wait for a broker), unopened (the broker has no "
    "such queue), unpublishable.",
    ("why",),
)
HEARTBEATS_DROPPED = Counter(
    "taskqueue_heartbeats_dropped_total",
    "Heartbeats, or attempts listed in one, that were ignored, by why: foreign (the TaskQueue uses "
    "another broker, or is not served here), forged (of another queue, or with a token that is "
    "none of the attempt's), invalid (against the message contract).",
    ("why",),
)
COMMANDS_DROPPED = Counter(
    "taskqueue_commands_dropped_total",
    "Commands to workers dropped, because too many waited for a broker.",
)
TTL_DELETIONS = Counter(
    "taskqueue_ttl_deletions_total", "Finished Tasks deleted after their time to live."
)
EVENTS_DROPPED = Counter(
    "taskqueue_notices_dropped_total",
    "Kubernetes Events not written, by why: full (too many at once), refused (by the API server).",
    ("why",),
)


def report_statuses(updater: StatusUpdater) -> None:
    """Have the gauges of statuses show those of an updater."""
    STATUSES_PENDING.set_function(lambda: len(updater))
    STATUSES_FAILING.set_function(lambda: updater.failing)


def count_write_failure(error: ApiError) -> None:
    """Count a write of a status that failed, and is tried again."""
    STATUS_WRITE_FAILURES.labels(str(error.status)).inc()


def report_messages(
    key: tuple[str, str],
    *,
    backlog: int | None,
    ready: int | None,
    running: int | None,
    dead_letters: int | None,
) -> None:
    """Set the gauges of a queue's messages; None removes a series, so that it is not read as 0."""
    values = ((BACKLOG, backlog), (READY, ready), (RUNNING, running), (DEAD_LETTERS, dead_letters))
    for gauge, value in values:
        if value is not None:
            gauge.labels(*key).set(value)
        else:
            with contextlib.suppress(KeyError):
                gauge.remove(*key)


def remove_queue_metrics(key: tuple[str, str]) -> None:
    """Remove the gauges of a deleted TaskQueue; its Tasks may still end, and are counted."""
    for gauge in (
        BACKLOG, READY, RUNNING, DEAD_LETTERS, DESIRED_WORKERS, WORKERS, WORKER_SLOTS
    ):  # fmt: skip
        with contextlib.suppress(KeyError):
            gauge.remove(*key)


def remove_task_counters(key: tuple[str, str]) -> None:
    """Remove the counters of a TaskQueue that does not exist and has no Task any more.

    Tasks may name TaskQueues that never existed: the series would grow with each name.
    """
    with contextlib.suppress(KeyError):
        PUBLISHED.remove(*key)
    for result in WEBHOOK_RESULTS:
        with contextlib.suppress(KeyError):
            WEBHOOKS_SENT.remove(*key, result)
    for phase in Phase:
        with contextlib.suppress(KeyError):
            TASKS_FINISHED.remove(*key, phase.value)
