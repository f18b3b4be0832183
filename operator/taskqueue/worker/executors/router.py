"""Hands each attempt to the executor that serves its handler."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from taskqueue.worker.executor import AttemptRequest, AttemptResult, Execution, Executor
from taskqueue.worker.executors.function import NothingRan
from taskqueue.worker.outcome import unknown_handler


class ExecutorRouter:
    """An `taskqueue.worker.executor.Executor` made of others.

    Args:
        loop: everything here is called on it.
        by_name: who serves which handler.
        rest: serves every other handler a message names, if anybody does.
        default: the handler of messages that name none; None: of several, no one.
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
        """Have the handler's executor run the attempt, or fail it when there is none."""
        if attempt.handler is None and self._default is not None:
            attempt = replace(attempt, handler=self._default)
        name = attempt.handler
        executor = None if name is None else self._by_name.get(name, self._rest)
        if executor is None:
            self._loop.call_soon(done, unknown_handler(name, self._by_name))
            return NothingRan()
        return executor.start(attempt, done)

    async def close(self, seconds: float = 0.0) -> None:
        """Close them all, at the same time."""
        executors: Iterable[Executor] = {id(each): each for each in self._all()}.values()
        await asyncio.gather(*(each.close(seconds) for each in executors))

    def _all(self) -> list[Executor]:
        return [*self._by_name.values(), *([] if self._rest is None else [self._rest])]
