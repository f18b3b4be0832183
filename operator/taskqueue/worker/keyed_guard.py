"""Two attempts of one concurrency key must never run at once: this ends the first in time.

The operator dispatches no second attempt of a key while it holds the key for a first, and the
broker redelivers a message only when it has lost the worker that had it. So a worker can keep the
rule on its own. These are its parts:

* When the broker is silent or the connection is lost, keyed executions are asked to end at once and
  disowned: another worker may soon run them.
* The end of a keyed attempt that was stopped (command, time-out, end of the grace period) is
  published only when its execution has really ended: the operator frees the key then.
* An execution that does not end in time is killed. If it cannot be killed, such as a thread, the
  worker ends its own process: nothing else can keep the rule then. The messages of the other
  attempts in it are redelivered.

When the broker can redeliver: RabbitMQ gives up a silent client between two and three heartbeat
intervals after it last heard from it, and that may be half an interval before the client last heard
from the broker. Hence one and a half intervals. When both sides see the connection end, no time is
left at all. Then, and while a process stands still, only the fence protects the data.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import Callable
from typing import Any

from taskqueue.amqp.connection import Connection
from taskqueue.limits import REPORT_GRACE_SECONDS
from taskqueue.logs import EventLog
from taskqueue.worker.deadlines import Deadlines
from taskqueue.worker.runs import Run

log = EventLog("taskqueue.worker")

#: Exit code of a worker that ends itself because of a keyed attempt: EX_TEMPFAIL of sysexits.
EXIT_CODE = 75

#: Heartbeat intervals of silence after which keyed executions are asked to end.
STOP_INTERVALS = 1.0

#: Heartbeat intervals of silence after which the broker may redeliver.
REDELIVERY_INTERVALS = 1.5

#: How long an execution may take to end once the broker may redeliver, in seconds.
LOST_SECONDS = 1.0

#: How long a killed execution may take to end, in seconds.
KILLED_SECONDS = 2.0

#: How long it may take after its time limit: the operator waits twice as long for the outcome.
TIMED_OUT_SECONDS = REPORT_GRACE_SECONDS / 2

#: A loop that stood still has unread frames in its socket: it checks twice, this far apart.
_SECOND_CHECK_SECONDS = 0.1


def abort_process(reason: str, **fields: Any) -> None:
    """End this process now, whatever runs in it."""
    log.error(
        "worker.aborted",
        reason=reason,
        hint="let handlers of keyed Tasks run in processes (without thread=True), make them async, "
        "or check ctx.cancelled",
        **fields,
    )
    logging.shutdown()
    sys.stdout.flush()
    os._exit(EXIT_CODE)


class KeyedGuard:
    """Stops keyed runs when the broker is silent, and ends those that do not stop in time.

    Args:
        loop: everything here is called on it.
        on_silence: called when the broker has been silent for too long: it must stop all keyed
            runs, and call `expect_end` for each.
        abort: ends the process; see `abort_process`.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        on_silence: Callable[[], None],
        abort: Callable[..., None] = abort_process,
    ) -> None:
        self._loop = loop
        self._on_silence = on_silence
        self._abort = abort
        self._connection: Connection | None = None
        self._timer: asyncio.TimerHandle | None = None
        #: Runs that are to end, and by when, on the loop's clock.
        self._until: dict[Run, float] = {}
        #: Those of them that were stopped because of the broker's silence.
        self._silenced: set[Run] = set()
        #: Those of them that were killed and end in a moment.
        self._killed: set[Run] = set()
        self._none_left = asyncio.Event()
        self._none_left.set()
        self._deadlines: Deadlines[Run] = Deadlines(loop, self._on_deadline)

    def on_connected(self, connection: Connection) -> None:
        """Watch this connection from now on."""
        self._connection = connection
        self._schedule_check(connection.heartbeat_seconds * STOP_INTERVALS)

    def expect_end(self, run: Run, until: float | None) -> None:
        """Kill the run's execution, or abort, unless it ends in time.

        Args:
            run: its execution was asked to end.
            until: on the loop's clock; None: when the broker may redeliver it. Of several times the
                earliest counts.
        """
        if run in self._killed:
            return
        if until is not None:
            self._silenced.discard(run)
        elif run in self._silenced:
            return
        else:
            self._silenced.add(run)
            until = self._loop.time() + max(self._seconds_left(), LOST_SECONDS)
        self._none_left.clear()
        self._until[run] = min(until, self._until.get(run, until))
        self._deadlines.set(run, self._until[run])

    def on_execution_ended(self, run: Run) -> None:
        """Stop watching the run."""
        if run in self._until:
            del self._until[run]
            self._silenced.discard(run)
            self._killed.discard(run)
            self._deadlines.drop(run)
            if not self._until:
                self._none_left.set()

    async def wait_until_all_ended(self) -> None:
        """Wait until every execution that is expected to end has ended."""
        await self._none_left.wait()

    def _seconds_left(self) -> float:
        """Return the seconds before the broker may redeliver; 0 without a connection."""
        connection = self._connection
        if connection is None or connection.closed.done():
            return 0.0
        return connection.heartbeat_seconds * REDELIVERY_INTERVALS - connection.silent_seconds

    def _on_deadline(self, run: Run) -> None:
        now = self._loop.time()
        time_out = run.started_at + run.attempt.timeout_seconds
        if run in self._killed:
            self.abort_for(run)
        elif run in self._silenced and self._seconds_left() > 0 and now < time_out:
            # The broker was heard from since: the delivery, and with it the key, is still ours.
            self._until[run] = min(now + max(self._seconds_left(), _SECOND_CHECK_SECONDS), time_out)
            self._deadlines.set(run, self._until[run])
        else:
            self._kill_or_abort(run)

    def _kill_or_abort(self, run: Run) -> None:
        """Kill the run's execution; if that is impossible, end the process."""
        if run.execution is not None and run.execution.kill():
            self._killed.add(run)
            self._deadlines.set(run, self._loop.time() + KILLED_SECONDS)
        else:
            self.abort_for(run)

    def abort_for(self, run: Run) -> None:
        """End the process: nothing else can end the run's execution."""
        self._abort(
            "a keyed attempt was asked to end and runs on, and another of its key may start now",
            **run.log_fields,
        )

    def _schedule_check(self, seconds: float, *, second: bool = False) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if seconds:
            self._timer = self._loop.call_later(seconds, self._check_silence, second)
        else:
            self._timer = None

    def _check_silence(self, second: bool) -> None:
        self._timer = None
        connection = self._connection
        if connection is None or connection.closed.done():
            return
        limit = connection.heartbeat_seconds * STOP_INTERVALS
        silent = connection.silent_seconds
        if silent < limit:
            # Never a busy loop: the remainder may be a rounding error.
            self._schedule_check(max(limit - silent, 0.05))
        elif not second:
            self._schedule_check(_SECOND_CHECK_SECONDS, second=True)
        else:
            self._on_silence()
            self._schedule_check(_SECOND_CHECK_SECONDS, second=True)
