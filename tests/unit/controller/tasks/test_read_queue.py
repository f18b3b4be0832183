"""The order of reads: namespaces in turn, new names first, repeats after growing waits."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from taskqueue.controller.tasks.read_queue import (
    FIRST_PAUSE_SECONDS,
    LONGEST_PAUSE_SECONDS,
    REPEATS_A_SECOND,
    ReadQueue,
)

Key = tuple[str, str]
LONGEST = 40.0


def queue_of(*keys: Key) -> ReadQueue[Key]:
    queue: ReadQueue[Key] = ReadQueue(longest_seconds=LONGEST)
    for key in keys:
        queue.add(key)
    return queue


def popped(queue: ReadQueue[Key], now: float, count: int = 99) -> list[Key]:
    """Pop what is due; nothing is answered."""
    found: list[Key] = []
    while len(found) < count and (key := queue.pop(now)) is not None:
        found.append(key)
    return found


def test_a_namespace_with_many_keys_waits_for_no_other() -> None:
    many = [("a", str(number)) for number in range(50)]
    queue = queue_of(*many, ("b", "x"), ("b", "y"))
    assert popped(queue, 0.0, 5) == [many[0], ("b", "x"), many[1], ("b", "y"), many[2]]


def test_new_keys_come_before_those_that_are_read_again() -> None:
    queue = queue_of(("a", "old"))
    queue.pop(0.0)
    queue.finish(("a", "old"), 0.0, 5.0)
    queue.add(("a", "new"))
    assert popped(queue, 10.0) == [("a", "new"), ("a", "old")]


def test_a_key_is_read_again_after_waits_that_grow() -> None:
    queue, key, now = queue_of(("a", "x")), ("a", "x"), 0.0
    waits = []
    for _ in range(6):
        assert queue.pop(now) == key
        queue.finish(key, now, 5.0)
        due = queue.next_due()
        assert due is not None
        assert queue.pop(due - 0.01) is None
        waits.append(due - now)
        now = due
    assert waits == [5.0, 10.0, 20.0, 40.0, 40.0, 40.0]


def test_a_key_that_is_read_again_does_not_keep_its_wait_when_it_is_asked_for() -> None:
    queue = queue_of(("a", "x"))
    queue.pop(0.0)
    queue.finish(("a", "x"), 0.0, 30.0)
    queue.add(("a", "x"))
    assert popped(queue, 0.0) == [("a", "x")]
    queue.finish(("a", "x"), 0.0, 5.0)
    assert queue.next_due() == 5.0


def test_so_many_keys_of_a_namespace_are_read_again_in_a_second() -> None:
    keys = [(space, str(number)) for number in range(200) for space in "ab"]
    queue = queue_of(*keys)
    for key in popped(queue, 0.0, 999):
        queue.finish(key, 0.0, 5.0)
    now, times = 5.0, []
    while now < 11.0:
        for key in popped(queue, now):
            times.append((key[0], now))
            queue.finish(key, now, 100.0)
        now += 0.01
    in_six_seconds = Counter(space for space, _ in times)
    most = 7 * REPEATS_A_SECOND + 1
    assert in_six_seconds["a"] == in_six_seconds["b"] <= most
    assert in_six_seconds["a"] >= 6 * REPEATS_A_SECOND


def test_a_namespace_pauses_after_a_failure_for_longer_each_time() -> None:
    queue, now = queue_of(("a", "x"), ("a", "y")), 0.0
    pauses = []
    for _ in range(9):
        key = queue.pop(now)
        assert key is not None
        queue.fail(key, now)
        assert queue.pop(now) is None
        due = queue.next_due()
        assert due is not None
        pauses.append(due - now)
        now = due
    assert pauses[:4] == [FIRST_PAUSE_SECONDS * factor for factor in (1, 2, 4, 8)]
    assert pauses[-1] == LONGEST_PAUSE_SECONDS
    key = queue.pop(now)
    assert key is not None
    queue.finish(key, now)
    other = queue.pop(now)
    assert other is not None
    queue.fail(other, now)
    assert queue.next_due() == now + FIRST_PAUSE_SECONDS


def test_reads_that_fail_together_make_one_pause() -> None:
    queue = queue_of(*(("a", str(number)) for number in range(4)))
    for key in popped(queue, 0.0):
        queue.fail(key, 0.0)
    assert queue.next_due() == FIRST_PAUSE_SECONDS


def test_a_failing_namespace_does_not_hold_up_another() -> None:
    queue = queue_of(("a", "x"), ("a", "y"), ("b", "z"))
    queue.fail(("a", "x") if queue.pop(0.0) else ("", ""), 0.0)
    assert popped(queue, 0.1) == [("b", "z")]


def test_the_api_server_may_ask_for_a_longer_pause() -> None:
    queue = queue_of(("a", "x"))
    queue.pop(0.0)
    queue.fail(("a", "x"), 0.0, 17.0)
    assert queue.next_due() == 17.0


@pytest.mark.parametrize("again_after", [None, 5.0])
def test_a_key_that_is_dropped_while_it_is_read_does_not_come_again(
    again_after: float | None,
) -> None:
    queue = queue_of(("a", "x"))
    queue.pop(0.0)
    queue.discard(("a", "x"))
    queue.finish(("a", "x"), 0.0, again_after)
    assert (len(queue), queue.next_due()) == (0, None)


def test_nothing_is_kept_of_a_namespace_without_keys() -> None:
    queue = queue_of(("a", "x"))
    queue.pop(0.0)
    queue.finish(("a", "x"), 0.0)
    assert queue.pop(0.0) is None
    assert not any(value for name, value in vars(queue).items() if name != "_longest")


class Reads(RuleBasedStateMachine):
    """Keys come and go, reads end as they like, time passes; no key is lost, none read twice."""

    keys = st.tuples(st.sampled_from("abc"), st.sampled_from("123"))

    def __init__(self) -> None:
        super().__init__()
        self.queue: ReadQueue[Key] = ReadQueue(longest_seconds=LONGEST)
        self.now = 0.0
        self.wanted: set[Key] = set()
        self.reading: set[Key] = set()
        self.rests_until: dict[str, float] = {}

    @rule(key=keys)
    def add(self, key: Key) -> None:
        self.queue.add(key)
        self.wanted.add(key)

    @rule(key=keys, seconds=st.sampled_from([0.0, 3.0, 30.0]))
    def add_later(self, key: Key, seconds: float) -> None:
        self.queue.add_later(key, self.now, seconds)
        self.wanted.add(key)

    @rule(key=keys)
    def discard(self, key: Key) -> None:
        self.queue.discard(key)
        self.wanted.discard(key)

    @rule()
    def pop(self) -> None:
        key = self.queue.pop(self.now)
        if key is not None:
            assert key in self.wanted, f"{key} is not wanted"
            assert key not in self.reading, f"{key} is being read"
            assert self.now >= self.rests_until.get(key[0], 0.0), f"{key[0]} pauses"
            self.reading.add(key)

    @precondition(lambda self: self.reading)
    @rule(data=st.data(), how=st.sampled_from(["done", "again", "failed"]))
    def end(self, data: st.DataObject, how: str) -> None:
        key = data.draw(st.sampled_from(sorted(self.reading)))
        self.reading.discard(key)
        if how == "failed":
            self.queue.fail(key, self.now)
            if self.now >= self.rests_until.get(key[0], 0.0):
                self.rests_until[key[0]] = self.now + FIRST_PAUSE_SECONDS
        else:
            self.queue.finish(key, self.now, 5.0 if how == "again" else None)
            if how == "done":
                self.wanted.discard(key)

    @rule(seconds=st.sampled_from([0.01, 1.0, 70.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def counts(self) -> None:
        assert len(self.queue) == len(self.wanted | self.reading)
        assert all(key in self.queue for key in self.wanted)
        due = self.queue.next_due()
        assert (due is None) == (not self.wanted - self.reading)

    def teardown(self) -> None:
        """Everything that is wanted comes in the end, by `next_due` alone."""
        for key in sorted(self.reading):
            self.queue.finish(key, self.now)
        left = self.wanted - self.reading
        while (due := self.queue.next_due()) is not None:
            self.now = max(self.now, due)
            found = self.queue.pop(self.now)
            if found is not None:
                left.discard(found)
                self.queue.finish(found, self.now)
        assert not left


TestReads = Reads.TestCase
TestReads.settings = settings(max_examples=150, stateful_step_count=40)
