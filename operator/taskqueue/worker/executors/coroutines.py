"""Runs async handlers, all on one event loop in a thread of its own.

User code that blocks its loop stops its neighbours there, never the loop that talks to the
broker. ``cancel`` cancels the coroutine; one that swallows the cancellation holds its slot until
it returns. User code that ends the loop (``loop.stop()``, a ``sys.exit()`` in a task that a handler
has started) ends nothing: the loop goes on until the executor is closed.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable
from typing import Any

from taskqueue.logs import EventLog
from taskqueue.worker.executor import AttemptResult
from taskqueue.worker.executors.threadsafe_calls import ThreadsafeCallQueue
from taskqueue.worker.outcome import describe_exception, raised, succeeded
from taskqueue.worker.sdk import Context, Handler, Progress, mark_cancelled, mark_ended

log = EventLog("taskqueue.worker")

#: How long cancelled coroutines may clean up at the end of the process, in seconds.
_CLOSE_SECONDS = 1.0


class CoroutineExecution:
    """Runs an async handler on the handlers' loop."""

    killable = False

    __slots__ = ("_coroutines", "_task", "context", "done", "handler", "payload")

    def __init__(
        self,
        coroutines: CoroutineExecutor,
        handler: Handler,
        payload: dict[str, Any],
        context: Context,
        done: Callable[[AttemptResult], None],
    ) -> None:
        self._coroutines = coroutines
        self._task: asyncio.Task[AttemptResult] | None = None
        self.handler = handler
        self.payload = payload
        self.context = context
        self.done = done

    @property
    def progress(self) -> Progress | None:
        """The latest progress reported, or None."""
        return self.context.latest_progress

    def cancel(self) -> None:
        """Cancel the coroutine, from the runtime's loop."""
        mark_cancelled(self.context)
        # Posted after `create_task`, so the task exists when this runs.
        self._coroutines.inbound.post(CoroutineExecution._cancel_task, self)

    def kill(self) -> bool:
        """A coroutine that swallows its cancellation cannot be stopped."""
        return False

    def create_task(self) -> None:
        """Create the task; runs on the handlers' loop."""
        run = self._run()
        try:
            self._task = asyncio.get_running_loop().create_task(run)
        except BaseException as error:  # of a task factory that a handler has set
            run.close()
            self._coroutines.outbound.post(self.done, raised(error, 0.0))
        else:
            self._task.add_done_callback(self._on_task_done)

    def _cancel_task(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _run(self) -> AttemptResult:
        begun = time.perf_counter()
        try:
            value = await self.handler(self.payload, self.context)
        except BaseException as error:
            result = raised(error, time.perf_counter() - begun)
        else:
            result = succeeded(value, time.perf_counter() - begun, handler=self.handler.name)
        mark_ended(self.context)
        self._coroutines.end_copy()
        return result

    def _on_task_done(self, task: asyncio.Task[AttemptResult]) -> None:
        # A task cancelled before its first step never entered `_run`.
        result = raised(asyncio.CancelledError(), 0.0) if task.cancelled() else task.result()
        self._coroutines.outbound.post(self.done, result)


class CoroutineExecutor:
    """Runs the handlers' loop in a thread, from the first async handler on."""

    inbound: ThreadsafeCallQueue

    def __init__(self, outbound: ThreadsafeCallQueue) -> None:
        self.outbound = outbound
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._closing = False
        self._pid = os.getpid()

    def start(self, execution: CoroutineExecution) -> None:
        """Run it on the handlers' loop."""
        if self._loop is None:
            loop = asyncio.new_event_loop()
            thread = threading.Thread(
                target=self._serve, args=(loop,), name="async-handlers", daemon=True
            )
            thread.start()  # it may fail, and the next attempt tries again
            self.inbound = ThreadsafeCallQueue(loop)
            self._loop, self._thread = loop, thread
        self.inbound.post(CoroutineExecution.create_task, execution)

    def close(self) -> None:
        """Cancel what runs, give it a moment to clean up, and end the loop."""
        if self._loop is None or self._thread is None:
            return
        self._closing = True
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_CLOSE_SECONDS)

    def end_copy(self) -> None:
        """End this process if a handler has forked it, and has returned in the copy too."""
        if os.getpid() != self._pid:
            os._exit(0)

    def _serve(self, loop: asyncio.AbstractEventLoop) -> None:
        asyncio.set_event_loop(loop)
        while not self._closing:
            reason = "a handler has stopped it"
            try:
                loop.run_forever()
            except BaseException as error:
                # asyncio lets SystemExit and KeyboardInterrupt of any task pass.
                reason = describe_exception(error)
            if not self._closing:
                log.warning(
                    "async_loop.interrupted",
                    reason=reason,
                    hint="the loop of async handlers goes on; end a handler by returning from it",
                )
        remaining = asyncio.all_tasks(loop)
        for task in remaining:
            task.cancel()
        if remaining:
            loop.run_until_complete(asyncio.wait(remaining, timeout=_CLOSE_SECONDS))
