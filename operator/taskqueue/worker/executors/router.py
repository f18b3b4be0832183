"""Hands each attempt to the executor that serves its handler."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from taskqueue.worker.executor import AttemptRequest, AttemptResult, Execution, Executor
from taskqueue.worker.executors.function import NothingRan
from taskqueue.worker.outcome import unknown_handler


class ExecutorRouter:
    """Hands each attempt to its handler's executor; a `taskqueue.worker.executor.Executor`.

    Args:
        loop: everything here is called on it.
        by_name: the executor of each handler.
        rest: the executor of every other handler, or None.
        default: the handler of messages that name none; None: the only one there is.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        by_name: Mapping[str, Executor],
        *,
        rest: Executor | None = None,
        default: str | None = None,
    ) -> None:
        self._loop = loop
        self._by_name = by_name
        self._rest = rest
        alone = next(iter(by_name)) if len(by_name) == 1 and rest is None else None
        self._default = default or alone

    def start(self, attempt: AttemptRequest, done: Callable[[AttemptResult], None]) -> Execution:
        """Start the attempt with its handler's executor, or fail it when there is none."""
        if attempt.handler is None and self._default is not None:
            attempt = replace(attempt, handler=self._default)
        name = attempt.handler
        executor = None if name is None else self._by_name.get(name, self._rest)
        if executor is None:
            self._loop.call_soon(done, unknown_handler(name, self._by_name))
            return NothingRan()
        return executor.start(attempt, done)

    async def close(self, seconds: float = 0.0) -> None:
        """Close all executors concurrently."""
        executors: Iterable[Executor] = {
            id(executor): executor for executor in self._all()
        }.values()
        await asyncio.gather(*(executor.close(seconds) for executor in executors))

    def _all(self) -> list[Executor]:
        return [*self._by_name.values(), *([] if self._rest is None else [self._rest])]
