"""Which Tasks wait for which: dependsOn as a graph of names, with what is known of each.

Only unfinished Tasks have dependencies here, and only what somebody waits for is remembered of a
finished one, so the graph is as large as what still waits. Nothing is asked here: `unknown` tells
which names somebody has to look up.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

#: (namespace, name) of a Task.
TaskKey = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Ending:
    """How a finished Task ended: reason is "" when it is Complete."""

    complete: bool
    reason: str
    completed: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DependencyState:
    """What keeps a Task from running, as far as its dependencies go.

    Attributes:
        missing: names of Tasks that do not exist.
        waiting: names of Tasks that are not finished, or not looked up yet.
        failed: (name, how) of one that can never be Complete.
        cycle: the names of a cycle the Task is in, the first repeated at the end.
        completed: when the last one became Complete; None: not all are, or there are none.
    """

    missing: tuple[str, ...] = ()
    waiting: tuple[str, ...] = ()
    failed: tuple[str, str] | None = None
    cycle: tuple[str, ...] = ()
    completed: float | None = None


#: Of the many Tasks that depend on nothing.
INDEPENDENT = DependencyState()


class _Cycle:
    """Unfinished Tasks that wait for each other in a circle; one object for all its members."""

    __slots__ = ("members", "names")

    def __init__(self, members: tuple[TaskKey, ...]) -> None:
        self.members = members
        self.names = (*(name for _, name in members), members[0][1])


class DependencyGraph:
    """See the module's contract. What it returns are the Tasks whose state may have changed."""

    def __init__(self) -> None:
        self._needs: dict[TaskKey, tuple[TaskKey, ...]] = {}
        self._dependents: dict[TaskKey, set[TaskKey]] = {}
        self._endings: dict[TaskKey, Ending] = {}
        #: Somebody waits for them, and they exist unfinished.
        self._present: set[TaskKey] = set()
        self._missing: set[TaskKey] = set()
        self._cycles: dict[TaskKey, list[_Cycle]] = {}
        #: A cycle they were in is broken; they may be in another that nobody has looked for.
        self._doubtful: set[TaskKey] = set()

    def put(self, key: TaskKey, depends_on: Iterable[str]) -> set[TaskKey]:
        """Take what an unfinished Task depends on, instead of what it did before."""
        changed = {key} | self._unlink(key)
        needs = tuple((key[0], name) for name in depends_on)
        if needs:
            self._needs[key] = needs
        for need in needs:
            self._dependents.setdefault(need, set()).add(key)
        return changed | self._mark(key)

    def exists(self, key: TaskKey) -> set[TaskKey]:
        """Take note that a Task of this name exists and is not finished."""
        return self._learn(key, present=True)

    def absent(self, key: TaskKey) -> set[TaskKey]:
        """Take note that there is no Task of this name."""
        return self._learn(key, missing=True)

    def ended(self, key: TaskKey, ending: Ending) -> set[TaskKey]:
        """Take note of how a Task ended."""
        return self._unlink(key) | self._learn(key, ending=ending)

    def gone(self, key: TaskKey) -> set[TaskKey]:
        """Take note that an unfinished Task was deleted."""
        return self._unlink(key) | self._learn(key, missing=True)

    def unknown(self) -> Iterator[TaskKey]:
        """Yield what somebody waits for and nothing is known of."""
        for key in self._dependents:
            if key not in self._endings and key not in self._present and key not in self._missing:
                yield key

    def missing(self) -> Iterator[TaskKey]:
        """Yield what somebody waits for and does not exist, as far as known."""
        yield from self._missing

    def present(self) -> Iterator[TaskKey]:
        """Yield what somebody waits for and is not finished, as far as known."""
        yield from self._present

    def needed(self, key: TaskKey) -> bool:
        """Tell whether an unfinished Task depends on this one."""
        return key in self._dependents

    def state(self, key: TaskKey) -> DependencyState:
        """Return what is known about the dependencies of a Task."""
        needs = self._needs.get(key)
        if needs is None:
            return INDEPENDENT
        missing: list[str] = []
        waiting: list[str] = []
        times: list[float] = []
        failed: tuple[str, str] | None = None
        for need in needs:
            ending = self._endings.get(need)
            if ending is None:
                (missing if need in self._missing else waiting).append(need[1])
            elif ending.complete:
                times.append(ending.completed)
            elif failed is None:
                failed = (need[1], ending.reason)
        return DependencyState(
            missing=tuple(missing),
            waiting=tuple(waiting),
            failed=failed,
            cycle=self._cycle(key),
            completed=max(times) if len(times) == len(needs) else None,
        )

    def _learn(
        self,
        key: TaskKey,
        *,
        present: bool = False,
        missing: bool = False,
        ending: Ending | None = None,
    ) -> set[TaskKey]:
        dependents = self._dependents.get(key)
        if dependents is None:
            return set()
        (self._present.add if present else self._present.discard)(key)
        (self._missing.add if missing else self._missing.discard)(key)
        if ending is None:
            self._endings.pop(key, None)
        else:
            self._endings[key] = ending
        return set(dependents)

    def _unlink(self, key: TaskKey) -> set[TaskKey]:
        """Forget what a Task depends on; a circle it was in is none any more."""
        self._doubtful.discard(key)
        others: set[TaskKey] = set()
        for cycle in self._cycles.pop(key, ()):
            for member in cycle.members:
                if member != key:
                    theirs = self._cycles[member]
                    theirs.remove(cycle)
                    if not theirs:
                        del self._cycles[member]
                    others.add(member)
        self._doubtful |= others
        for need in self._needs.pop(key, ()):
            dependents = self._dependents[need]
            dependents.discard(key)
            if not dependents:
                del self._dependents[need]
                self._endings.pop(need, None)
                self._present.discard(need)
                self._missing.discard(need)
        return others

    def _cycle(self, key: TaskKey) -> tuple[str, ...]:
        """Return the names of a circle the Task is in, or nothing."""
        if key in self._doubtful:
            self._doubtful.discard(key)
            if key not in self._cycles:
                self._mark(key)
        cycles = self._cycles.get(key)
        return cycles[0].names if cycles else ()

    def _mark(self, key: TaskKey) -> set[TaskKey]:
        """Look for a circle the Task is in; return its members."""
        members = self._find_cycle(key)
        if members:
            cycle = _Cycle(members)
            for member in members:
                self._cycles.setdefault(member, []).append(cycle)
        return set(members)

    def _find_cycle(self, start: TaskKey) -> tuple[TaskKey, ...]:
        """Return the Tasks of a cycle through ``start``, in order, or nothing."""
        if start not in self._dependents:
            return ()  # nobody depends on it: the usual case, and no walk
        came_from: dict[TaskKey, TaskKey] = {}
        stack = [start]
        while stack:
            here = stack.pop()
            for need in self._needs.get(here, ()):
                if need == start:
                    path = [here]
                    while path[-1] != start:
                        path.append(came_from[path[-1]])
                    return tuple(reversed(path))
                if need not in came_from:
                    came_from[need] = here
                    stack.append(need)
        return ()
