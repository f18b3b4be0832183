"""Child processes for sync handlers: made on demand, kept warm, one attempt at a time in each.

Invariants
- An attempt's ``done`` is called when the child is free again; of an attempt that was cancelled,
  or whose child died, when the child and its process group are gone.
- A child whose attempt was cancelled is never used again: what an exception leaves behind in the
  middle of anything is not known.
- Whatever a child does to itself is one failed attempt, and nothing to the worker.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass

from taskqueue.worker.deadlines import Deadlines
from taskqueue.worker.executor import AttemptRequest, AttemptResult, Execution
from taskqueue.worker.executors import child_protocol
from taskqueue.worker.executors.exit_status import MemoryWatch
from taskqueue.worker.executors.memory import KillWatch
from taskqueue.worker.executors.pooled_child import ChildExecution, PooledChild
from taskqueue.worker.executors.process_spawner import ProcessSpawner
from taskqueue.worker.outcome import failure
from taskqueue.worker.sdk import Handler


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSettings:
    """How children are treated.

    Attributes:
        kill_grace_seconds: between SIGTERM and SIGKILL.
        memory_mib: a child that holds more is killed; 0: no limit. A handler may have its own.
        max_tasks: a child leaves after so many attempts; 0: never.
        max_mib: a child that holds more after an attempt leaves; 0: never.
        capture: what children write to stdout and stderr becomes lines of the log.
    """

    kill_grace_seconds: float = 5.0
    memory_mib: int = 0
    max_tasks: int = 0
    max_mib: int = 0
    capture: bool = False


class ChildPool:
    """Children of one fork server; has as many as attempts were given to it at once.

    Args:
        spawner: makes processes.
        loop: everything here is called on it.
        settings: see there.
    """

    def __init__(
        self, spawner: ProcessSpawner, loop: asyncio.AbstractEventLoop, settings: PoolSettings
    ) -> None:
        self.spawner = spawner
        self.loop = loop
        self.settings = settings
        self.kills = KillWatch()
        #: Free children; the last one is the warmest.
        self.idle: list[PooledChild] = []
        #: All whose process may exist.
        self.children: set[PooledChild] = set()
        #: When a child that was asked to end is killed.
        self.deadlines: Deadlines[PooledChild] = Deadlines(loop, PooledChild.kill)
        self._memory = MemoryWatch(loop, lambda: self.children)
        self._none_left = asyncio.Event()

    def warm(self) -> None:
        """Have a child ready before the first attempt comes."""
        if not self.children:
            self.idle.append(PooledChild(self))

    def start(
        self, handler: Handler, attempt: AttemptRequest, done: Callable[[AttemptResult], None]
    ) -> Execution | None:
        """Run the attempt in a free child or a new one.

        None: it has failed already, which ``done`` is told soon.
        """
        try:
            body = child_protocol.encode_attempt(handler.name, attempt)
            child = self.idle.pop() if self.idle else PooledChild(self)
        except TypeError as problem:
            reason = f"the payload cannot be passed to handler {handler.name!r}: {problem}"
            result = failure("InvalidPayload", reason, 0.0, retryable=False)
        except OSError as problem:
            result = failure("ChildDied", f"no process can be made for it: {problem}", 0.0)
        else:
            limit = handler.memory_mib or self.settings.memory_mib
            execution = ChildExecution(child, attempt, done, self.loop.time(), limit)
            child.run(execution, body)
            if limit:
                self._memory.begin()
            return execution
        self.loop.call_soon(done, result)
        return None

    async def close(self, seconds: float) -> None:
        """Let children end in order for so long, then kill what is left.

        ``done`` may stay uncalled.
        """
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

    def gone(self, child: PooledChild) -> None:
        """The child is not to be used any more."""
        self.children.discard(child)
        if child in self.idle:
            self.idle.remove(child)
        self.deadlines.drop(child)
        if not self.children:
            self._none_left.set()
