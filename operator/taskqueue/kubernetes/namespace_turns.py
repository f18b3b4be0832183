"""Shares what the operator does on behalf of namespaces: they take turns, and none takes all.

Contract:

* What waits, waits in its namespace's own queue. Whenever there is room, the namespace whose turn
  it is gets it, and goes to the end: however much of one waits, another has its turn after one of
  each.
* One namespace has at most three quarters of the room, so that slow requests of one leave some.
* Room is never kept free from a namespace below that bound while something of it waits.

What is written as status has an order of its own (`taskqueue.kubernetes.write_turns`), and so have
repeated reads (`taskqueue.controller.tasks.read_queue`).
"""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Generic, TypeVar

T = TypeVar("T")


def namespace_of(path: str) -> str:
    """Return the namespace that a path of the API server is in; "": none."""
    return path.partition("/namespaces/")[2].partition("/")[0]


class NamespaceTurns(Generic[T]):
    """A queue for each namespace, served in turn."""

    def __init__(self) -> None:
        self._waiting: OrderedDict[str, deque[T]] = OrderedDict()

    def __len__(self) -> int:
        """Return how much waits in all namespaces."""
        return sum(map(len, self._waiting.values()))

    def __iter__(self) -> Iterator[str]:
        """Iterate over the namespaces in which something waits, in the order of their turns."""
        return iter(self._waiting)

    def add(self, namespace: str, item: T) -> None:
        """Let something wait behind what waits in its namespace."""
        self._waiting.setdefault(namespace, deque()).append(item)

    def pop(self, may: Callable[[str], bool] = lambda namespace: True) -> tuple[str, T] | None:
        """Return the first of the first namespace that may have its turn, and that namespace."""
        namespace = next(filter(may, self._waiting), None)
        if namespace is None:
            return None
        items = self._waiting.pop(namespace)
        item = items.popleft()
        if items:
            self._waiting[namespace] = items
        return namespace, item


class RequestGate:
    """Lets some requests be under way at once, by namespaces in turn.

    Args:
        at_once: requests under way in all namespaces.
    """

    def __init__(self, at_once: int) -> None:
        self._room = at_once
        self._most = at_once - at_once // 4
        self._under_way: Counter[str] = Counter()
        self._waiting: NamespaceTurns[asyncio.Future[None]] = NamespaceTurns()

    @asynccontextmanager
    async def turn(self, namespace: str) -> AsyncIterator[None]:
        """Wait for the turn of a request on behalf of a namespace, and count it while it lasts."""
        turn = asyncio.get_running_loop().create_future()
        self._waiting.add(namespace, turn)
        self._admit()
        try:
            await turn
            yield
        finally:
            if not turn.cancelled():  # its turn had come
                self._room += 1
                self._under_way[namespace] -= 1
                self._under_way += Counter()  # drops what is zero
                self._admit()

    def _admit(self) -> None:
        while self._room and (found := self._waiting.pop(self._has_room)) is not None:
            namespace, turn = found
            if not turn.cancelled():
                self._room -= 1
                self._under_way[namespace] += 1
                turn.set_result(None)

    def _has_room(self, namespace: str) -> bool:
        return self._under_way[namespace] < self._most
