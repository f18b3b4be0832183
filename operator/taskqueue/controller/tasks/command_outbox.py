"""Sends commands to workers, and keeps those about attempts until the broker has confirmed them.

They survive a lost connection, not a lost process: the next leader decides again, and a worker that
reports an attempt nobody waits for gets a command to stop it.

A command to drain is sent at once or not at all: after an outage its worker may be needed again,
and no command revokes it. The drainer repeats it while it wants the worker drained.
"""

from __future__ import annotations

from collections import deque

from taskqueue.amqp.publisher import Publisher, Settled
from taskqueue.contract.command import WorkerCommand, command_message
from taskqueue.model.command import CommandKind

#: Commands kept while the broker is away; above this, the oldest are dropped.
_KEPT = 10_000


class CommandOutbox:
    """Sends commands, and keeps them while the broker is away."""

    def __init__(self) -> None:
        self._publisher: Publisher | None = None
        self._waiting: deque[WorkerCommand] = deque(maxlen=_KEPT)

    def __len__(self) -> int:
        """Return how many commands wait for the broker."""
        return len(self._waiting)

    def open(self, publisher: Publisher) -> None:
        """Send what waits, and send at once from now on."""
        self._publisher = publisher
        waiting, self._waiting = self._waiting, deque(maxlen=_KEPT)
        for command in waiting:
            self.send(command)

    def close(self) -> None:
        """Keep commands until opened again."""
        self._publisher = None

    def send(self, command: WorkerCommand) -> None:
        """Send a command now; if it is to be kept, when the broker is back."""
        publisher = self._publisher
        if publisher is None:
            self._keep(command)
            return
        message = command_message(command)

        def on_settled(verdict: Settled, _: str) -> None:
            if verdict is Settled.CONFIRMED:
                return
            if self._publisher in (None, publisher):
                self._keep(command)  # until the next connection
            elif _is_kept(command):
                self.send(command)

        publisher.publish(
            message.exchange, message.key, message.body, message.properties(), on_settled
        )

    def _keep(self, command: WorkerCommand) -> None:
        if _is_kept(command):
            self._waiting.append(command)


def _is_kept(command: WorkerCommand) -> bool:
    return command.kind is not CommandKind.DRAIN
