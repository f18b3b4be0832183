"""A broker's exchanges, queues and bindings, as the declaring side of `Channel` uses them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

from taskqueue.amqp.channel import ChannelRefused, QueueCounts
from taskqueue.amqp.connection import Connection
from taskqueue.contract.topology import Binding, Exchange, ExchangeBinding, Part, Queue


class BindingTable:
    """Takes the place of a connection, and answers which queues a message reaches.

    Attributes:
        exchanges: that exist.
        queues: that exist.
        bindings: (queue, exchange, key)
        exchange_bindings: (destination, source, key)
        on_change: called after each change.
    """

    def __init__(self) -> None:
        self.exchanges: set[str] = set()
        self.queues: set[str] = set()
        self.bindings: set[tuple[str, str, str]] = set()
        self.exchange_bindings: set[tuple[str, str, str]] = set()
        self.on_change: Callable[[], None] = lambda: None

    @property
    def connection(self) -> Connection:
        return cast(Connection, self)

    async def channel(self) -> _Channel:
        return _Channel(self)

    def delete(self, part: Part) -> None:
        """Delete a part of the topology and what goes with it, as somebody does by hand."""
        match part:
            case Exchange(name):
                self.exchanges.discard(name)
                self.bindings = {one for one in self.bindings if one[1] != name}
                self.exchange_bindings = {
                    one for one in self.exchange_bindings if name not in one[:2]
                }
            case Queue(name):
                self.delete_queue(name)
            case Binding(queue, exchange, key):
                self.bindings.discard((queue, exchange, key))
            case ExchangeBinding(destination, source, key):
                self.exchange_bindings.discard((destination, source, key))

    def delete_queue(self, name: str) -> None:
        self.queues.discard(name)
        self.bindings = {one for one in self.bindings if one[0] != name}

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
        self._open = True

    async def declare_exchange(self, name: str, *, passive: bool = False) -> None:
        if passive:
            self._require_exchange(name)
        self._table.exchanges.add(name)

    async def bind_exchange(self, destination: str, source: str, key: str) -> None:
        self._require_exchange(destination)
        self._require_exchange(source)
        self._table.exchange_bindings.add((destination, source, key))

    async def count_queue(self, name: str) -> QueueCounts:
        self._require(name)
        return QueueCounts(0, 0)

    async def declare_queue(self, name: str, *, arguments: Mapping[str, Any]) -> int:
        self._table.queues.add(name)
        self._table.on_change()
        return 0

    async def bind_queue(self, queue: str, exchange: str, key: str) -> None:
        self._require(queue)
        self._require_exchange(exchange)
        self._table.bindings.add((queue, exchange, key))
        self._table.on_change()

    async def unbind_queue(self, queue: str, exchange: str, key: str) -> None:
        self._require(queue)
        self._table.bindings.discard((queue, exchange, key))
        self._table.on_change()

    async def delete_queue(self, queue: str) -> int:
        self._table.delete_queue(queue)
        self._table.on_change()
        return 0

    async def close(self) -> None: ...

    def _require(self, queue: str) -> None:
        self._check(queue in self._table.queues, f"no queue '{queue}'")

    def _require_exchange(self, exchange: str) -> None:
        self._check(exchange in self._table.exchanges, f"no exchange '{exchange}'")

    def _check(self, found: bool, problem: str) -> None:
        assert self._open, "the broker has closed this channel"
        self._open = found
        if not found:
            raise ChannelRefused(404, f"NOT_FOUND - {problem} in vhost '/'")


def _fits(pattern: list[str], words: list[str]) -> bool:
    """Return whether a topic exchange routes the words to the pattern."""
    if not pattern:
        return not words
    if pattern[0] == "#":
        return any(_fits(pattern[1:], words[skipped:]) for skipped in range(len(words) + 1))
    return bool(words) and pattern[0] in ("*", words[0]) and _fits(pattern[1:], words[1:])
