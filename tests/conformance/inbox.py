"""Reads the outcomes of workers, as the operator does, and validates each of them."""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from taskqueue.amqp.channel import Delivery
from taskqueue.amqp.connection import Connection
from taskqueue.contract import batch
from taskqueue.contract.cloudevents import CONTENT_TYPE
from taskqueue.contract.names import INBOX_QUEUE, OUTCOMES_EXCHANGE, ContractError
from taskqueue.contract.outcome import AttemptEvent, EventKind, decode
from taskqueue.limits import ERROR_MESSAGE_BYTES

#: Outcomes that end an attempt.
ENDS = frozenset(EventKind) - {EventKind.STARTED, EventKind.CHECKPOINT}

#: Longest result, in bytes of JSON.
_RESULT_LIMIT = 16 * 1024


@dataclass(frozen=True, slots=True)
class ReceivedEvent:
    """One event: the JSON envelope, and what the project decodes from it."""

    envelope: dict[str, Any]
    event: AttemptEvent


class Inbox:
    """Reads and validates every outcome in a virtual host."""

    def __init__(self) -> None:
        self._received: dict[str, list[ReceivedEvent]] = defaultdict(list)
        self._message_ids: set[str] = set()
        self._more = asyncio.Event()
        #: Violations of the contract, by queue.
        self.violations: dict[str, list[str]] = defaultdict(list)

    async def open(self, connection: Connection) -> None:
        """Start to consume."""
        channel = await connection.channel()
        await channel.consume(INBOX_QUEUE, self._on_delivery, lambda reason: None)

    def events(self, key: str, *kinds: EventKind) -> list[ReceivedEvent]:
        """Return the events of a token, or of a direct message's correlation id."""
        return [one for one in self._received[key] if not kinds or one.event.kind in kinds]

    async def end(self, key: str, *, number: int = 1) -> AttemptEvent:
        """Wait for ``number`` events that end an attempt, and return the last of them."""
        return await self.event(key, *ENDS, number=number)

    async def event(self, key: str, *kinds: EventKind, number: int = 1) -> AttemptEvent:
        """Wait for ``number`` events of these kinds, and return the last of them."""
        await self.until(lambda: len(self.events(key, *kinds)) >= number)
        return self.events(key, *kinds)[number - 1].event

    async def until(self, holds: Callable[[], bool]) -> None:
        """Wait until a condition on the received events holds."""
        while not holds():
            self._more.clear()
            await self._more.wait()

    def _on_delivery(self, delivery: Delivery) -> None:
        delivery.channel.ack(delivery.delivery_tag)
        if delivery.exchange != OUTCOMES_EXCHANGE:
            return  # a dead letter: the dead queue has it as well
        queue = delivery.routing_key.split(".")[1]
        if delivery.properties.message_id in self._message_ids:
            self.violations[queue].append("another publish had the same message_id")
        self._message_ids.add(delivery.properties.message_id or "")
        bodies = [delivery.body]
        try:
            if delivery.properties.content_type == batch.CONTENT_TYPE:
                bodies = batch.split(delivery.body)
        except ContractError as error:
            self.violations[queue].append(f"{error}: {delivery.body[:200]!r}")
            return
        for body in bodies:
            self._on_event(queue, delivery, body)

    def _on_event(self, queue: str, delivery: Delivery, body: bytes) -> None:
        try:
            envelope = json.loads(body)
            event = decode(body)
        except (ValueError, ContractError) as error:
            self.violations[queue].append(f"{error}: {body[:200]!r}")
            return
        problems = _problems(delivery, envelope, event)
        self.violations[queue] += [f"{event.kind.value}: {problem}" for problem in problems]
        self._received[event.token or event.correlation_id].append(ReceivedEvent(envelope, event))
        self._more.set()


def _problems(delivery: Delivery, envelope: dict[str, Any], event: AttemptEvent) -> list[str]:
    """Return the rules of the contract that an event breaks."""
    data, properties = envelope["data"], delivery.properties
    error, result, seconds = data.get("error"), data.get("result"), data.get("seconds")
    rules = {
        "specversion must be 1.0": envelope.get("specversion") == "1.0",
        "id must be a non-empty string": isinstance(envelope.get("id"), str) and envelope["id"],
        "source must be a string": isinstance(envelope.get("source"), str),
        "taskqueue must name the queue": delivery.routing_key.startswith(
            f"{event.namespace}.{envelope.get('taskqueue')}."
        ),
        "type must be that of the routing key": delivery.routing_key.endswith(event.kind.value)
        and envelope["type"] == f"dev.taskqueue.{event.kind.value}.v1",
        "datacontenttype must be JSON": envelope.get("datacontenttype") == "application/json",
        "data.attempt and data.epoch must be integers": type(data["attempt"]) is int
        and type(data["epoch"]) is int,
        "data.worker must be a non-empty string": isinstance(data.get("worker"), str)
        and data["worker"],
        "data.seconds must be a number, with every end but task.released": (
            seconds is None and (event.kind not in ENDS or event.kind is EventKind.RELEASED)
        )
        or (isinstance(seconds, int | float) and not isinstance(seconds, bool)),
        "data.result goes with success only": result is None or event.kind is EventKind.SUCCEEDED,
        "data.resultRef goes with success only, and without data.result": "resultRef" not in data
        or (event.kind is EventKind.SUCCEEDED and result is None),
        "data.output goes with failure only": "output" not in data
        or event.kind is EventKind.FAILED,
        "data.result must be short": len(json.dumps(result)) <= _RESULT_LIMIT,
        "data.checkpoint goes with task.checkpoint, and only there": (event.checkpoint is not None)
        == (event.kind is EventKind.CHECKPOINT),
        "data.error goes with every failure, and only there": (error is not None)
        == (event.kind is EventKind.FAILED),
        "data.error must have type and message": error is None
        or (isinstance(error.get("type"), str) and isinstance(error.get("message"), str)),
        "data.error.message must be short": error is None
        or len(str(error.get("message")).encode(errors="replace")) <= ERROR_MESSAGE_BYTES,
        "content_type must be that of a CloudEvent, or of a batch": properties.content_type
        in (CONTENT_TYPE, batch.CONTENT_TYPE),
        "it must be persistent": properties.delivery_mode == 2,
        "it must have a message_id": properties.message_id,
    }
    return [text for text, holds in rules.items() if not holds]
