"""The graph of dependsOn, against a model that knows everything and finds cycles by brute force."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from random import Random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from taskqueue.controller.tasks import dependency_graph
from taskqueue.controller.tasks.dependencies import _ending as ending_of
from taskqueue.controller.tasks.dependency_graph import (
    INDEPENDENT,
    DependencyGraph,
    DependencyState,
    Ending,
    TaskKey,
)
from taskqueue.model.task import DependencyWhen, Phase

COMPLETE = Ending(True, "", 5.0)
FAILED = Ending(False, "has Failed with reason Boom", 6.0)


def key(name: str) -> TaskKey:
    return ("shop", name)


def put(graph: DependencyGraph, name: str, *needs: str) -> set[str]:
    """As the engine does: a Task the feed shows exists, and depends on others."""
    graph.mark_unfinished(key(name))
    return {changed for _, changed in graph.set_dependencies(key(name), needs)}


def search(graph: DependencyGraph) -> set[str]:
    """Find all cycles; return their members."""
    found: set[TaskKey] = set()
    while graph.is_doubtful:
        for members in graph.find_cycles():
            found |= members
    return {name for _, name in found}


def missing(graph: DependencyGraph) -> list[TaskKey]:
    return sorted(graph._missing)


def unknown(graph: DependencyGraph) -> set[TaskKey]:
    return {need for need in graph.dependents if graph.is_unknown(need)}


def is_empty(graph: DependencyGraph) -> bool:
    return not any(vars(graph).values())


def test_an_unknown_dependency_is_waiting_and_to_be_read() -> None:
    graph = DependencyGraph()
    assert put(graph, "a", "b", "c") == {"a"}
    assert graph.state(key("a")) == DependencyState(waiting=("b", "c"))
    assert unknown(graph) == {key("b"), key("c")}
    assert graph.mark_unfinished(key("b")) == set()  # it waits for it either way
    assert graph.mark_missing(key("c")) == {key("a")}
    assert graph.state(key("a")) == DependencyState(waiting=("b",), missing=("c",))
    assert (unknown(graph), missing(graph)) == (set(), [key("c")])
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


@pytest.mark.parametrize("when", DependencyWhen)
@pytest.mark.parametrize("phase", [phase for phase in Phase if phase.terminal])
def test_each_way_to_end_meets_what_is_waited_for_or_never_will(
    phase: Phase, when: DependencyWhen
) -> None:
    graph = DependencyGraph()
    put(graph, "b")
    graph.set_dependencies(key("a"), ("b",), (("b", when),))
    assert graph.state(key("a")) == DependencyState(waiting=("b",))
    graph.mark_finished(key("b"), ending_of(phase, "", 5.0))
    state = graph.state(key("a"))
    met = when is DependencyWhen.FINISHED or when.value == phase.value
    assert state.completed == (5.0 if met else None)
    assert (state.failed is not None) == (not met and when is DependencyWhen.SUCCEEDED)
    assert (state.unmet is not None) == (not met and when is DependencyWhen.FAILED)
    graph.set_dependencies(key("a"), ("b",))
    assert graph.state(key("a")).unmet is None


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
    search(graph)
    assert is_empty(graph)


def test_a_chain_of_ten_thousand_is_walked_without_recursion() -> None:
    graph = DependencyGraph()
    for number in range(10_000):
        put(graph, f"t{number}", f"t{number + 1}")
    assert search(graph) == set()
    put(graph, "t10000", "t0")
    assert len(search(graph)) == 10_001
    cycle = graph.state(key("t5000")).cycle
    assert (len(cycle), cycle[0]) == (10_002, cycle[-1])


@pytest.mark.parametrize("order", ["forward", "backward", "shuffled"])
def test_a_search_goes_along_each_edge_a_few_times(
    order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the order Tasks come in: a start shows them by name."""
    monkeypatch.setattr(dependency_graph, "_EDGES_AT_ONCE", 100)
    graph, tasks, width = DependencyGraph(), 1000, 20
    numbers = list(range(tasks))
    if order == "backward":
        numbers.reverse()
    elif order == "shuffled":
        Random(7).shuffle(numbers)
    for number in numbers:
        put(graph, f"t{number}", *(f"t{need}" for need in range(max(number - width, 0), number)))
    steps = sum(1 for _ in graph.find_cycles())
    assert not graph.is_doubtful
    assert steps <= 3 * tasks * (width + 1) / 100
    put(graph, "t0", f"t{tasks - 1}")
    steps = sum(1 for _ in graph.find_cycles())
    # It pauses when it takes away what is in no cycle, and when it looks for those that are.
    assert 1.5 * tasks * (width + 1) / 100 <= steps <= 4 * tasks * (width + 1) / 100
    assert graph._cycles


def test_tasks_that_come_in_order_need_no_search() -> None:
    graph = DependencyGraph()
    for number in range(1, 100):
        put(graph, f"t{number}", f"t{number - 1}")
    assert not graph.is_doubtful


@pytest.mark.parametrize("order", ["abc", "bca", "cab", "cba"])
def test_a_cycle_is_found_by_whoever_closes_it(order: str) -> None:
    graph = DependencyGraph()
    needs = {"a": "b", "b": "c", "c": "a"}
    for name in order:
        put(graph, name, needs[name])
    assert search(graph) == {"a", "b", "c"}
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
    assert search(graph) == {"a", "b"}
    assert [name for name in ("beside", "below") if graph.state(key(name)).cycle] == []
    assert graph.state(key("a")).cycle


@pytest.mark.parametrize("how", ["edited", "deleted", "ended"])
def test_a_broken_cycle_ends_for_all_members(how: str) -> None:
    graph = DependencyGraph()
    put(graph, "a", "b")
    put(graph, "b", "c")
    put(graph, "c", "a")
    search(graph)
    assert all(graph.state(key(name)).cycle for name in "abc")
    if how == "edited":
        changed = graph.set_dependencies(key("b"), ())
    elif how == "deleted":
        changed = graph.mark_deleted(key("b"))
    else:
        changed = graph.mark_finished(key("b"), FAILED)
    assert [graph.state(key(name)).cycle for name in "ac"] == [(), ()]
    assert {key("a"), key("c")} <= changed  # both may stand otherwise now
    assert search(graph) == set()


def test_a_cycle_that_shares_a_task_is_found_when_the_first_is_broken() -> None:
    graph = DependencyGraph()
    put(graph, "a", "b")
    put(graph, "b", "a", "c")
    put(graph, "c", "a")
    first = search(graph)
    assert {"a", "b"} <= first
    graph.set_dependencies(key("b"), ("c",) if "c" not in first else ("a",))
    assert search(graph) == ({"a", "b", "c"} if "c" not in first else {"a", "b"})


def test_another_cycle_of_a_task_is_found_when_one_ends() -> None:
    graph = DependencyGraph()
    put(graph, "a", "b", "c")
    put(graph, "b", "a")
    put(graph, "c", "a")
    first = search(graph)
    (other,) = {"b", "c"} - first
    assert first == {"a", "b", "c"} - {other}
    (ended,) = first - {"a"}
    graph.mark_finished(key(ended), FAILED)
    assert search(graph) == {"a", other}


@pytest.mark.parametrize("steps", range(14))
def test_a_cycle_that_is_broken_during_the_search_is_not_reported(
    steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dependency_graph, "_EDGES_AT_ONCE", 1)
    graph = DependencyGraph()
    put(graph, "a", "b")
    put(graph, "b", "c")
    put(graph, "c", "a")
    looking = graph.find_cycles()
    for _ in range(steps):
        next(looking, None)
    graph.set_dependencies(key("a"), ())
    for _ in looking:
        pass
    assert [graph.state(key(name)).cycle for name in "bc"] == [(), ()]


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
        self.edges_at_once, dependency_graph._EDGES_AT_ONCE = dependency_graph._EDGES_AT_ONCE, 1
        self.search: Iterator[set[TaskKey]] | None = None
        self.told: set[TaskKey] = set()

    def apply(self, name: str, what: Ending | str, changed: set[TaskKey]) -> None:
        waiting = {key(one) for one, needs in self.needs.items() if name in needs}
        alike = (None, "present")  # both are waited for
        before = self.said.get(name)
        if before != what and not (before in alike and what in alike):
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
        changed = self.graph.set_dependencies(key(name), tuple(needs))
        if needs:
            self.needs[name] = tuple(needs)
        assert key(name) in changed

    @rule()
    def begin_search(self) -> None:
        if self.search is None and self.graph.is_doubtful:
            self.search = self.graph.find_cycles()

    @rule(steps=st.integers(1, 9))
    def go_on_searching(self, steps: int) -> None:
        """It pauses after each edge here, and the graph changes in between."""
        for _ in range(steps if self.search is not None else 0):
            try:
                self.told |= next(self.search)  # type: ignore[arg-type]
            except StopIteration:
                self.search = None
                break
        for name in list(self.needs):
            if self.graph.state(key(name)).cycle:
                assert name in self.reachable(name), f"{name} is in no cycle"

    def finish_search(self) -> None:
        for _ in self.search or ():
            pass
        self.search = None
        search(self.graph)

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
        self.finish_search()
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
        silent = {need for needs in self.needs.values() for need in needs} - set(self.said)
        assert unknown(self.graph) == {key(name) for name in silent}
        for what, known in (("missing", self.graph._missing), ("present", self.graph.present())):
            assert set(known) == {key(name) for name, said in self.said.items() if said == what}

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

    @rule()
    def cycles_are_reported_exactly_when_there_are_any(self) -> None:
        self.finish_search()
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

    def teardown(self) -> None:
        dependency_graph._EDGES_AT_ONCE = self.edges_at_once


TestGraph = Graph.TestCase
TestGraph.settings = settings(max_examples=150, stateful_step_count=30)
