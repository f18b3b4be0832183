from hypothesis import given
from hypothesis import strategies as st

from taskqueue.controller.tasks.dispatch_queue import DispatchQueue

members = st.lists(st.tuples(st.integers(-1000, 1000), st.floats(0, 1e9)), min_size=1, max_size=50)


def drain(line: DispatchQueue[int]) -> list[int]:
    keys = []
    while (key := line.pop()) is not None:
        keys.append(key)
    return keys


@given(members)
def test_higher_priority_first_then_older_then_earlier_arrival(
    entries: list[tuple[int, float]],
) -> None:
    line: DispatchQueue[int] = DispatchQueue()
    for key, (priority, created) in enumerate(entries):
        line.add(key, priority=priority, created=created)
    expected = sorted(range(len(entries)), key=lambda key: (-entries[key][0], entries[key][1], key))
    assert drain(line) == expected


@given(members, st.sets(st.integers(0, 49)))
def test_a_discarded_key_never_comes_up(
    entries: list[tuple[int, float]], discarded: set[int]
) -> None:
    line: DispatchQueue[int] = DispatchQueue()
    for key, (priority, created) in enumerate(entries):
        line.add(key, priority=priority, created=created)
    for key in discarded:
        line.discard(key)
    left = set(range(len(entries))) - discarded
    assert len(line) == len(left)
    assert set(drain(line)) == left


def test_a_key_added_again_comes_up_once_in_its_new_place() -> None:
    line: DispatchQueue[int] = DispatchQueue()
    line.add(1, priority=0, created=1)
    line.add(2, priority=0, created=2)
    line.add(1, priority=-5, created=1)
    assert drain(line) == [2, 1]


def test_discarded_keys_are_not_held_on_to() -> None:
    line: DispatchQueue[int] = DispatchQueue()
    line.add(-1, priority=0, created=0)
    for key in range(10_000):
        line.add(key, priority=0, created=key)
        line.discard(key)
    assert len(line._heap) < 100
    assert drain(line) == [-1]
