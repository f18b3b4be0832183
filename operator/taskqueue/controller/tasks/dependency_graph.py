"""The dependsOn graph: Tasks by name, and what is known of each.

Only unfinished Tasks have dependencies here, and a finished Task is kept only while another waits
for it, so the graph is as large as what still waits. It does no I/O: `unknown` yields the names the
caller has to read.
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
    """The state of a Task's dependencies.

    Attributes:
        missing: names of Tasks that do not exist.
        waiting: names of Tasks that are not finished, or not read yet.
        failed: (name, how) of one that can never be Complete.
        cycle: the names of a cycle the Task is in, the first repeated at the end.
        completed: when the last one became Complete; None: not all are, or there are none.
    """

    missing: tuple[str, ...] = ()
    waiting: tuple[str, ...] = ()
    failed: tuple[str, str] | None = None
    cycle: tuple[str, ...] = ()
    completed: float | None = None


#: The state of a Task without dependencies.
INDEPENDENT = DependencyState()


class _Cycle:
    """A cycle of unfinished Tasks; its members share one object."""

    __slots__ = ("members", "names")

    def __init__(self, members: tuple[TaskKey, ...]) -> None:
        self.members = members
        self.names = (*(name for _, name in members), members[0][1])


class DependencyGraph:
    """The graph of dependencies. Its methods return the Tasks whose state may have changed."""

    def __init__(self) -> None:
        #: The dependencies of each Task that has some. Changed only here, as is the next.
        self.needs: dict[TaskKey, tuple[TaskKey, ...]] = {}
        #: The Tasks that depend on a Task, if any do.
        self.dependents: dict[TaskKey, set[TaskKey]] = {}
        self._endings: dict[TaskKey, Ending] = {}
        #: Unfinished Tasks that others wait for.
        self._present: set[TaskKey] = set()
        self._missing: set[TaskKey] = set()
        self._cycles: dict[TaskKey, list[_Cycle]] = {}
        #: Members of a broken cycle, not yet checked for another cycle.
        self._doubtful: set[TaskKey] = set()

    def set_dependencies(self, key: TaskKey, depends_on: Iterable[str]) -> set[TaskKey]:
        """Replace the dependencies of an unfinished Task."""
        changed = {key} | self._unlink(key)
        needs = tuple((key[0], name) for name in depends_on)
        if needs:
            self.needs[key] = needs
        for need in needs:
            self.dependents.setdefault(need, set()).add(key)
        return changed | self._mark_cycle(key)

    def mark_unfinished(self, key: TaskKey) -> set[TaskKey]:
        """Mark a Task as existing and unfinished."""
        return self._record(key, present=True)

    def mark_missing(self, key: TaskKey) -> set[TaskKey]:
        """Mark a Task as missing."""
        return self._record(key, missing=True)

    def mark_finished(self, key: TaskKey, ending: Ending) -> set[TaskKey]:
        """Mark a Task as finished."""
        return self._unlink(key) | self._record(key, ending=ending)

    def mark_deleted(self, key: TaskKey) -> set[TaskKey]:
        """Mark an unfinished Task as deleted."""
        return self._unlink(key) | self._record(key, missing=True)

    def unknown(self) -> Iterator[TaskKey]:
        """Yield the dependencies nothing is known of."""
        for key in self.dependents:
            if key not in self._endings and key not in self._present and key not in self._missing:
                yield key

    def missing(self) -> Iterator[TaskKey]:
        """Yield the dependencies that do not exist, as far as known."""
        yield from self._missing

    def present(self) -> Iterator[TaskKey]:
        """Yield the dependencies that are not finished, as far as known."""
        yield from self._present

    def state(self, key: TaskKey) -> DependencyState:
        """Return the state of a Task's dependencies."""
        needs = self.needs.get(key)
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

    def _record(
        self,
        key: TaskKey,
        *,
        present: bool = False,
        missing: bool = False,
        ending: Ending | None = None,
    ) -> set[TaskKey]:
        dependents = self.dependents.get(key)
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
        """Remove the dependencies and cycles of a Task; return the cycles' other members."""
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
        for need in self.needs.pop(key, ()):
            dependents = self.dependents[need]
            dependents.discard(key)
            if not dependents:
                del self.dependents[need]
                self._endings.pop(need, None)
                self._present.discard(need)
                self._missing.discard(need)
        return others

    def _cycle(self, key: TaskKey) -> tuple[str, ...]:
        """Return the names of a cycle the Task is in, or nothing."""
        if key in self._doubtful:
            self._doubtful.discard(key)
            if key not in self._cycles:
                self._mark_cycle(key)
        cycles = self._cycles.get(key)
        return cycles[0].names if cycles else ()

    def _mark_cycle(self, key: TaskKey) -> set[TaskKey]:
        """Find a cycle through the Task and record it; return its members."""
        members = self._find_cycle(key)
        if members:
            cycle = _Cycle(members)
            for member in members:
                self._cycles.setdefault(member, []).append(cycle)
        return set(members)

    def _find_cycle(self, start: TaskKey) -> tuple[TaskKey, ...]:
        """Return the Tasks of a cycle through ``start``, in order, or nothing."""
        if start not in self.dependents:
            return ()  # nothing depends on it: the usual case, without a walk
        came_from: dict[TaskKey, TaskKey] = {}
        stack = [start]
        while stack:
            here = stack.pop()
            for need in self.needs.get(here, ()):
                if need == start:
                    path = [here]
                    while path[-1] != start:
                        path.append(came_from[path[-1]])
                    return tuple(reversed(path))
                if need not in came_from:
                    came_from[need] = here
                    stack.append(need)
        return ()
