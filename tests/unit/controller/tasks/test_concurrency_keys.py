"""Concurrency keys: never too many holders, nobody left behind, nothing remembered in the end."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from taskqueue.controller.tasks.concurrency_keys import KeySlots


def test_a_holder_claims_again_without_a_second_place() -> None:
    slots: KeySlots[str] = KeySlots()
    assert slots.claim("k", "a", limit=1)
    assert slots.claim("k", "a", limit=1)
    assert not slots.claim("k", "b", limit=1)
    assert slots.claim("other", "b", limit=1)
    slots.release("k", "a")
    assert slots.claim("k", "b", limit=1)


def test_recorded_claims_stand_above_the_limit_and_block_new_holders() -> None:
    slots: KeySlots[str] = KeySlots()
    for holder in "abc":
        slots.assign("k", holder)
    slots.enqueue("k", "d", priority=0, created=0.0)
    for holder in "ab":
        assert slots.pop_next("k", limit=1) is None
        slots.release("k", holder)
    assert slots.pop_next("k", limit=1) is None
    slots.release("k", "c")
    assert slots.pop_next("k", limit=1) == "d"


def test_a_key_goes_to_waiters_by_priority_then_age() -> None:
    slots: KeySlots[str] = KeySlots()
    for name, priority, created in (("late", 0, 2.0), ("early", 0, 1.0), ("first", 5, 3.0)):
        slots.enqueue("k", name, priority=priority, created=created)
    slots.stop_waiting("k", "early")
    assert [slots.pop_next("k", limit=1) for _ in range(3)] == ["first", "late", None]


def test_release_and_stop_waiting_ignore_non_holders() -> None:
    slots: KeySlots[str] = KeySlots()
    slots.assign("k", "a")
    slots.release("k", "b")
    slots.stop_waiting("k", "b")
    assert not slots.claim("k", "b", limit=1)


KEYS = ("x", "y")
keys = st.sampled_from(KEYS)


class Keys(RuleBasedStateMachine):
    """The dispatcher's use: claim or wait in line; whoever frees a key lets the next ones in."""

    def __init__(self) -> None:
        super().__init__()
        self.slots: KeySlots[int] = KeySlots()
        self.limit = 1
        self.holds: dict[str, set[int]] = {name: set() for name in KEYS}
        self.waits: dict[str, list[tuple[int, int]]] = {name: [] for name in KEYS}
        self.comers = 0
        #: More may have a key only by what was recorded, or when the limit was lowered.
        self.allowed = dict.fromkeys(KEYS, 1)

    @rule(name=keys, priority=st.integers(0, 2))
    def comes(self, name: str, priority: int) -> None:
        self.comers += 1
        one = self.comers
        if self.slots.claim(name, one, limit=self.limit):
            self.holds[name].add(one)
        else:
            assert len(self.holds[name]) >= self.limit, f"{name} had room for one more"
            self.slots.enqueue(name, one, priority=priority, created=one)
            self.waits[name].append((-priority, one))

    @rule(name=keys)
    def holds_by_record(self, name: str) -> None:
        self.comers += 1
        self.slots.assign(name, self.comers)
        self.holds[name].add(self.comers)
        self.allowed[name] = max(self.allowed[name], len(self.holds[name]))

    @rule(name=keys, which=st.integers(0, 9))
    def is_done(self, name: str, which: int) -> None:
        if self.holds[name]:
            one = sorted(self.holds[name])[which % len(self.holds[name])]
            self.holds[name].discard(one)
            self.slots.release(name, one)
            self.let_in(name)

    @rule(name=keys, which=st.integers(0, 9))
    def loses_patience(self, name: str, which: int) -> None:
        if self.waits[name]:
            one = self.waits[name].pop(which % len(self.waits[name]))
            self.slots.stop_waiting(name, one[1])

    @rule(limit=st.integers(1, 3))
    def limit_changes(self, limit: int) -> None:
        self.limit = limit
        for name in self.slots.keys_waited_for:
            self.let_in(name)

    def let_in(self, name: str) -> None:
        while (one := self.slots.pop_next(name, limit=self.limit)) is not None:
            first = min(self.waits[name])
            assert first[1] == one, f"{first} is before {one}"
            self.waits[name].remove(first)
            self.slots.assign(name, one)
            self.holds[name].add(one)

    @precondition(lambda self: self.comers)
    @rule()
    def all_get_done(self) -> None:
        for name in KEYS:
            while self.holds[name]:
                self.is_done(name, 0)
            assert not self.waits[name], f"{self.waits[name]} waits for {name}, which nobody has"
        assert not any(vars(self.slots).values()), vars(self.slots)

    @invariant()
    def never_above_the_limit(self) -> None:
        for name in KEYS:
            held = len(self.holds[name])
            self.allowed[name] = max(self.limit, min(self.allowed[name], held))
            assert held <= self.allowed[name]

    @invariant()
    def nobody_waits_beside_a_free_place(self) -> None:
        for name in KEYS:
            assert not self.waits[name] or len(self.holds[name]) >= self.limit
        assert set(self.slots.keys_waited_for) == {name for name in KEYS if self.waits[name]}


TestKeys = Keys.TestCase
TestKeys.settings = settings(max_examples=60, stateful_step_count=30)
