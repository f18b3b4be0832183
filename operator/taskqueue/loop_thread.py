"""A thread with an event loop, in which the sync clients run the async ones.

A caller that waits for the loop must not be the loop's own thread, nor run at the end of the
program, when that thread has stopped already. Both happen to what the garbage collector or the
interpreter's end closes: that is closed without waiting.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator
from concurrent.futures import CancelledError, Future
from typing import Any, TypeVar

T = TypeVar("T")


class LoopThread:
    """Runs coroutines from any other thread; the thread is made by the first one.

    A daemon: a program that forgets to close its client still ends.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        #: Taken again by what a garbage collector closes while it is held.
        self._guard = threading.RLock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._process = os.getpid()
        self._closed = False

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run it and return what it returns; it is cancelled if the caller is interrupted.

        Raises:
            RuntimeError: closed, before or meanwhile; or made by the process this one was forked
                from; or called by what runs here itself.
        """
        if self._cannot_wait:
            coroutine.close()
            raise RuntimeError(
                f"this {self._name} cannot be waited for by what runs in it, nor at a program's end"
            )
        future = self._submit(coroutine)
        try:
            return future.result()
        except CancelledError:
            raise RuntimeError(f"this {self._name} was closed meanwhile") from None
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
                self._close(close())

    def finish(self, last: Coroutine[Any, Any, None]) -> None:
        """Run a last coroutine if any was run, cancel what else runs, and end the thread.

        Idempotent; harmless in a process that was forked from this one.
        """
        if self._process != os.getpid():
            last.close()
            return
        with self._guard:
            again, self._closed = self._closed, True
            loop, thread = self._loop, self._thread
        if again or loop is None or thread is None:
            last.close()
            return
        future = asyncio.run_coroutine_threadsafe(last, loop)
        if self._cannot_wait:
            future.add_done_callback(lambda _: loop.call_soon_threadsafe(loop.stop))
            return
        try:
            future.result()
        finally:
            loop.call_soon_threadsafe(loop.stop)
            thread.join()

    @property
    def _cannot_wait(self) -> bool:
        return threading.current_thread() is self._thread or sys.is_finalizing()

    def _close(self, closing: Coroutine[Any, Any, None]) -> None:
        """Run what closes something; nothing is closed any more once the loop is."""
        try:
            future = self._submit(closing)
        except RuntimeError:
            return
        if not self._cannot_wait:
            try:
                future.result()
            except CancelledError:
                return

    def _submit(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        try:
            self._check_process()
            # Under the guard, or it could be given to a loop that has just been stopped.
            with self._guard:
                return asyncio.run_coroutine_threadsafe(coroutine, self._running())
        except RuntimeError:
            coroutine.close()
            raise

    def _check_process(self) -> None:
        # Before the guard: another thread may have held it when this process was forked.
        if self._process != os.getpid():
            raise RuntimeError(
                f"this {self._name} was made by the process this one was forked from: make one in "
                "each process, in a worker by a function marked with @on_start"
            )

    def _running(self) -> asyncio.AbstractEventLoop:
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
