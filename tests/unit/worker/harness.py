"""A runtime with the broker and the handlers in the test's hands."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from pika.spec import BasicProperties

from taskqueue.amqp.channel import Channel
from taskqueue.contract.command import CommandKind, WorkerCommand
from taskqueue.contract.outcome import EventKind
from taskqueue.contract.work import WorkMessage
from taskqueue.worker.outcome_outbox import OutcomeOutbox
from taskqueue.worker.runtime import Runtime
from tests.unit.worker.fakes import FakeChannel, FakeExecutor, FakePublisher, settings


def direct(**changes: Any) -> BasicProperties:
    """A direct message's properties."""
    values: dict[str, Any] = {"type": "resize", "correlation_id": "order-7", "message_id": "m-1"}
    return BasicProperties(**{**values, **changes})


class Bench:
    """A runtime between a fake channel, a fake publisher and a fake executor."""

    def __init__(self, **changes: Any) -> None:
        loop = asyncio.get_running_loop()
        self.executor = FakeExecutor()
        self.publisher = FakePublisher()
        self.reporter = OutcomeOutbox(loop)
        self.reporter.attach(self.publisher.real)
        self.changes = 0
        self.turns = 0
        self.left: list[dict[str, Any]] = []
        self.runtime = Runtime(
            settings(**changes),
            self.executor,
            self.reporter,
            loop,
            on_change=self._changed,
            on_turn=self._turned,
            leave=self._leave,
        )
        self.channel = self.open_channel()

    def open_channel(self) -> FakeChannel:
        self.channel = FakeChannel()
        self.runtime.channel_opened(cast(Channel, self.channel))
        return self.channel

    def deliver(
        self, message: WorkMessage | BasicProperties, body: bytes = b"{}", *, deliveries: int = 0
    ) -> None:
        self.runtime.delivered(self.channel.deliver(message, body, deliveries=deliveries))

    @property
    def events(self) -> list[EventKind]:
        return [each.event.kind for each in self.publisher.published]

    def order(self, kind: CommandKind, token: str = "k.1") -> None:  # noqa: S107
        self.runtime.ordered(WorkerCommand(kind, token=token, uid=f"uid-{token}"))

    @property
    def told(self) -> list[tuple[str, str]]:
        """Event and token of what is published and not yet settled."""
        return [(each.event.kind.value, each.event.token) for each in self.publisher.published]

    def _changed(self) -> None:
        self.changes += 1

    def _turned(self) -> None:
        self.turns += 1

    def _leave(self, reason: str, **fields: Any) -> None:
        self.left.append(fields)
