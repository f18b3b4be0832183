"""A thread with an event loop, for the sync clients: they are the async ones, run there."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import suppress
from typing import Any, TypeVar

T = TypeVar("T")


class LoopThread:
    """Runs coroutines from any other thread; the thread is made by the first one.

    A daemon: a program that forgets to close its client still ends.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._guard = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._process = os.getpid()
        self._closed = False

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run it and return what it returns; it is cancelled if the caller is interrupted.

        Raises:
            RuntimeError: closed, or made by the process this one was forked from.
        """
        try:
            loop = self._running()
        except RuntimeError:
            coroutine.close()
            raise
        future = asyncio.run_coroutine_threadsafe(coroutine, loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def iterate(self, items: AsyncIterator[T]) -> Iterator[T]:
        """Yield what an async generator yields, and close it with this one."""

        async def following() -> tuple[T] | None:
            try:
                return (await anext(items),)
            except StopAsyncIteration:  # must not be raised out of a coroutine
                return None

        try:
            while (item := self.run(following())) is not None:
                yield item[0]
        finally:
            close = getattr(items, "aclose", None)
            if close is not None:
                with suppress(RuntimeError):  # the client was closed meanwhile
                    self.run(close())

    def finish(self, last: Coroutine[Any, Any, None]) -> None:
        """Run a last coroutine if any was run, cancel what else runs, and end the thread."""
        with self._guard:
            self._closed = True
            loop, thread = self._loop, self._thread
        if loop is None or thread is None or self._process != os.getpid():
            last.close()
            return
        try:
            asyncio.run_coroutine_threadsafe(last, loop).result()
        finally:
            loop.call_soon_threadsafe(loop.stop)
            thread.join()

    def _running(self) -> asyncio.AbstractEventLoop:
        if self._process != os.getpid():
            raise RuntimeError(
                f"this {self._name} was made by the process this one was forked from: make one in "
                "each process, in a worker by a function marked with @on_start"
            )
        with self._guard:
            if self._closed:
                raise RuntimeError(f"this {self._name} is closed: make another")
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(
                    target=_serve, args=(self._loop,), name=self._name, daemon=True
                )
                self._thread.start()
            return self._loop


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
        remaining = asyncio.all_tasks(loop)
        for task in remaining:
            task.cancel()
        if remaining:
            loop.run_until_complete(asyncio.wait(remaining))
        loop.run_until_complete(loop.shutdown_asyncgens())
    finally:
        loop.close()
