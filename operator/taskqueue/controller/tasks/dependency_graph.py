"""The dependsOn graph: Tasks by name, and what is known of each.

Only unfinished Tasks have dependencies here, and a finished Task is kept only while another waits
for it, so the graph is as large as what still waits. It does no I/O.

Cycles are looked for apart from the changes, because a look at each change would cost the square of
what a start brings: `find_cycles` goes through all of the graph, once for many changes, in time
that is linear in its edges. A Task in a cycle waits until then, as it would without the cycle.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from taskqueue.model.task import DependencyWhen

#: (namespace, name) of a Task.
TaskKey = tuple[str, str]

#: Edges that `find_cycles` goes along between two of its pauses: some milliseconds.
_EDGES_AT_ONCE = 5_000
#: A tuple of as many keys is smaller than a set of them.
_FEW = 8


@dataclass(frozen=True, slots=True)
class Ending:
    """How a finished Task ended: reason is "" when it is Complete; it may be neither of both."""

    complete: bool
    reason: str
    completed: float
    failed: bool = False

    def meets(self, when: DependencyWhen) -> bool:
        """Return whether that is how it was to end."""
        if when is DependencyWhen.SUCCEEDED:
            return self.complete
        return self.failed or when is DependencyWhen.FINISHED


@dataclass(frozen=True, slots=True, kw_only=True)
class DependencyState:
    """The state of a Task's dependencies.

    Attributes:
        missing: names of Tasks that do not exist.
        waiting: names of Tasks that are not finished, or not read yet.
        failed: (name, how) of one that can never be Complete, and must be.
        unmet: (name, how) of one that has ended otherwise than it was to end.
        cycle: the names of a cycle the Task is in, the first repeated at the end.
        completed: when the last one ended as it should; None: not all have, or there are none.
    """

    missing: tuple[str, ...] = ()
    waiting: tuple[str, ...] = ()
    failed: tuple[str, str] | None = None
    unmet: tuple[str, str] | None = None
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
        #: The names of the dependencies of each Task that has some. Changed only here, as is the
        #: next.
        self.needs: dict[TaskKey, tuple[str, ...]] = {}
        #: The Tasks that depend on a Task, if any do.
        self.dependents: dict[TaskKey, tuple[TaskKey, ...] | set[TaskKey]] = {}
        #: How dependencies must end that need not be Complete.
        self._whens: dict[TaskKey, Mapping[str, DependencyWhen]] = {}
        self._endings: dict[TaskKey, Ending] = {}
        #: Unfinished Tasks that others wait for.
        self._present: set[TaskKey] = set()
        self._missing: set[TaskKey] = set()
        #: The cycles that were found: one at most of each Task.
        self._cycles: dict[TaskKey, _Cycle] = {}
        #: Whether there may be a cycle that was not found.
        self.is_doubtful = False

    def set_dependencies(
        self,
        key: TaskKey,
        depends_on: tuple[str, ...],
        whens: tuple[tuple[str, DependencyWhen], ...] = (),
    ) -> set[TaskKey]:
        """Replace the dependencies of an unfinished Task."""
        changed = {key} | self._unlink(key)
        if depends_on:
            self.needs[key] = depends_on
        if whens:
            self._whens[key] = dict(whens)
        for name in depends_on:
            self._link((key[0], name), key)
        if depends_on and key in self.dependents:
            self.is_doubtful = True  # else, as usual, nothing leads back to it
        return changed

    def mark_unfinished(self, key: TaskKey) -> set[TaskKey]:
        """Mark a Task as existing and unfinished."""
        if key in self._missing or key in self._endings:
            return self._record(key, present=True)
        if key in self.dependents:
            self._present.add(key)  # to those that depend on it this is the same as not known
        return set()

    def mark_missing(self, key: TaskKey) -> set[TaskKey]:
        """Mark a Task as missing."""
        return set() if key in self._missing else self._record(key, missing=True)

    def mark_finished(self, key: TaskKey, ending: Ending) -> set[TaskKey]:
        """Mark a Task as finished."""
        return self._unlink(key) | self._record(key, ending=ending)

    def mark_deleted(self, key: TaskKey) -> set[TaskKey]:
        """Mark an unfinished Task as deleted."""
        return self._unlink(key) | self._record(key, missing=True)

    def is_unknown(self, key: TaskKey) -> bool:
        """Return whether a Task is a dependency, and nothing is known of it."""
        known = key in self._present or key in self._missing or key in self._endings
        return not known and key in self.dependents

    def present(self) -> Iterable[TaskKey]:
        """Return the dependencies that are not finished, as far as known."""
        return self._present

    def state(self, key: TaskKey) -> DependencyState:
        """Return the state of a Task's dependencies."""
        names = self.needs.get(key)
        if names is None:
            return INDEPENDENT
        missing: list[str] = []
        waiting: list[str] = []
        times: list[float] = []
        failed = unmet = None
        whens = self._whens.get(key, {})
        for name in names:
            need = (key[0], name)
            ending = self._endings.get(need)
            when = whens.get(name, DependencyWhen.SUCCEEDED)
            if ending is None:
                (missing if need in self._missing else waiting).append(name)
            elif ending.meets(when):
                times.append(ending.completed)
            elif when is DependencyWhen.SUCCEEDED:
                failed = failed or (name, ending.reason)
            else:
                unmet = unmet or (name, ending.reason or "has Succeeded")
        cycle = self._cycles.get(key)
        return DependencyState(
            missing=tuple(missing),
            waiting=tuple(waiting),
            failed=failed,
            unmet=unmet,
            cycle=cycle.names if cycle is not None else (),
            completed=max(times) if len(times) == len(names) else None,
        )

    def find_cycles(self) -> Iterator[set[TaskKey]]:
        """Look for cycles; `is_doubtful` is False when that is done.

        The graph may change between two steps. A cycle that is there all the time is found.

        Yields:
            After each few milliseconds, the members of the cycles that were found since.
        """
        self.is_doubtful = False
        tangled: dict[TaskKey, int] = {}
        for _ in self._peel(tangled):
            yield set()
        found: set[TaskKey] = set()
        for cycle in self._circles(tangled):
            if cycle is not None and self._is_there(cycle):
                record = _Cycle(cycle)
                self._cycles.update(dict.fromkeys(cycle, record))
                found.update(cycle)
            elif cycle is None:
                yield found
                found = set()
        yield found

    def _peel(self, waits_for: dict[TaskKey, int]) -> Iterator[None]:
        """Leave the Tasks that are in cycles, or depend on some that are.

        Taken away is, again and again, what depends on nothing that is left. Of a cycle, each waits
        for the next, so none is: whatever becomes of the rest of the graph meanwhile.

        Args:
            waits_for: empty; filled with what is left, and how many others each waits for.
        """
        edges = 0
        for key in list(self.needs):
            names = self.needs.get(key, ())
            waits_for[key] = sum((key[0], name) in self.needs for name in names)
            edges += len(names) + 1
            if edges >= _EDGES_AT_ONCE:
                edges = 0
                yield
        free = [key for key, count in waits_for.items() if not count]
        while free:
            key = free.pop()
            del waits_for[key]
            dependents = self.dependents.get(key, ())
            for dependent in dependents:
                if dependent in waits_for:
                    waits_for[dependent] -= 1
                    if not waits_for[dependent]:
                        free.append(dependent)
            edges += len(dependents) + 1
            if edges >= _EDGES_AT_ONCE:
                edges = 0
                yield

    def _circles(self, tangled: dict[TaskKey, int]) -> Iterator[tuple[TaskKey, ...] | None]:
        """Yield cycles among these Tasks that share none, and None after some milliseconds."""
        edges = 0
        done: set[TaskKey] = set()
        for start in tangled:
            path: list[TaskKey] = []
            places: dict[TaskKey, int] = {}
            left: list[Iterator[str]] = []  # of the dependencies of each in the path
            here: TaskKey | None = start
            while here is not None:
                if here in places:
                    place = places[here]
                    cycle = tuple(path[place:])
                    del path[place:], left[place:]
                    for key in cycle:
                        del places[key]
                    yield cycle
                elif here in tangled and here not in done and here not in self._cycles:
                    places[here] = len(path)
                    path.append(here)
                    left.append(iter(self.needs.get(here, ())))
                here = None
                while path and here is None:
                    name = next(left[-1], None)
                    if name is not None:
                        here = (path[-1][0], name)
                    else:
                        left.pop()
                        done.add(path[-1])
                        del places[path.pop()]
                    edges += 1
                    if edges >= _EDGES_AT_ONCE:
                        edges = 0
                        yield None

    def _is_there(self, cycle: tuple[TaskKey, ...]) -> bool:
        """Return whether these still depend on each other in turn, and are in no other cycle."""
        following = (*cycle[1:], cycle[0])
        return all(
            need[1] in self.needs.get(key, ()) and key not in self._cycles
            for key, need in zip(cycle, following, strict=True)
        )

    def _link(self, need: TaskKey, key: TaskKey) -> None:
        others = self.dependents.get(need, ())
        if isinstance(others, set):
            others.add(key)
        elif key not in others:
            self.dependents[need] = (*others, key) if len(others) < _FEW else {*others, key}

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
        """Remove the dependencies and the cycle of a Task; return the cycle's other members."""
        self._whens.pop(key, None)
        for name in self.needs.pop(key, ()):
            self._unlink_from((key[0], name), key)
        cycle = self._cycles.get(key)
        if cycle is None:
            return set()
        for member in cycle.members:
            del self._cycles[member]
        self.is_doubtful = True  # there may be another, through some of them
        return set(cycle.members) - {key}

    def _unlink_from(self, need: TaskKey, key: TaskKey) -> None:
        others = self.dependents[need]
        if isinstance(others, set):
            others.discard(key)
        else:
            others = self.dependents[need] = tuple(one for one in others if one != key)
        if not others:
            del self.dependents[need]
            self._endings.pop(need, None)
            self._present.discard(need)
            self._missing.discard(need)
