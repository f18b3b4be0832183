"""Runs sync handlers, each in a thread of its own.

Threads are made on demand, up to as many as run at once, and kept. They are daemons: one that
never returns cannot hold up the end of the process. A thread cannot be stopped from outside:
``cancel`` only sets ``ctx.cancelled``, and the attempt holds its slot until the handler returns.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

from taskqueue.worker.executor import AttemptResult
from taskqueue.worker.executors.threadsafe_calls import ThreadsafeCallQueue
from taskqueue.worker.outcome import raised, succeeded
from taskqueue.worker.sdk import Context, Handler, Progress, mark_cancelled, mark_ended

Done = Callable[[AttemptResult], None]


class ThreadExecution:
    """Runs a sync handler in a thread."""

    killable = False

    __slots__ = ("context", "done", "handler", "payload")

    def __init__(
        self, handler: Handler, payload: dict[str, Any], context: Context, done: Done
    ) -> None:
        self.handler = handler
        self.payload = payload
        self.context = context
        self.done = done

    @property
    def progress(self) -> Progress | None:
        """The latest progress reported, or None."""
        return self.context.latest_progress

    def cancel(self) -> None:
        """Set ``ctx.cancelled``, which the handler may check."""
        mark_cancelled(self.context)

    def kill(self) -> bool:
        """A thread cannot be stopped."""
        return False

    def run(self) -> AttemptResult:
        """Call the handler and time it; return what it raises as a failure."""
        begun = time.perf_counter()
        try:
            value = self.handler(self.payload, self.context)
        except BaseException as error:
            return raised(error, time.perf_counter() - begun)
        finally:
            mark_ended(self.context)
        return succeeded(value, time.perf_counter() - begun, handler=self.handler.name)


class ThreadExecutor:
    """Runs executions in threads, with a thread for each that runs at once."""

    def __init__(self, outbound: ThreadsafeCallQueue) -> None:
        self._outbound = outbound
        self._work: SimpleQueue[ThreadExecution | None] = SimpleQueue()
        self._threads = 0
        self._busy = 0
        self._pid = os.getpid()

    def start(self, execution: ThreadExecution) -> None:
        """Run it now, in an idle thread or a new one."""
        self._busy += 1
        if self._busy > self._threads:
            self._threads += 1
            threading.Thread(
                target=self._serve, name=f"handler-{self._threads}", daemon=True
            ).start()
        self._work.put(execution)

    def close(self) -> None:
        """Let idle threads end."""
        for _ in range(self._threads):
            self._work.put(None)

    def _serve(self) -> None:
        while (execution := self._work.get()) is not None:
            result = execution.run()
            if os.getpid() != self._pid:
                os._exit(0)  # a copy of this process that the handler has forked, and returned in
            self._outbound.post(self._on_ended, (execution, result))
            del execution, result  # an idle thread keeps neither payload nor result

    def _on_ended(self, ended: tuple[ThreadExecution, AttemptResult]) -> None:
        self._busy -= 1
        execution, result = ended
        execution.done(result)
