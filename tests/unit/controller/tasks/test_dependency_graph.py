"""The graph of dependsOn, against a model that knows everything and finds cycles by brute force."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from taskqueue.controller.tasks.dependency_graph import (
    INDEPENDENT,
    DependencyGraph,
    DependencyState,
    Ending,
    TaskKey,
)

COMPLETE = Ending(True, "", 5.0)
FAILED = Ending(False, "has Failed with reason Boom", 6.0)


def key(name: str) -> TaskKey:
    return ("shop", name)


def put(graph: DependencyGraph, name: str, *needs: str) -> set[str]:
    """As the engine does: a Task the feed shows exists, and depends on others."""
    graph.mark_unfinished(key(name))
    return {changed for _, changed in graph.set_dependencies(key(name), needs)}


def is_empty(graph: DependencyGraph) -> bool:
    return not any(vars(graph).values())


def test_an_unknown_dependency_is_waiting_and_to_be_read() -> None:
    graph = DependencyGraph()
    assert put(graph, "a", "b", "c") == {"a"}
    assert graph.state(key("a")) == DependencyState(waiting=("b", "c"))
    assert set(graph.unknown()) == {key("b"), key("c")}
    assert graph.mark_unfinished(key("b")) == {key("a")}
    assert graph.mark_missing(key("c")) == {key("a")}
    assert graph.state(key("a")) == DependencyState(waiting=("b",), missing=("c",))
    assert (list(graph.unknown()), list(graph.missing())) == ([], [key("c")])
    assert list(graph.present()) == [key("b")]


def test_all_complete_is_as_late_as_the_last() -> None:
    graph = DependencyGraph()
    put(graph, "a", "b", "c")
    assert graph.mark_finished(key("b"), Ending(True, "", 9.0)) == {key("a")}
    assert graph.state(key("a")) == DependencyState(waiting=("c",))
    graph.mark_finished(key("c"), Ending(True, "", 7.0))
    assert graph.state(key("a")) == DependencyState(completed=9.0)


def test_a_failed_dependency_has_its_reason() -> None:
    graph = DependencyGraph()
    put(graph, "a", "b", "c")
    graph.mark_finished(key("c"), FAILED)
    assert graph.state(key("a")).failed == ("c", FAILED.reason)
    assert graph.state(key("a")).completed is None


def test_a_dependency_deleted_unfinished_is_missing_and_may_come_again() -> None:
    graph = DependencyGraph()
    put(graph, "b")
    put(graph, "a", "b")
    graph.mark_unfinished(key("b"))
    assert graph.mark_deleted(key("b")) == {key("a")}
    assert graph.state(key("a")).missing == ("b",)
    assert graph.mark_unfinished(key("b")) == {key("a")}
    assert graph.state(key("a")) == DependencyState(waiting=("b",))


def test_a_diamond_opens_from_its_top_to_its_bottom() -> None:
    graph = DependencyGraph()
    put(graph, "bottom", "left", "right")
    put(graph, "left", "top")
    put(graph, "right", "top")
    put(graph, "top")
    assert graph.state(key("top")) is INDEPENDENT
    assert graph.mark_finished(key("top"), COMPLETE) == {key("left"), key("right")}
    graph.mark_finished(key("left"), COMPLETE)
    assert graph.state(key("bottom")) == DependencyState(waiting=("right",))
    assert graph.mark_finished(key("right"), COMPLETE) == {key("bottom")}
    assert graph.state(key("bottom")).completed == 5.0
    assert key("top") not in graph.dependents
    assert key("left") in graph.dependents
    graph.mark_finished(key("bottom"), COMPLETE)
    assert is_empty(graph)


def test_a_chain_of_ten_thousand_is_walked_without_recursion() -> None:
    graph = DependencyGraph()
    for number in range(10_000):
        put(graph, f"t{number}", f"t{number + 1}")
    assert graph.state(key("t0")).cycle == ()
    changed = put(graph, "t10000", "t0")
    assert len(changed) == 10_001
    cycle = graph.state(key("t5000")).cycle
    assert (len(cycle), cycle[0]) == (10_002, cycle[-1])


@pytest.mark.parametrize("order", ["abc", "bca", "cab", "cba"])
def test_a_cycle_is_found_by_whoever_closes_it(order: str) -> None:
    graph = DependencyGraph()
    needs = {"a": "b", "b": "c", "c": "a"}
    for name in order:
        changed = put(graph, name, needs[name])
    assert changed == {"a", "b", "c"}
    for name in "abc":
        cycle = graph.state(key(name)).cycle
        assert cycle[0] == cycle[-1]
        assert all(needs[one] == other for one, other in itertools.pairwise(cycle))
        assert set(cycle) == {"a", "b", "c"}


def test_a_task_beside_a_cycle_is_not_in_it() -> None:
    graph = DependencyGraph()
    put(graph, "beside", "a")
    put(graph, "a", "b")
    put(graph, "b", "a", "below")
    put(graph, "below")
    assert [name for name in ("beside", "below") if graph.state(key(name)).cycle] == []
    assert graph.state(key("a")).cycle


@pytest.mark.parametrize("how", ["edited", "deleted", "ended"])
def test_a_broken_cycle_ends_for_all_members(how: str) -> None:
    graph = DependencyGraph()
    put(graph, "a", "b")
    put(graph, "b", "c")
    put(graph, "c", "a")
    assert all(graph.state(key(name)).cycle for name in "abc")
    if how == "edited":
        changed = graph.set_dependencies(key("b"), ())
    elif how == "deleted":
        changed = graph.mark_deleted(key("b"))
    else:
        changed = graph.mark_finished(key("b"), FAILED)
    assert [graph.state(key(name)).cycle for name in "ac"] == [(), ()]
    assert {key("a"), key("c")} <= changed  # both may stand otherwise now


def test_namespaces_are_apart() -> None:
    graph = DependencyGraph()
    graph.set_dependencies(("x", "a"), ("b",))
    graph.set_dependencies(("y", "b"), ("a",))
    assert graph.mark_finished(("y", "b"), COMPLETE) == set()
    assert graph.state(("x", "a")) == DependencyState(waiting=("b",))


NAMES = "abcdef"
names = st.sampled_from(NAMES)


class Graph(RuleBasedStateMachine):
    """Tasks come, change, end and go in any order; the model remembers the dependencies."""

    def __init__(self) -> None:
        super().__init__()
        self.graph = DependencyGraph()
        self.needs: dict[str, tuple[str, ...]] = {}
        #: What was said last about a name: an Ending, "present" or "missing".
        self.said: dict[str, Ending | str] = {}

    def apply(self, name: str, what: Ending | str, changed: set[TaskKey]) -> None:
        waiting = {key(one) for one, needs in self.needs.items() if name in needs}
        assert waiting <= changed, f"{sorted(waiting)} must hear of {name}"
        if waiting:
            self.said[name] = what

    def forget(self) -> None:
        """Nothing is remembered of what nobody waits for."""
        needed = {need for needs in self.needs.values() for need in needs}
        self.said = {name: what for name, what in self.said.items() if name in needed}

    @rule(name=names, needs=st.lists(names, max_size=3, unique=True))
    def put(self, name: str, needs: list[str]) -> None:
        needs = [need for need in needs if need != name]  # refused at admission
        self.apply(name, "present", self.graph.mark_unfinished(key(name)))
        self.needs.pop(name, None)
        self.forget()
        changed = self.graph.set_dependencies(key(name), needs)
        if needs:
            self.needs[name] = tuple(needs)
        assert key(name) in changed
        cycle = self.graph.state(key(name)).cycle
        assert bool(cycle) == (name in self.reachable(name))
        assert {key(member) for member in cycle} <= changed, "every member must hear of it"

    @rule(name=names)
    def exists(self, name: str) -> None:
        self.apply(name, "present", self.graph.mark_unfinished(key(name)))

    @rule(name=names)
    def is_absent(self, name: str) -> None:
        if name not in self.needs:  # one that is there is not looked up
            self.apply(name, "missing", self.graph.mark_missing(key(name)))

    @rule(name=names, complete=st.booleans(), at=st.sampled_from([1.0, 2.0]))
    def ends(self, name: str, complete: bool, at: float) -> None:
        ending = Ending(complete, "" if complete else "has Failed", at)
        self.needs.pop(name, None)
        self.forget()
        self.apply(name, ending, self.graph.mark_finished(key(name), ending))

    @rule(name=names)
    def is_deleted(self, name: str) -> None:
        self.needs.pop(name, None)
        self.forget()
        self.apply(name, "missing", self.graph.mark_deleted(key(name)))

    @precondition(lambda self: self.needs)
    @rule()
    def everybody_goes(self) -> None:
        for name in list(self.needs):
            self.is_deleted(name)
        assert is_empty(self.graph), vars(self.graph)

    def reachable(self, start: str) -> set[str]:
        found: set[str] = set()
        todo = list(self.needs.get(start, ()))
        while todo:
            name = todo.pop()
            if name not in found:
                found.add(name)
                todo += self.needs.get(name, ())
        return found

    def cyclic(self) -> Iterator[str]:
        return (name for name in self.needs if name in self.reachable(name))

    @invariant()
    def who_needs_whom(self) -> None:
        for name in NAMES:
            needed = any(name in needs for needs in self.needs.values())
            assert (key(name) in self.graph.dependents) == needed
        unknown = {need for needs in self.needs.values() for need in needs} - set(self.said)
        assert set(self.graph.unknown()) == {key(name) for name in unknown}
        for what, asked in (("missing", self.graph.missing), ("present", self.graph.present)):
            expected = {key(name) for name, said in self.said.items() if said == what}
            assert set(asked()) == expected

    @invariant()
    def states(self) -> None:
        for name, needs in self.needs.items():
            state = self.graph.state(key(name))
            said = {need: self.said.get(need) for need in needs}
            endings = [one for one in said.values() if isinstance(one, Ending)]
            assert state.missing == tuple(n for n in needs if said[n] == "missing")
            assert state.waiting == tuple(n for n in needs if said[n] in (None, "present"))
            failed = [n for n in needs if said[n] in endings and not said[n].complete]  # type: ignore[union-attr]
            assert state.failed == ((failed[0], "has Failed") if failed else None)
            whole = len(endings) == len(needs) and not failed
            assert state.completed == (max(e.completed for e in endings) if whole else None)
        for name in set(NAMES) - set(self.needs):
            assert self.graph.state(key(name)) is INDEPENDENT

    @invariant()
    def cycles_are_reported_exactly_when_there_are_any(self) -> None:
        cycles = {name: self.graph.state(key(name)).cycle for name in self.needs}
        for name, cycle in cycles.items():
            if cycle:
                assert cycle[0] == cycle[-1]
                assert name in cycle
                for one, need in itertools.pairwise(cycle):
                    assert need in self.needs.get(one, ()), f"{cycle} is no circle"
        for name in self.cyclic():
            tangle = {one for one in self.reachable(name) if name in self.reachable(one)}
            # Of cycles that share a Task one is reported at a time: when it is broken, the next.
            assert any(cycles[one] for one in tangle), f"no cycle is reported in {tangle}"


TestGraph = Graph.TestCase
TestGraph.settings = settings(max_examples=150, stateful_step_count=30)
