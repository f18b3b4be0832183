"""Fair shares: by weight while groups wait, nobody starves, nothing is lost or given twice."""

from __future__ import annotations

import itertools
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from taskqueue.controller.tasks.flow.fair_queue import FairQueue

GROUPS = "abcd"


def take(queue: FairQueue[int], now: float = 0.0) -> tuple[str, int] | None:
    group = queue.next_group(now)
    return None if group is None else (group, queue.pop(group))


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(GROUPS), st.integers(1, 20), min_size=2), st.data())
def test_shares_are_within_one_task_of_the_weights_while_all_wait(
    weights: dict[str, int], data: st.DataObject
) -> None:
    queue: FairQueue[int] = FairQueue(weights.__getitem__)
    numbers = itertools.count()
    for group in weights:
        for _ in range(600):
            queue.add(next(numbers), rank=0, created=0.0, group=group)
    steps = data.draw(st.integers(1, 500))
    given = Counter[str]()
    for _ in range(steps):
        one = take(queue)
        assert one is not None
        given[one[0]] += 1
    if max(given.values()) < 600:
        for group, weight in weights.items():
            share = steps * weight / sum(weights.values())
            assert abs(given[group] - share) <= len(weights) * (1 + weight / min(weights.values()))


def test_long_shares_are_within_five_per_cent_of_weights_three_to_one() -> None:
    queue: FairQueue[int] = FairQueue({"a": 3, "b": 1}.__getitem__)
    for number in range(10_000):
        queue.add(number, rank=0, created=number, group="ab"[number % 2])
    order = [one[0] for one in iter(lambda: take(queue), None)]
    while_both_wait = order[: order.index("a") + 6_000]
    assert abs(while_both_wait.count("a") / len(while_both_wait) - 0.75) < 0.0375
    assert Counter(order) == {"a": 5_000, "b": 5_000}


def test_a_group_that_comes_late_gets_its_share_from_then_on_and_no_more() -> None:
    queue: FairQueue[int] = FairQueue(lambda _: 1)
    for number in range(1_000):
        queue.add(number, rank=0, created=0.0, group="a")
    for _ in range(400):
        take(queue)
    for number in range(1_000, 2_000):
        queue.add(number, rank=0, created=0.0, group="b")
    given = Counter(one[0] for one in (take(queue) for _ in range(200)) if one)
    assert abs(given["a"] - 100) <= 1


def test_a_group_that_empties_again_and_again_gets_no_more_than_its_share() -> None:
    queue: FairQueue[int] = FairQueue(lambda _: 1)
    numbers = itertools.count()
    for _ in range(1_000):
        queue.add(next(numbers), rank=0, created=0.0, group="a")
    given = Counter[str]()
    queue.add(next(numbers), rank=0, created=0.0, group="b")
    for _ in range(400):
        group, _number = take(queue) or ("", 0)
        given[group] += 1
        if group == "b":
            queue.add(next(numbers), rank=0, created=0.0, group="b")
    assert abs(given["b"] - 200) <= 1


def test_new_groups_that_keep_coming_do_not_starve_one_that_waits() -> None:
    queue: FairQueue[int] = FairQueue(lambda _: 1)
    for number in range(1_000):
        queue.add(number, rank=0, created=0.0, group="old")
    given = Counter[str]()
    numbers = itertools.count(1_000)
    for _ in range(400):
        if len(queue._queues) == 1:
            number = next(numbers)
            queue.add(number, rank=0, created=0.0, group=f"new-{number}")
        one = take(queue)
        assert one is not None
        given[one[0][:3]] += 1
    assert abs(given["old"] - 200) <= 2


def test_a_group_that_is_set_aside_gives_nothing_until_its_time() -> None:
    queue: FairQueue[int] = FairQueue(lambda _: 1)
    queue.add(1, rank=0, created=0.0, group="a")
    queue.add(2, rank=0, created=0.0, group="b")
    queue.set_aside("a", 10.0)
    assert take(queue, 9.0) == ("b", 2)
    assert take(queue, 9.0) is None
    assert queue.end_of_break() == 10.0
    assert take(queue, 10.0) == ("a", 1)
    assert queue.end_of_break() is None


def test_empty_groups_are_not_kept() -> None:
    queue: FairQueue[int] = FairQueue(lambda _: 1)
    for number in range(10_000):
        queue.add(number, rank=0, created=0.0, group=f"group-{number}")
        assert take(queue)
    assert len(queue._times) < 200
    assert len(queue._heap) < 200


class Groups(RuleBasedStateMachine):
    """Adds, removals, breaks and turns; compared with plain sets."""

    def __init__(self) -> None:
        super().__init__()
        self.queue: FairQueue[int] = FairQueue(lambda group: 1 + GROUPS.index(group))
        self.waiting: dict[int, tuple[str, int]] = {}
        self.until: dict[str, float] = {}
        self.now = 0.0
        self.numbers = itertools.count()
        #: Turns that others had since a group might have had one.
        self.passed_over = Counter[str]()

    @rule(group=st.sampled_from(GROUPS), rank=st.integers(0, 3))
    def comes(self, group: str, rank: int) -> None:
        number = next(self.numbers)
        self.queue.add(number, rank=rank, created=number, group=group)
        self.waiting[number] = (group, rank)
        self.until.pop(group, None) if self.is_alone(number, group) else None

    def is_alone(self, number: int, group: str) -> bool:
        return not any(g == group for n, (g, _) in self.waiting.items() if n != number)

    @rule(which=st.integers(0, 9))
    def goes(self, which: int) -> None:
        if self.waiting:
            number = sorted(self.waiting)[which % len(self.waiting)]
            del self.waiting[number]
            assert self.queue.discard(number)

    @rule(seconds=st.integers(1, 5))
    def next_is_set_aside(self, seconds: int) -> None:
        group = self.queue.next_group(self.now)
        if group is not None:
            self.queue.set_aside(group, self.now + seconds)
            self.until[group] = self.now + seconds

    @rule(seconds=st.integers(1, 5))
    def time_passes(self, seconds: int) -> None:
        self.now += seconds
        self.until = {group: at for group, at in self.until.items() if at > self.now}

    @rule()
    def has_its_turn(self) -> None:
        one = take(self.queue, self.now)
        if one is None:
            assert all(group in self.until for group, _ in self.waiting.values())
            return
        group, number = one
        assert self.waiting.pop(number)[0] == group
        assert group not in self.until or self.until[group] <= self.now
        mates = [(-rank, n) for n, (g, rank) in self.waiting.items() if g == group]
        for other in {g for g, _ in self.waiting.values()} - {group} - self.until.keys():
            self.passed_over[other] += 1
            assert self.passed_over[other] <= 60, f"{other} starves"
        self.passed_over[group] = 0
        self.last = (group, number, mates)

    @invariant()
    def nothing_is_lost(self) -> None:
        assert set(self.queue) == set(self.waiting)
        assert len(self.queue) == len(self.waiting)


Groups.TestCase.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)
TestGroups = Groups.TestCase
