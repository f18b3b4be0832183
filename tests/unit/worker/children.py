"""A pool of real child processes over handlers of the test, and the results it gave."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from taskqueue.logs import LogFormat
from taskqueue.worker import log_setup
from taskqueue.worker.executor import AttemptRequest, AttemptResult, Execution
from taskqueue.worker.executors.child_pool import ChildPool, PoolSettings
from taskqueue.worker.executors.fork_server_launcher import ForkServerConfig
from taskqueue.worker.executors.function import FunctionExecutor
from taskqueue.worker.executors.process_spawner import ProcessSpawner
from taskqueue.worker.sdk import HandlerRegistry

PATIENCE = 60

#: What a fork server that is started anew imports.
MODULE = "tests.unit.worker.child_handlers"


def attempt(
    handler: str | None = "f", payload: dict[str, Any] | None = None, **changes: Any
) -> AttemptRequest:
    values: dict[str, Any] = {
        "handler": handler,
        "payload": payload or {},
        "task": "shop/a",
        "uid": "u",
        "queue": "q",
        "attempt": 1,
        "max_attempts": 3,
        "timeout_seconds": 30,
    }
    return AttemptRequest(**{**values, **changes})


def spawner(
    recipe: ForkServerConfig, registry: HandlerRegistry, loop: asyncio.AbstractEventLoop
) -> ProcessSpawner:
    """Return the spawner of a fork server that is forked from this process."""
    gc.freeze()  # it collects garbage when it starts: not in all that earlier tests have left
    return ProcessSpawner(recipe.launch_by_fork(registry), recipe.launch_by_exec, loop)


class Nursery:
    """An executor whose sync handlers run in children."""

    def __init__(self, registry: HandlerRegistry, settings: PoolSettings) -> None:
        self.loop = asyncio.get_running_loop()
        self.recipe = ForkServerConfig(
            modules=[MODULE],
            log_format=LogFormat.JSON,
            log_level="INFO",
            report_memory=settings.max_mib > 0,
        )
        self.spawner = spawner(self.recipe, registry, self.loop)
        self.pool = ChildPool(self.spawner, self.loop, settings)
        self.executor = FunctionExecutor(registry, self.loop, self.pool)
        self.results: asyncio.Queue[AttemptResult] = asyncio.Queue()

    def start(self, payload: dict[str, Any] | None = None, **changes: Any) -> Execution:
        return self.executor.start(attempt(payload=payload, **changes), self.results.put_nowait)

    async def result(self) -> AttemptResult:
        return await asyncio.wait_for(self.results.get(), PATIENCE)

    async def run(self, payload: dict[str, Any] | None = None, **changes: Any) -> AttemptResult:
        self.start(payload, **changes)
        return await self.result()

    async def value(self, payload: dict[str, Any] | None = None) -> Any:
        """Run one and return what it returned, which is no dict."""
        result = await self.run(payload)
        assert result.error is None, result.error
        return None if result.result is None else result.result["value"]

    async def error(self) -> tuple[str, str]:
        """Wait for the end of a failed one; its type and message."""
        result = await self.result()
        assert result.error is not None, result
        return result.error.type, result.error.message


@asynccontextmanager
async def children(
    function: Callable[..., Any],
    *,
    registry: HandlerRegistry | None = None,
    memory_mib: int | None = None,
    **settings: Any,
) -> AsyncIterator[Nursery]:
    """A pool with one handler called ``f``; all its processes are gone afterwards."""
    handlers = HandlerRegistry() if registry is None else registry
    handlers.register(function, name="f", memory_mib=memory_mib)
    nursery = Nursery(handlers, PoolSettings(**settings))
    server = nursery.spawner.pid
    try:
        yield nursery
    finally:
        server = nursery.spawner.pid or server
        await nursery.executor.close()
        nursery.spawner.close()
        async with asyncio.timeout(PATIENCE):
            await asyncio.to_thread(os.waitpid, server, 0)


@contextmanager
def worker_log() -> Iterator[None]:
    """Log to standard error as a worker does; the logging of the test is as before afterwards."""
    loggers = [logging.getLogger(name) for name in (None, "taskqueue", "taskqueue.worker")]
    before = [(each, each.handlers[:], each.level, each.propagate) for each in loggers]
    log_setup.install(LogFormat.JSON)
    try:
        yield
    finally:
        log_setup._handler = None  # as in a process that has not called `install`
        for each, handlers, level, propagate in before:
            each.handlers[:], each.propagate = handlers, propagate
            each.setLevel(level)


async def appears(path: Path) -> str:
    """Wait for a file that another process writes at once, and return its text."""
    async with asyncio.timeout(PATIENCE):
        while not (path.exists() and path.read_text()):  # noqa: ASYNC110, ASYNC240
            await asyncio.sleep(0.005)
        return path.read_text()  # noqa: ASYNC240


async def gone(pid: int) -> None:
    """Wait until there is no such process any more."""
    async with asyncio.timeout(PATIENCE):
        while alive(pid):  # noqa: ASYNC110 - it is not ours to wait for
            await asyncio.sleep(0.005)


def alive(pid: int) -> bool:
    """Whether there is such a process, zombies aside."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):  # ended before, or while, it was read
        return False
    return state != "Z"
