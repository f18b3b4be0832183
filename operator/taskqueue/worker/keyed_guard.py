"""Two attempts of one concurrency key must never run at once: this ends the first in time.

The operator dispatches no second attempt of a key while it holds the key for a first, and the
broker delivers a message again only when it has lost the worker that had it. So a worker keeps the
rule by itself, and here is all of it:

* When the broker is silent or the connection lost, keyed executions are asked to end at once, and
  their deliveries are forgotten: another worker may soon run them.
* A keyed attempt that was stopped (order, time-out, end of the grace period) is told only when its
  execution has really ended: the operator frees the key when it hears of it.
* An execution that does not end in time is killed. One that cannot be, such as a thread, takes
  the process with it: nothing else can keep the rule then. The messages of its neighbours are
  delivered again.

When the broker can deliver again: RabbitMQ gives a silent client up between two and three heartbeat
intervals after it last heard it, and that may be half an interval before the client last heard the
broker. Hence one and a half intervals. A connection both sides see end leaves no time at all; what
is left to chance there, and while a process stands still, is the fence's to refuse.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import Callable
from typing import Any, Protocol

from taskqueue.logs import EventLog
from taskqueue.worker.deadlines import Deadlines
from taskqueue.worker.runs import Run

log = EventLog("taskqueue.worker")

#: Exit code of a worker that ends itself for a keyed attempt: EX_TEMPFAIL of sysexits.
EXIT_CODE = 75

#: Heartbeat intervals of silence after which keyed executions are asked to end.
STOP_INTERVALS = 1.0

#: Heartbeat intervals of silence after which the broker may deliver again.
REDELIVERY_INTERVALS = 1.5

#: How long an execution may take to end once the broker may deliver again, in seconds.
LOST_SECONDS = 1.0

#: How long one that was killed may take to be gone, in seconds.
KILLED_SECONDS = 2.0

#: How long it may take after its time-out; the operator calls it failed 10 s after.
TIMED_OUT_SECONDS = 5.0

#: A loop that stood still has what the broker said in its socket: it looks twice, this far apart.
_SECOND_LOOK_SECONDS = 0.1


class WatchedConnection(Protocol):
    """What is asked of the connection deliveries come by."""

    @property
    def silent_seconds(self) -> float:
        """How long ago the broker was last heard."""

    @property
    def heartbeat_seconds(self) -> float:
        """The interval agreed with it; 0: none."""

    @property
    def closed(self) -> asyncio.Future[str]:
        """Done when the connection is gone."""


def leave(reason: str, **fields: Any) -> None:
    """End this process now, whatever runs in it."""
    log.error(
        "worker.aborted",
        reason=reason,
        todo="let handlers of keyed Tasks run in processes (without thread=True), or be async, or "
        "look at ctx.cancelled",
        **fields,
    )
    logging.shutdown()
    sys.stdout.flush()
    os._exit(EXIT_CODE)


class KeyedGuard:
    """Watches the broker while keyed work may run, and keyed executions that are to end.

    Args:
        loop: everything here is called on it.
        on_silence: called when the broker has been silent for too long: have all keyed work end,
            and `expect` it to.
        leave: ends the process; see `leave`.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        on_silence: Callable[[], None],
        leave: Callable[..., None] = leave,
    ) -> None:
        self._loop = loop
        self._on_silence = on_silence
        self._leave = leave
        self._line: WatchedConnection | None = None
        self._timer: asyncio.TimerHandle | None = None
        #: Runs that are to end, and by when, on the loop's clock.
        self._until: dict[Run, float] = {}
        #: Those of them that were told because of the broker's silence.
        self._silenced: set[Run] = set()
        #: Those of them that were killed and are gone in a moment.
        self._killed: set[Run] = set()
        self._none_left = asyncio.Event()
        self._none_left.set()
        self._deadlines: Deadlines[Run] = Deadlines(loop, self._due)

    def connected(self, line: WatchedConnection) -> None:
        """Deliveries come by this connection from now on."""
        self._line = line
        self._look_in(line.heartbeat_seconds * STOP_INTERVALS)

    def expect(self, run: Run, until: float | None) -> None:
        """Have the run's execution end until then, None: until the broker can deliver it again.

        Of several times the earliest counts.
        """
        if run in self._killed:
            return
        if until is not None:
            self._silenced.discard(run)
        elif run in self._silenced:
            return
        else:
            self._silenced.add(run)
            until = self._loop.time() + max(self._left(), LOST_SECONDS)
        self._none_left.clear()
        self._until[run] = min(until, self._until.get(run, until))
        self._deadlines.set(run, self._until[run])

    def ended(self, run: Run) -> None:
        """Its execution holds nothing any more."""
        if run in self._until:
            del self._until[run]
            self._silenced.discard(run)
            self._killed.discard(run)
            self._deadlines.drop(run)
            if not self._until:
                self._none_left.set()

    async def all_ended(self) -> None:
        """Wait until every execution that is expected to end has ended."""
        await self._none_left.wait()

    def _left(self) -> float:
        """How many seconds are left before the broker can deliver again; 0 without a connection."""
        line = self._line
        if line is None or line.closed.done():
            return 0.0
        return line.heartbeat_seconds * REDELIVERY_INTERVALS - line.silent_seconds

    def _due(self, run: Run) -> None:
        now = self._loop.time()
        time_out = run.started_at + run.attempt.timeout_seconds
        if run in self._killed:
            self.leave_for(run)
        elif run in self._silenced and self._left() > 0 and now < time_out:
            # The broker was heard again: the delivery, and with it the key, is still ours.
            self._until[run] = min(now + max(self._left(), _SECOND_LOOK_SECONDS), time_out)
            self._deadlines.set(run, self._until[run])
        else:
            self.give_up(run)

    def give_up(self, run: Run) -> None:
        """Kill the run's execution, which goes on and must not; or, failing that, this process."""
        if run.execution is not None and run.execution.kill():
            self._killed.add(run)
            self._deadlines.set(run, self._loop.time() + KILLED_SECONDS)
        else:
            self.leave_for(run)

    def leave_for(self, run: Run) -> None:
        """End the process: nothing else can end the run's execution."""
        self._leave(
            "a keyed attempt was told to end and runs on, and another of its key may begin now",
            **run.fields,
        )

    def _look_in(self, seconds: float, *, again: bool = False) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(seconds, self._look, again) if seconds else None

    def _look(self, again: bool) -> None:
        self._timer = None
        line = self._line
        if line is None or line.closed.done():
            return
        limit = line.heartbeat_seconds * STOP_INTERVALS
        silent = line.silent_seconds
        if silent < limit:
            # Never a busy loop: the remainder may be a rounding error.
            self._look_in(max(limit - silent, 0.05))
        elif not again:
            self._look_in(_SECOND_LOOK_SECONDS, again=True)
        else:
            self._on_silence()
            self._look_in(_SECOND_LOOK_SECONDS, again=True)
