"""Runs the functions a module registered with ``@task``.

Sync ones run in child processes, or in threads where they or the worker's settings say so; async
ones on a loop of their own. What a handler returns or raises becomes the attempt's result where it
ran, so the runtime's loop does none of the user's work.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from functools import partial

from taskqueue.backoff import Backoff
from taskqueue.logs import EventLog
from taskqueue.worker import log_setup
from taskqueue.worker.executor import AttemptRequest, AttemptResult, Execution
from taskqueue.worker.executors.child_pool import ChildPool
from taskqueue.worker.executors.coroutines import CoroutineExecution, CoroutineExecutor
from taskqueue.worker.executors.threads import ThreadExecution, ThreadExecutor
from taskqueue.worker.executors.threadsafe_calls import ThreadsafeCallQueue
from taskqueue.worker.outcome import (
    HandlerTraceback,
    describe_exception,
    describe_traceback,
    unknown_handler,
)
from taskqueue.worker.sdk import Context, Handler, HandlerRegistry, Hook, Progress

log = EventLog("taskqueue.worker")


class FunctionExecutor:
    """Runs registered functions as handlers; a `taskqueue.worker.executor.Executor`.

    Args:
        registry: the handlers.
        loop: everything here is called on it.
        pool: for sync handlers without ``thread=True``; None: they run in threads too.
    """

    def __init__(
        self,
        registry: HandlerRegistry,
        loop: asyncio.AbstractEventLoop,
        pool: ChildPool | None = None,
    ) -> None:
        self._registry = registry
        self._loop = loop
        self._pool = pool
        self._outbound = ThreadsafeCallQueue(loop)
        self._threads = ThreadExecutor(self._outbound)
        self._coroutines = CoroutineExecutor(self._outbound)
        #: Whether the start hooks have run in this process.
        self._hooks_ran = False
        self._start_failure = ""

    @property
    def start_failure(self) -> str:
        """Why a start hook failed the last time, in this process or a child; "": none did."""
        return self._start_failure or ("" if self._pool is None else self._pool.start_failure)

    async def run_start_hooks(self) -> None:
        """Return once the start hooks have succeeded in this process and in a child, as needed.

        Each hook is called until it succeeds, with growing pauses, and then not again.
        """
        if any(not self._in_child(handler) for handler in self._registry.values()):
            backoff = Backoff()
            for hook in self._registry.start_hooks:
                while (error := await _call_in_thread(hook)) is not None:
                    delay = backoff.next_delay()
                    self._start_failure = describe_exception(error)
                    log.error(
                        "hook.failed",
                        exc_info=HandlerTraceback(describe_traceback(error)),
                        reason=f"an @on_start hook failed: {self._start_failure}",
                        hint="the worker is not ready until it succeeds; it is tried again",
                        seconds=round(delay, 3),
                    )
                    await asyncio.sleep(delay)
                self._start_failure = ""
            self._hooks_ran = True
            log_setup.ensure()
        if self._pool is not None and any(map(self._in_child, self._registry.values())):
            self._pool.warm()
            await self._pool.started.wait()

    def start(self, attempt: AttemptRequest, done: Callable[[AttemptResult], None]) -> Execution:
        """Run the attempt's handler, or fail it at once when nobody registered the name."""
        name = attempt.handler
        handler = self._registry.default if name is None else self._registry.get(name)
        if handler is None:
            self._loop.call_soon(done, unknown_handler(name, self._registry))
            return NothingRan()
        if self._pool is not None and self._in_child(handler):
            return self._pool.start(handler, attempt, done) or NothingRan()
        save = attempt.on_checkpoint
        context = Context(
            task=attempt.task,
            uid=attempt.uid,
            queue=attempt.queue,
            attempt=attempt.attempt,
            max_attempts=attempt.max_attempts,
            timeout_seconds=attempt.timeout_seconds,
            fence=attempt.fence,
            checkpoint=attempt.checkpoint,
            checkpoint_known=attempt.checkpoint_known,
            scheduled_time=attempt.scheduled_time,
            index=attempt.index,
            # In the order of its calls, and before the end: by the queue that brings the end.
            save=None if save is None else partial(self._outbound.post, save),
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

    async def close(self, seconds: float = 0.0) -> None:
        """Let children end within ``seconds``, cancel coroutines, and let idle threads end.

        A thread in a handler is left behind. The stop hooks run last.
        """
        if self._pool is not None:
            await self._pool.close(seconds)
        self._coroutines.close()
        self._threads.close()
        if self._hooks_ran:
            for hook in reversed(self._registry.stop_hooks):
                try:
                    hook()
                except BaseException as error:  # a sys.exit() too: the others are called
                    log.error("hook.failed", exc_info=HandlerTraceback(describe_traceback(error)))

    def _in_child(self, handler: Handler) -> bool:
        return self._pool is not None and not (handler.is_async or handler.thread)


async def _call_in_thread(hook: Hook) -> BaseException | None:
    """Call a hook, which may block, in a thread that nobody waits for at the end of the process.

    Returns:
        What it raised.
    """
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[BaseException | None] = loop.create_future()

    def settle(error: BaseException | None) -> None:
        if not ended.done():
            ended.set_result(error)

    def run() -> None:
        problem: BaseException | None = None
        try:
            hook()
        except BaseException as error:
            problem = error
        with contextlib.suppress(RuntimeError):  # the loop has been closed
            loop.call_soon_threadsafe(settle, problem)

    threading.Thread(target=run, name="start-hook", daemon=True).start()
    return await ended


class NothingRan:
    """The execution of an attempt that failed before it could begin."""

    killable = True
    progress: Progress | None = None

    def cancel(self) -> None:
        """Nothing to stop."""

    def kill(self) -> bool:
        """Nothing to end."""
        return True
