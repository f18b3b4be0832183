"""The operator's side of the broker: what workers told, each judged by the contract's words."""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from taskqueue.amqp.channel import Delivery
from taskqueue.amqp.connection import Connection
from taskqueue.contract.names import INBOX_QUEUE, OUTCOMES_EXCHANGE, ContractError
from taskqueue.contract.outcome import CONTENT_TYPE, AttemptEvent, EventKind, decode

#: Outcomes that end an attempt.
ENDS = frozenset({EventKind.SUCCEEDED, EventKind.FAILED, EventKind.CANCELLED, EventKind.RELEASED})

#: Longest result, in bytes of JSON.
_RESULT_LIMIT = 16 * 1024


@dataclass(frozen=True, slots=True)
class Told:
    """One event, as it came and as the project reads it."""

    envelope: dict[str, Any]
    event: AttemptEvent


class Inbox:
    """Takes everything workers of a virtual host tell."""

    def __init__(self) -> None:
        self._told: dict[str, list[Told]] = defaultdict(list)
        self._message_ids: set[str] = set()
        self._more = asyncio.Event()
        #: What is wrong with events, by queue.
        self.wrong: dict[str, list[str]] = defaultdict(list)

    async def open(self, connection: Connection) -> None:
        """Read from now on."""
        channel = await connection.channel()
        await channel.consume(INBOX_QUEUE, self._take, lambda reason: None)

    def told(self, word: str, *kinds: EventKind) -> list[Told]:
        """Return what was told of a token, or of a direct message's correlation id."""
        return [one for one in self._told[word] if not kinds or one.event.kind in kinds]

    async def end(self, word: str, *, number: int = 1) -> AttemptEvent:
        """Wait for the end of an attempt to be told that often, and return it."""
        return await self.event(word, *ENDS, number=number)

    async def event(self, word: str, *kinds: EventKind, number: int = 1) -> AttemptEvent:
        """Wait for that many events of these kinds and return the last of them."""
        await self.until(lambda: len(self.told(word, *kinds)) >= number)
        return self.told(word, *kinds)[number - 1].event

    async def until(self, holds: Callable[[], bool]) -> None:
        """Wait until something holds that is known from events."""
        while not holds():
            self._more.clear()
            await self._more.wait()

    def _take(self, delivery: Delivery) -> None:
        delivery.channel.ack(delivery.delivery_tag)
        if delivery.exchange != OUTCOMES_EXCHANGE:
            return  # a dead letter: the dead queue has it as well
        queue = delivery.routing_key.split(".")[1]
        try:
            envelope = json.loads(delivery.body)
            event = decode(delivery.body)
        except (ValueError, ContractError) as problem:
            self.wrong[queue].append(f"{problem}: {delivery.body[:200]!r}")
            return
        problems = _problems(delivery, envelope, event)
        if delivery.properties.message_id in self._message_ids:
            problems.append("its message_id was another publish's already")
        self._message_ids.add(delivery.properties.message_id or "")
        self.wrong[queue] += [f"{event.kind.value}: {problem}" for problem in problems]
        self._told[event.token or event.correlation_id].append(Told(envelope, event))
        self._more.set()


def _problems(delivery: Delivery, envelope: dict[str, Any], event: AttemptEvent) -> list[str]:
    """Return what the contract says of an event and is not so."""
    data, properties = envelope["data"], delivery.properties
    error, result, seconds = data.get("error"), data.get("result"), data.get("seconds")
    rules = {
        "specversion must be 1.0": envelope.get("specversion") == "1.0",
        "id must be a word": isinstance(envelope.get("id"), str) and envelope["id"],
        "source must be a text": isinstance(envelope.get("source"), str),
        "taskqueue must name the queue": delivery.routing_key.startswith(
            f"{event.namespace}.{envelope.get('taskqueue')}."
        ),
        "type must be that of the routing key": delivery.routing_key.endswith(event.kind.value)
        and envelope["type"] == f"dev.taskqueue.{event.kind.value}.v1",
        "datacontenttype must be JSON": envelope.get("datacontenttype") == "application/json",
        "data.attempt and data.epoch must be integers": type(data["attempt"]) is int
        and type(data["epoch"]) is int,
        "data.worker must be a text": isinstance(data.get("worker"), str) and data["worker"],
        "data.seconds must be a number, with every end but task.released": (
            seconds is None and event.kind in (EventKind.STARTED, EventKind.RELEASED)
        )
        or (isinstance(seconds, int | float) and not isinstance(seconds, bool)),
        "data.result goes with success only": result is None or event.kind is EventKind.SUCCEEDED,
        "data.result must be short": len(json.dumps(result)) <= _RESULT_LIMIT,
        "data.error goes with every failure, and only there": (error is not None)
        == (event.kind is EventKind.FAILED),
        "data.error must have type and message": error is None
        or (isinstance(error.get("type"), str) and isinstance(error.get("message"), str)),
        "content_type must be that of a CloudEvent": properties.content_type == CONTENT_TYPE,
        "it must be persistent": properties.delivery_mode == 2,
        "it must have a message_id": properties.message_id,
    }
    return [text for text, holds in rules.items() if not holds]
