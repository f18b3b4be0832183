"""Two attempts of one concurrency key must never run at once: this ends the first in time.

The operator dispatches no second attempt of a key while it holds the key for a first, and the
broker redelivers a message only when it has lost the worker that had it. So a worker can keep the
rule on its own. This module watches the connection; `taskqueue.worker.run_machine` does the rest:

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
from taskqueue.logs import EventLog
from taskqueue.worker.run_machine import SECOND_CHECK_SECONDS

log = EventLog("taskqueue.worker")

#: Exit code of a worker that ends itself because of a keyed attempt: EX_TEMPFAIL of sysexits.
EXIT_CODE = 75

#: Heartbeat intervals of silence after which keyed executions are asked to end.
STOP_INTERVALS = 1.0

#: Heartbeat intervals of silence after which the broker may redeliver.
REDELIVERY_INTERVALS = 1.5


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
    """Watches the connection for keyed runs, and calls ``on_silence`` when the broker is silent.

    Args:
        loop: everything here is called on it.
        on_silence: called when the broker has been silent for too long, with the seconds before it
            may redeliver; called again while it stays silent.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, *, on_silence: Callable[[float], None]
    ) -> None:
        self._loop = loop
        self._on_silence = on_silence
        self._connection: Connection | None = None
        self._timer: asyncio.TimerHandle | None = None

    def on_connected(self, connection: Connection) -> None:
        """Watch this connection from now on."""
        self._connection = connection
        self._schedule_check(connection.heartbeat_seconds * STOP_INTERVALS)

    @property
    def seconds_left(self) -> float:
        """Seconds before the broker may redeliver; 0 without a connection."""
        connection = self._connection
        if connection is None or connection.closed.done():
            return 0.0
        return connection.heartbeat_seconds * REDELIVERY_INTERVALS - connection.silent_seconds

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
            self._schedule_check(SECOND_CHECK_SECONDS, second=True)
        else:
            self._on_silence(self.seconds_left)
            self._schedule_check(SECOND_CHECK_SECONDS, second=True)
