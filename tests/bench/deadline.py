"""What a benchmark says when it cannot go on, and the limit on every wait."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

_POLL_SECONDS = 0.2


class BenchError(Exception):
    """The benchmark cannot give a figure; the text says why, and what to do about it."""


@asynccontextmanager
async def within(seconds: float, what: str) -> AsyncIterator[None]:
    """Give the block this many seconds.

    Raises:
        BenchError: it took longer; ``what`` says what was waited for.
    """
    try:
        async with asyncio.timeout(seconds) as limit:
            yield
    except TimeoutError:
        if not limit.expired():
            raise
        raise BenchError(f"{what}: not done after {seconds:g} s") from None


async def until(condition: Callable[[], Awaitable[bool]], *, seconds: float, what: str) -> None:
    """Poll until the condition holds.

    Raises:
        BenchError: it does not within these seconds.
    """
    async with within(seconds, what):
        while not await condition():  # noqa: ASYNC110 - the API server is polled
            await asyncio.sleep(_POLL_SECONDS)
