"""Whose status is written next: namespaces by turns, urgent ones first, few that failed before."""

from __future__ import annotations

import pytest

from taskqueue.kubernetes.write_turns import (
    NAMESPACE_FAILURES,
    URGENT_IN_A_ROW,
    PendingNamespace,
    PendingStatus,
    WriteTurns,
)


def put(turns: WriteTurns, namespace: PendingNamespace, count: int, kind: str = "normal") -> None:
    for number in range(count):
        path = f"{namespace.name}/{kind}{number}"
        getattr(namespace, kind)[path] = PendingStatus(path, namespace)
    turns.update(namespace)


def pop_all(turns: WriteTurns) -> list[str]:
    """Return the paths in the order of their turns, as if each write took long."""
    paths = []
    while (pending := turns.pop()) is not None:
        paths.append(pending.path)
    return paths


@pytest.mark.parametrize("kind", ["urgent", "normal", "retries"])
def test_namespaces_take_turns(kind: str) -> None:
    turns = WriteTurns(most_risky=100)
    put(turns, PendingNamespace("a"), 4, kind)
    put(turns, PendingNamespace("b"), 1, kind)
    put(turns, PendingNamespace("c"), 2, kind)
    names = [path[0] for path in pop_all(turns)]
    assert names == list("abcacaa")
    assert not turns


def test_one_write_in_sixteen_is_not_urgent() -> None:
    turns = WriteTurns(most_risky=1)
    put(turns, PendingNamespace("a"), 2)
    put(turns, PendingNamespace("b"), 2 * URGENT_IN_A_ROW + 1, "urgent")
    kinds = [path[0] for path in pop_all(turns)]
    row = ["b"] * URGENT_IN_A_ROW
    assert kinds == [*row, "a", *row, "a", "b"]


def test_what_failed_before_has_few_places() -> None:
    turns = WriteTurns(most_risky=2)
    put(turns, PendingNamespace("a"), 3, "retries")
    put(turns, PendingNamespace("b"), 2)
    first = turns.pop()
    assert first is not None
    assert pop_all(turns) == ["a/retries1", "b/normal0", "b/normal1"]
    turns.on_ended(first)
    assert pop_all(turns) == ["a/retries2"]


def test_a_namespace_that_is_held_up_has_one_write_and_no_turn_among_the_others() -> None:
    turns = WriteTurns(most_risky=2)
    bad = PendingNamespace("bad", failures=NAMESPACE_FAILURES)
    for kind in ("retries", "normal", "urgent"):
        put(turns, bad, 2, kind)
    probe = turns.pop()
    assert probe is not None
    assert (probe.path, bad.probe) == ("bad/urgent0", probe)
    assert turns.pop() is None
    bad.probe, bad.failures = None, 0
    turns.update(bad)
    assert len(pop_all(turns)) == 4  # and one of the retries waits for a place
