"""Decides which status is written next: of which kind, and of which namespace.

Knows neither clock nor client. `taskqueue.kubernetes.status_updater` has the contract.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

#: After this many urgent writes in a row one that is not urgent has its turn.
URGENT_IN_A_ROW = 15
#: Objects of a namespace that fail for the first time, with no write answered in between, until the
#: namespace is held up.
NAMESPACE_FAILURES = 5
#: So many of a namespace that wait because writes fail are enough: outcomes of workers wait with
#: them, and the inbox that all namespaces share holds a few thousand.
CLOGGED = 250


@dataclass(slots=True, eq=False)
class PendingStatus:
    """An object with a status to write: in one of its namespace's queues, in flight, or paused.

    Attributes:
        callbacks: of the statuses that are in no request yet.
        failures: in a row.
        is_risky: the write in flight has one of the few places of what failed before.
        timer: until its pause is over.
    """

    path: str
    namespace: PendingNamespace
    body: bytes = b""
    urgent: bool = False
    callbacks: list[Callable[[Any], None]] = field(default_factory=list)
    failures: int = 0
    is_risky: bool = False
    timer: asyncio.TimerHandle | None = None


_Queue = OrderedDict[str, PendingStatus]


@dataclass(slots=True, eq=False)
class PendingNamespace:
    """What waits in a namespace, by path, and whether the namespace is held up.

    Attributes:
        retries: those whose pause is over.
        objects: how many of its objects are pending, wherever they are.
        failing: of these, how many failed the last time.
        failures: in a row: of objects that had not failed before, and of probes.
        probe: the one write it has while it is held up.
        timer: until the next of these.
    """

    name: str
    urgent: _Queue = field(default_factory=OrderedDict)
    normal: _Queue = field(default_factory=OrderedDict)
    retries: _Queue = field(default_factory=OrderedDict)
    objects: int = 0
    failing: int = 0
    failures: int = 0
    probe: PendingStatus | None = None
    timer: asyncio.TimerHandle | None = None

    @property
    def is_held_up(self) -> bool:
        """Whether so many of its objects failed that it has one write at a time."""
        return self.failures >= NAMESPACE_FAILURES

    @property
    def is_clogged(self) -> bool:
        """Whether many of its objects wait because writes fail."""
        return (self.objects if self.is_held_up else self.failing) >= CLOGGED


_Namespaces = OrderedDict[str, PendingNamespace]


class WriteTurns:
    """Gives the namespaces turns, for each kind of write apart.

    Args:
        most_risky: writes at once of what failed before.
    """

    def __init__(self, most_risky: int) -> None:
        self._most_risky = most_risky
        self._risky = 0
        self._urgent_in_a_row = 0
        # The namespaces with something to write, in the order of their turns.
        self._urgent: _Namespaces = OrderedDict()
        self._normal: _Namespaces = OrderedDict()
        self._risks: _Namespaces = OrderedDict()

    def __bool__(self) -> bool:
        return bool(self._urgent or self._normal or self._risks)

    def update(self, one: PendingNamespace) -> None:
        """Give a namespace turns for what it may write now; call it when that has changed."""
        urgent, normal, risk = bool(one.urgent), bool(one.normal), bool(one.retries)
        if one.is_held_up:
            risk = (urgent or normal or risk) and one.probe is None and one.timer is None
            urgent = normal = False
        for turns, has_turn in (
            (self._urgent, urgent),
            (self._normal, normal),
            (self._risks, risk),
        ):
            if has_turn:
                turns.setdefault(one.name, one)
            else:
                turns.pop(one.name, None)

    def pop(self) -> PendingStatus | None:
        """Return what is to be written now; None: nothing."""
        if self._risks and self._risky < self._most_risky:
            return self._pop_risk()
        fair = self._normal and self._urgent_in_a_row >= URGENT_IN_A_ROW
        if self._urgent and not fair:
            self._urgent_in_a_row += 1
            _, namespace = self._urgent.popitem(last=False)
            _, pending = namespace.urgent.popitem(last=False)
        elif self._normal:
            self._urgent_in_a_row = 0
            _, namespace = self._normal.popitem(last=False)
            _, pending = namespace.normal.popitem(last=False)
        else:
            return None
        self.update(namespace)
        return pending

    def on_ended(self, pending: PendingStatus) -> None:
        """Take note that a write is not in flight any more."""
        self._risky -= pending.is_risky
        pending.is_risky = False

    def _pop_risk(self) -> PendingStatus:
        _, one = self._risks.popitem(last=False)
        if one.is_held_up:
            # What has not failed before says more of the namespace.
            _, pending = (one.urgent or one.normal or one.retries).popitem(last=False)
            one.probe = pending
        else:
            _, pending = one.retries.popitem(last=False)
        pending.is_risky = True
        self._risky += 1
        self.update(one)
        return pending
