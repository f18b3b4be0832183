"""Runs sync handlers in child processes: made on demand, kept warm, one attempt at a time each.

Invariants
- An attempt's ``done`` is called when the child is free again; for an attempt that was cancelled,
  or whose child died, when the child and its process group have ended.
- A child whose attempt was cancelled is never reused: the exception may have left anything
  half-done.
- Whatever a child does to itself fails one attempt, and does not affect the worker.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass

from taskqueue.backoff import Backoff
from taskqueue.logs import EventLog
from taskqueue.worker.deadlines import Deadlines
from taskqueue.worker.executor import AttemptRequest, AttemptResult, Execution
from taskqueue.worker.executors import child_protocol
from taskqueue.worker.executors.exit_status import MemoryWatch
from taskqueue.worker.executors.memory import OomKills
from taskqueue.worker.executors.pooled_child import ChildExecution, PooledChild
from taskqueue.worker.executors.process_spawner import ProcessSpawner
from taskqueue.worker.outcome import failure
from taskqueue.worker.sdk import Handler

log = EventLog("taskqueue.worker")

#: How long an attempt waits for a child whose start hooks succeed before it is given back, in
#: seconds. Until then it holds a slot, so that a worker that cannot start takes no more than that.
HELD_SECONDS = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSettings:
    """Says when children are killed or replaced.

    Attributes:
        kill_grace_seconds: between SIGTERM and SIGKILL.
        memory_mib: a child that holds more is killed; 0: no limit. A handler may have its own.
        max_tasks: attempts after which a child is replaced; 0: never.
        max_mib: a child that holds more after an attempt is replaced; 0: never.
        keep_leftovers: a child in which an attempt has left threads or open files is not replaced.
        capture: log what children write to stdout and stderr.
    """

    kill_grace_seconds: float = 5.0
    memory_mib: int = 0
    max_tasks: int = 0
    max_mib: int = 0
    keep_leftovers: bool = False
    capture: bool = False


class ChildPool:
    """Runs attempts in children of one fork server, as many as attempts run at once.

    Args:
        spawner: makes processes.
        loop: everything here is called on it.
        settings: when children are killed or replaced.
    """

    def __init__(
        self, spawner: ProcessSpawner, loop: asyncio.AbstractEventLoop, settings: PoolSettings
    ) -> None:
        self.spawner = spawner
        self.loop = loop
        self.settings = settings
        self.kills = OomKills()
        #: Free children; the last one is reused first.
        self.idle: list[PooledChild] = []
        #: All children whose process may exist.
        self.children: set[PooledChild] = set()
        #: When children that are to end are killed.
        self.deadlines: Deadlines[PooledChild] = Deadlines(loop, PooledChild.kill)
        self._memory = MemoryWatch(loop, lambda: self.children)
        self._none_left = asyncio.Event()
        #: Set while the start hooks of the last child that ran them succeeded.
        self.started = asyncio.Event()
        #: Why a start hook failed in the last child; "": it did not.
        self.start_failure = ""
        self._backoff = Backoff()
        self._closed = False

    def warm(self) -> None:
        """Make a child before the first attempt arrives, and others until one has started."""
        if not self.children and not self._closed:
            try:
                self.idle.append(PooledChild(self))
            except OSError as error:
                self.on_start_failed(str(error), None, "")

    def on_child_started(self) -> None:
        """Note that the start hooks have succeeded in a child."""
        if self.start_failure:
            log.info("child.started", reason="the @on_start hooks succeed again")
        self.start_failure = ""
        self._backoff.reset()
        self.started.set()

    def on_start_failed(
        self, reason: str, execution: ChildExecution | None, traceback: str
    ) -> None:
        """Try again with growing pauses; what waits for it keeps its slot, or is given back.

        Args:
            reason: why a start hook failed.
            execution: the attempt that was given to the child, if any; it has not begun.
            traceback: of the hook.
        """
        self.start_failure = reason
        self.started.clear()
        delay = self._backoff.next_delay()
        log.error(
            "child.start_failed",
            reason=f"an @on_start hook failed: {reason}",
            exception=traceback or None,
            hint="the worker is not ready until it succeeds; it is tried again",
            seconds=round(delay, 3),
        )
        if execution is None:
            self.loop.call_later(delay, self.warm)
        elif self.loop.time() - execution.begun_at > HELD_SECONDS:
            execution.done(self._not_begun(reason))
        else:
            self.loop.call_later(delay, self._run_again, execution)

    def _run_again(self, execution: ChildExecution) -> None:
        if self._closed:
            return
        if execution.cancelled:
            execution.done(failure("Cancelled", "it was cancelled before it began", 0.0))
            return
        try:
            execution.move_to(self.idle.pop() if self.idle else PooledChild(self))
        except OSError as error:
            execution.done(self._not_begun(str(error)))

    @staticmethod
    def _not_begun(reason: str) -> AttemptResult:
        return AttemptResult(seconds=0.0, not_begun=f"an @on_start hook failed: {reason}")

    def start(
        self, handler: Handler, attempt: AttemptRequest, done: Callable[[AttemptResult], None]
    ) -> Execution | None:
        """Run the attempt in a free child or a new one.

        Returns:
            None: it has failed already; ``done`` is called soon.
        """
        try:
            body = child_protocol.encode_attempt(handler.name, attempt)
            child = self.idle.pop() if self.idle else PooledChild(self)
        except TypeError as error:
            reason = f"the payload cannot be passed to handler {handler.name!r}: {error}"
            result = failure("InvalidPayload", reason, 0.0, retryable=False)
        except OSError as error:
            result = failure("ChildDied", f"no process can be made for it: {error}", 0.0)
        else:
            limit = handler.memory_mib or self.settings.memory_mib
            execution = ChildExecution(child, attempt, done, self.loop.time(), limit, body)
            child.run(execution)
            if limit:
                self._memory.start()
            return execution
        self.loop.call_soon(done, result)
        return None

    async def close(self, seconds: float) -> None:
        """Let children end in order, and kill those that have not after ``seconds``.

        ``done`` may not be called.
        """
        self._closed = True
        for child in list(self.children):
            child.dismiss()
        if self.children:
            self._none_left.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._none_left.wait()
        self._memory.close()
        self.deadlines.close()
        for child in list(self.children):
            child.abandon()

    def remove_child(self, child: PooledChild) -> None:
        """Stop using a child."""
        self.children.discard(child)
        if child in self.idle:
            self.idle.remove(child)
        self.deadlines.drop(child)
        if not self.children:
            self._none_left.set()
