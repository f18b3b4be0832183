"""Sync handlers, each in a thread of its own while it runs.

Threads are made on demand, up to as many as run at once, and kept. They are daemons: one that
never returns cannot hold up the end of the process. A thread cannot be stopped from outside:
``cancel`` only sets ``ctx.cancelled``, and the attempt holds its slot until the handler returns.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

from taskqueue.worker.executor import AttemptResult
from taskqueue.worker.executors.threadsafe_calls import ThreadsafeCallQueue
from taskqueue.worker.outcome import raised, succeeded
from taskqueue.worker.sdk import Context, Handler, Progress, mark_cancelled

Done = Callable[[AttemptResult], None]


class ThreadExecution:
    """A sync handler on its way through a thread."""

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
        """The latest progress told, or None."""
        return self.context.latest_progress

    def cancel(self) -> None:
        """Tell the handler, if it looks."""
        mark_cancelled(self.context)

    def kill(self) -> bool:
        """A thread cannot be stopped."""
        return False

    def run(self) -> AttemptResult:
        """Call the handler and time it; nothing it raises gets out."""
        begun = time.perf_counter()
        try:
            value = self.handler(self.payload, self.context)
        except BaseException as problem:
            return raised(problem, time.perf_counter() - begun)
        return succeeded(value, time.perf_counter() - begun, handler=self.handler.name)


class ThreadExecutor:
    """A pool that never queues: it has a thread for every execution it was given."""

    def __init__(self, mailbox: ThreadsafeCallQueue) -> None:
        self._mailbox = mailbox
        self._work: SimpleQueue[ThreadExecution | None] = SimpleQueue()
        self._threads = 0
        self._busy = 0

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
            self._mailbox.post(self._ended, (execution, execution.run()))
            del execution  # an idle thread keeps no payload

    def _ended(self, ended: tuple[ThreadExecution, AttemptResult]) -> None:
        self._busy -= 1
        execution, result = ended
        execution.done(result)
