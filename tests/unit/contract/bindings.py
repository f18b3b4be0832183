"""A broker's exchanges, queues and bindings, as the declaring side of `Channel` uses them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

from taskqueue.amqp.channel import ChannelRefused
from taskqueue.amqp.connection import Connection


class BindingTable:
    """Takes the place of a connection, and answers which queues a message reaches.

    Attributes:
        queues: that exist.
        bindings: (queue, exchange, key)
        on_change: called after each change.
    """

    def __init__(self) -> None:
        self.queues: set[str] = set()
        self.bindings: set[tuple[str, str, str]] = set()
        self.on_change: Callable[[], None] = lambda: None

    @property
    def connection(self) -> Connection:
        return cast(Connection, self)

    async def channel(self) -> _Channel:
        return _Channel(self)

    def route(self, exchange: str, key: str) -> set[str]:
        """Return the queues that a message gets into: once each, whatever fits it."""
        words = key.split(".")
        return {
            queue
            for queue, source, pattern in self.bindings
            if source == exchange and _fits(pattern.split("."), words)
        }


class _Channel:
    def __init__(self, table: BindingTable) -> None:
        self._table = table

    async def declare_exchange(self, name: str, *, passive: bool = False) -> None: ...

    async def bind_exchange(self, destination: str, source: str, key: str) -> None: ...

    async def declare_queue(
        self, name: str, *, passive: bool = False, arguments: Mapping[str, Any] | None = None
    ) -> int:
        if passive:
            self._require(name)
        self._table.queues.add(name)
        self._table.on_change()
        return 0

    async def bind_queue(self, queue: str, exchange: str, key: str) -> None:
        self._require(queue)
        self._table.bindings.add((queue, exchange, key))
        self._table.on_change()

    async def unbind_queue(self, queue: str, exchange: str, key: str) -> None:
        self._require(queue)
        self._table.bindings.discard((queue, exchange, key))
        self._table.on_change()

    async def delete_queue(self, queue: str) -> int:
        self._table.queues.discard(queue)
        self._table.bindings = {one for one in self._table.bindings if one[0] != queue}
        self._table.on_change()
        return 0

    async def close(self) -> None: ...

    def _require(self, queue: str) -> None:
        if queue not in self._table.queues:
            raise ChannelRefused(404, f"NOT_FOUND - no queue '{queue}' in vhost '/'")


def _fits(pattern: list[str], words: list[str]) -> bool:
    """Return whether a topic exchange routes the words to the pattern."""
    if not pattern:
        return not words
    if pattern[0] == "#":
        return any(_fits(pattern[1:], words[skipped:]) for skipped in range(len(words) + 1))
    return bool(words) and pattern[0] in ("*", words[0]) and _fits(pattern[1:], words[1:])
