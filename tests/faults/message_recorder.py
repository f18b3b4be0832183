"""Records published work, workers' events and completion events, from a queue of its own.

A part of the `watcher`, which says when to use the firehose. The connection is pika's blocking one
and stays in its thread. The queue outlives a lost connection: what is published meanwhile waits in
it. A message that cannot be read is skipped: it is nobody's publish, outcome or end.
"""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import pika
from pika.adapters.blocking_connection import BlockingChannel
from pika.exceptions import AMQPError

from tests.faults.broker import Broker
from tests.faults.verdict import Completed, Published, Record, Reported

#: Between two attempts to connect.
_PAUSE_SECONDS = 0.2

#: The content type of several events in one message.
_BATCH = "application/cloudevents-batch+json"

#: The broker deletes the queue when nobody has used it for as long, in milliseconds.
_EXPIRES_MS = 600_000

_FIREHOSE = "amq.rabbitmq.trace"


class MessageRecorder:
    """Consumes copies of the messages of one namespace, and calls ``add`` with each record."""

    def __init__(
        self,
        broker: Broker,
        namespace: str,
        add: Callable[[Record], None],
        *,
        virtual_host: str,
        firehose: bool,
    ) -> None:
        self._parameters = pika.ConnectionParameters(
            host=broker.host,
            port=broker.port,
            virtual_host=virtual_host,
            credentials=pika.PlainCredentials(broker.username, broker.password),
            client_properties={"connection_name": "watcher"},
            heartbeat=10,
        )
        self._namespace = namespace
        self._firehose = firehose
        self._add = add
        self._queue = f"watcher-{uuid.uuid4().hex[:12]}"
        #: Ids of messages that were recorded, in case the broker delivers them again.
        self._seen: set[tuple[str, str]] = set()
        #: What `catch_up` published to the queue's end, and when it came out.
        self._markers: dict[str, threading.Event] = {}
        self._bound = threading.Event()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watcher's messages", daemon=True)
        self._thread.start()
        assert self._bound.wait(60), "the watcher could not bind its queue: is there a topology?"

    def catch_up(self, *, seconds: float = 60) -> None:
        """Return once everything that is in the queue has been recorded."""
        marker, passed = uuid.uuid4().hex, threading.Event()
        self._markers[marker] = passed
        assert passed.wait(seconds), f"the watcher's queue was not read within {seconds:g} s"

    def close(self) -> None:
        """Stop consuming, and delete the queue."""
        self._closed.set()
        self._thread.join(10)

    def _run(self) -> None:
        while not self._closed.is_set():
            with suppress(AMQPError, OSError):
                self._consume()
            time.sleep(_PAUSE_SECONDS)

    def _consume(self) -> None:
        connection = pika.BlockingConnection(self._parameters)
        try:
            channel = connection.channel()
            arguments = {"x-queue-type": "quorum", "x-delivery-limit": -1, "x-expires": _EXPIRES_MS}
            channel.queue_declare(self._queue, durable=True, arguments=arguments)
            for exchange, key in self._bindings():
                channel.queue_bind(self._queue, exchange, key)
            self._bound.set()
            channel.basic_qos(prefetch_count=500)
            self._read(channel)
            channel.cancel()
            channel.queue_delete(self._queue)
        finally:
            with suppress(AMQPError):
                connection.close()

    def _bindings(self) -> list[tuple[str, str]]:
        if self._firehose:
            exchanges = ("work", "outcomes", "events")
            return [(_FIREHOSE, f"publish.taskqueue.{name}") for name in exchanges]
        return [
            ("taskqueue.work", f"{self._namespace}.*"),
            ("taskqueue.outcomes", f"{self._namespace}.#"),
            ("taskqueue.events", f"{self._namespace}.#"),
        ]

    def _read(self, channel: BlockingChannel) -> None:
        """Record what comes, until the watcher is closed."""
        sent: set[str] = set()
        for method, properties, body in channel.consume(self._queue, inactivity_timeout=0.1):
            if method is not None:
                self._record(method, properties, body)
                channel.basic_ack(method.delivery_tag)
            for marker in set(self._markers) - sent:
                sent.add(marker)
                own = pika.BasicProperties(message_id=marker)
                channel.basic_publish("", self._queue, b"", own)
            if self._closed.is_set():
                return

    def _record(self, method: Any, properties: Any, body: bytes) -> None:
        if passed := self._markers.get(properties.message_id or ""):
            passed.set()
            return
        message = _Message.traced(properties, body) if self._firehose else None
        if message is None:
            message = _Message.plain(method, properties, body)
        if not message.routing_key.startswith(f"{self._namespace}."):
            return
        known = (message.exchange, message.message_id)
        if method.redelivered and known in self._seen:
            return
        self._seen.add(known)
        for part in message.parts():
            with suppress(ValueError, KeyError, TypeError, AttributeError):
                record = part.record(time.monotonic())
                if record is not None:
                    self._add(record)


class _Message:
    """A message as it was published."""

    def __init__(
        self, exchange: str, routing_key: str, properties: Mapping[str, Any], body: bytes
    ) -> None:
        self.exchange = exchange
        self.routing_key = routing_key
        self.properties = properties
        self.body = body

    @classmethod
    def plain(cls, method: Any, properties: Any, body: bytes) -> _Message:
        """Read a delivery of an exchange that the queue is bound to."""
        return cls(method.exchange, method.routing_key, vars(properties), body)

    @classmethod
    def traced(cls, properties: Any, body: bytes) -> _Message:
        """Read a copy that the firehose made."""
        traced = properties.headers
        key = traced["routing_keys"][0]
        return cls(traced["exchange_name"], key, traced["properties"], body)

    def parts(self) -> list[_Message]:
        """Return the events of a batch as messages of their own; else the message."""
        if self.properties.get("content_type") != _BATCH:
            return [self]
        about = (self.exchange, self.routing_key, self.properties)
        with suppress(ValueError, TypeError):
            return [_Message(*about, json.dumps(one).encode()) for one in json.loads(self.body)]
        return []

    @property
    def message_id(self) -> str:
        return str(self.properties.get("message_id") or "")

    def record(self, at: float) -> Record | None:
        """Return what it says about a Task; None: it is about a direct message."""
        match self.exchange:
            case "taskqueue.work":
                return self._published(at)
            case "taskqueue.outcomes":
                return self._reported(at)
            case "taskqueue.events":
                return self._completed(at)
            case _:
                return None

    def _published(self, at: float) -> Published | None:
        headers = self.properties.get("headers") or {}
        if "tq-token" not in headers:
            return None
        return Published(
            at=at,
            uid=self.properties["correlation_id"],
            attempt=headers["tq-attempt"],
            epoch=headers["tq-epoch"],
            message_id=self.message_id,
        )

    def _reported(self, at: float) -> Reported | None:
        event = json.loads(self.body)
        data = event["data"]
        if not data["token"]:
            return None
        error = data.get("error") or {}
        return Reported(
            at=at,
            uid=data["uid"],
            event=_event_name(event),
            attempt=data["attempt"],
            epoch=data["epoch"],
            error_type="" if error.get("application") else error.get("type", ""),
        )

    def _completed(self, at: float) -> Completed | None:
        event = json.loads(self.body)
        uid = event["data"].get("uid")
        if not uid:
            return None
        return Completed(at=at, uid=uid, event_id=event["id"], event=_event_name(event))


def _event_name(event: Mapping[str, Any]) -> str:
    """Return ``task.failed`` for ``dev.taskqueue.task.failed.v1``."""
    name: str = event["type"]
    return name.removeprefix("dev.taskqueue.").removesuffix(".v1")
