"""A runtime whose broker and handlers the test controls."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from pika.spec import BasicProperties

from taskqueue.amqp.channel import Channel
from taskqueue.contract.command import WorkerCommand
from taskqueue.contract.outcome import EventKind
from taskqueue.contract.work import WorkMessage
from taskqueue.model.command import CommandKind
from taskqueue.results.store import ResultStore
from taskqueue.worker.executor import Executor
from taskqueue.worker.outcome_outbox import OutcomeOutbox
from taskqueue.worker.result_writer import ResultWriter
from taskqueue.worker.runtime import Runtime
from tests.unit.worker.fakes import FakeChannel, FakeExecutor, FakePublisher, settings


def direct(**changes: Any) -> BasicProperties:
    """A direct message's properties."""
    values: dict[str, Any] = {"type": "resize", "correlation_id": "order-7", "message_id": "m-1"}
    return BasicProperties(**{**values, **changes})


class RuntimeHarness:
    """A runtime between a fake channel, a fake publisher and a fake executor."""

    def __init__(self, *, store: ResultStore | None = None, **changes: Any) -> None:
        loop = asyncio.get_running_loop()
        self.executor = FakeExecutor()
        executor: Executor = self.executor
        if store is not None:
            executor = ResultWriter(executor, store, loop, namespace="shop", always=False)
        self.publisher = FakePublisher()
        self.outbox = OutcomeOutbox(loop)
        self.outbox.attach(self.publisher.real)
        self.changes = 0
        self.turns = 0
        self.aborts: list[dict[str, Any]] = []
        self.runtime = Runtime(
            settings(**changes),
            executor,
            self.outbox,
            loop,
            on_change=self._changed,
            on_busy_changed=self._on_busy_changed,
            abort=self._abort,
        )
        self.channel = self.open_channel()

    def open_channel(self) -> FakeChannel:
        self.channel = FakeChannel()
        self.runtime.on_channel_opened(cast(Channel, self.channel))
        return self.channel

    def deliver(
        self, message: WorkMessage | BasicProperties, body: bytes = b"{}", **changes: Any
    ) -> None:
        self.runtime.on_delivery(self.channel.deliver(message, body, **changes))

    @property
    def events(self) -> list[EventKind]:
        return [each.event.kind for each in self.publisher.published]

    def command(self, kind: CommandKind, token: str = "k.1") -> None:  # noqa: S107
        self.runtime.on_command(WorkerCommand(kind, token=token, uid=f"uid-{token}"))

    @property
    def reported(self) -> list[tuple[str, str]]:
        """Event and token of what is published and not yet settled."""
        return [(each.event.kind.value, each.event.token) for each in self.publisher.published]

    def _changed(self) -> None:
        self.changes += 1

    def _on_busy_changed(self) -> None:
        self.turns += 1

    def _abort(self, reason: str, **fields: Any) -> None:
        self.aborts.append(fields)
