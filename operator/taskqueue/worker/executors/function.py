"""Runs the functions a module registered with ``@task``, in this process.

Sync ones in threads, async ones on a loop of their own. What a handler returns or raises is
turned into the attempt's result where it ran, so the runtime's loop does no work of the user's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from taskqueue.worker.executor import Attempt, AttemptResult, Execution
from taskqueue.worker.executors.coroutines import CoroutineExecution, Coroutines
from taskqueue.worker.executors.mailbox import Mailbox
from taskqueue.worker.executors.threads import ThreadExecution, Threads
from taskqueue.worker.outcome import unknown_handler
from taskqueue.worker.sdk import Context, Progress, Registry


class FunctionExecutor:
    """An `taskqueue.worker.executor.Executor` over a registry of handlers."""

    def __init__(self, registry: Registry, loop: asyncio.AbstractEventLoop) -> None:
        self._registry = registry
        self._loop = loop
        mailbox = Mailbox(loop)
        self._threads = Threads(mailbox)
        self._coroutines = Coroutines(mailbox)

    def start(self, attempt: Attempt, done: Callable[[AttemptResult], None]) -> Execution:
        """Run the attempt's handler, or fail it at once when nobody registered the name."""
        name = attempt.handler
        handler = self._registry.default if name is None else self._registry.get(name)
        if handler is None:
            self._loop.call_soon(done, unknown_handler(name, self._registry))
            return _NothingRan()
        context = Context(
            task=attempt.task,
            uid=attempt.uid,
            queue=attempt.queue,
            attempt=attempt.attempt,
            max_attempts=attempt.max_attempts,
            timeout_seconds=attempt.timeout_seconds,
            fence=attempt.fence,
        )
        if handler.is_async:
            coroutine = CoroutineExecution(
                self._coroutines, handler, attempt.payload, context, done
            )
            self._coroutines.start(coroutine)
            return coroutine
        thread = ThreadExecution(handler, attempt.payload, context, done)
        self._threads.start(thread)
        return thread

    def close(self) -> None:
        """Cancel coroutines and let idle threads end; a thread in a handler is left behind."""
        self._coroutines.close()
        self._threads.close()


class _NothingRan:
    """The execution of an attempt without a handler."""

    progress: Progress | None = None

    def cancel(self) -> None:
        """Nothing to stop."""
