"""Sends commands to workers, and keeps those about attempts until the broker has confirmed them.

What is kept survives a lost connection. What has waited for the broker is *owed* until it is
confirmed: `taskqueue.controller.tasks.command_record` keeps that for the next leader. A command
that is lost all the same, on its way when the process is killed, costs a run: a worker that reports
an attempt nobody waits for gets a command to stop it. What the broker returns or refuses, because
the stream was deleted or has no leader just now, is sent again after a pause.

A command to drain is sent at once or not at all: after an outage its worker may be needed again,
and no command revokes it. The drainer repeats it while it wants the worker drained.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable

from taskqueue.amqp.publisher import Publisher, Settled
from taskqueue.contract.command import WorkerCommand, command_message, encode
from taskqueue.controller.metrics import COMMANDS_DROPPED
from taskqueue.logs import EventLog
from taskqueue.model.command import CommandKind
from taskqueue.model.queue import QueueKey

log = EventLog(__name__)

#: Of the commands of one queue that wait for the broker, as they are sent: some 8,000. Above this
#: the oldest are dropped.
KEPT_BYTES = 1024 * 1024

#: What was returned or refused is sent again after this, in seconds.
_AGAIN_SECONDS = 5.0


class CommandOutbox:
    """Sends the commands of one queue, and keeps them while the broker is away.

    Args:
        key: of the queue, for logs.
        on_owed: called when `owed` has changed.
    """

    def __init__(self, key: QueueKey, *, on_owed: Callable[[], None]) -> None:
        self._key = key
        self._on_owed = on_owed
        self._publisher: Publisher | None = None
        #: What waits for the broker, in order, with its size.
        self._waiting: dict[WorkerCommand, int] = {}
        self._bytes = 0
        self._owed: dict[WorkerCommand, None] = {}
        self._has_dropped = False
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        """Return how many commands wait for the broker."""
        return len(self._waiting)

    @property
    def owed(self) -> Collection[WorkerCommand]:
        """The commands that have waited for the broker and are not confirmed, the oldest first."""
        return self._owed.keys()

    def open(self, publisher: Publisher) -> None:
        """Send what waits, and send at once from now on."""
        self._publisher = publisher
        waiting, self._waiting, self._bytes = self._waiting, {}, 0
        self._has_dropped = False
        for command in waiting:
            self.send(command)

    def close(self) -> None:
        """Keep commands until opened again."""
        self._publisher = None

    def restore(self, commands: Iterable[WorkerCommand]) -> None:
        """Send what a former leader owed."""
        for command in commands:
            self._owed[command] = None
            self.send(command)

    def send(self, command: WorkerCommand) -> None:
        """Send a command now; if it is to be kept, when the broker is back."""
        publisher = self._publisher
        if publisher is None:
            self._keep(command)
            return
        message = command_message(command)

        def on_settled(verdict: Settled, _: str) -> None:
            if verdict is Settled.CONFIRMED:
                self._discard(command)
            elif self._publisher in (None, publisher):
                self._keep(command)
            elif _is_kept(command):
                self.send(command)

        publisher.publish(
            message.exchange, message.key, message.body, message.properties(), on_settled
        )

    def _discard(self, command: WorkerCommand) -> None:
        if command in self._owed:
            del self._owed[command]
            self._on_owed()

    def _keep(self, command: WorkerCommand) -> None:
        if not _is_kept(command) or command in self._waiting:
            return
        self._waiting[command] = size = len(encode(command))
        self._bytes += size
        self._owed[command] = None
        while self._bytes > KEPT_BYTES:
            self._drop_oldest()
        self._on_owed()
        if self._publisher is not None and self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(_AGAIN_SECONDS, self._send_again)

    def _send_again(self) -> None:
        self._timer = None
        if self._publisher is not None:
            self.open(self._publisher)

    def _drop_oldest(self) -> None:
        oldest = next(iter(self._waiting))
        self._bytes -= self._waiting.pop(oldest)
        self._owed.pop(oldest, None)
        COMMANDS_DROPPED.inc()
        if not self._has_dropped:
            self._has_dropped = True
            log.error(
                "command.dropped",
                namespace=self._key[0],
                queue=self._key[1],
                error=f"the broker is away, and more than {KEPT_BYTES} bytes of commands wait for "
                "it: the oldest are dropped",
                hint="some attempts of Tasks that were cancelled, deleted or suspended may run; "
                "bring the broker back",
            )


def _is_kept(command: WorkerCommand) -> bool:
    return command.kind is not CommandKind.DRAIN
