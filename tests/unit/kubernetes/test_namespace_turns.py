"""How namespaces share the operator's requests, in virtual time: whatever one of them asks for."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taskqueue.kubernetes.namespace_turns import NamespaceTurns, RequestGate, namespace_of
from tests.unit.controller.virtual_time import VirtualLoop

#: What rounding takes.
_EPSILON = 1e-6


@dataclass(frozen=True)
class Request:
    """A request on behalf of a namespace: when it is made, and how long it takes, in seconds."""

    namespace: str
    at: float
    seconds: float


@dataclass
class Log:
    """When each request began, and how many were under way then."""

    began: dict[Request, list[float]] = field(default_factory=lambda: defaultdict(list))
    under_way: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    most: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    most_of_all: int = 0

    async def send(self, gate: RequestGate, request: Request) -> None:
        await asyncio.sleep(request.at)
        async with gate.turn(request.namespace):
            self.began[request].append(asyncio.get_running_loop().time())
            self.under_way[request.namespace] += 1
            self.most[request.namespace] = max(
                self.most[request.namespace], self.under_way[request.namespace]
            )
            self.most_of_all = max(self.most_of_all, sum(self.under_way.values()))
            await asyncio.sleep(request.seconds)
            self.under_way[request.namespace] -= 1


def run(requests: list[Request], at_once: int) -> Log:
    loop, log = VirtualLoop(), Log()

    async def all_of_them() -> None:
        gate = RequestGate(at_once)
        await asyncio.gather(*(log.send(gate, one) for one in requests))

    try:
        loop.run_until_complete(all_of_them())
    finally:
        loop.close()
    return log


FLOODS = st.dictionaries(
    st.sampled_from("abcde"),
    st.tuples(st.integers(1, 60), st.integers(0, 3)),
    min_size=1,
    max_size=5,
)


@settings(deadline=None, max_examples=60)
@given(floods=FLOODS, at_once=st.integers(1, 8), asks_at=st.integers(0, 6))
def test_a_namespace_waits_for_one_request_of_each_other_at_most(
    floods: dict[str, tuple[int, int]], at_once: int, asks_at: int
) -> None:
    requests = [
        Request(name, float(start), 1.0)
        for name, (count, start) in floods.items()
        for _ in range(count)
    ]
    asked = Request("victim", asks_at + 0.5, 1.0)
    (began,) = run([*requests, asked], at_once).began[asked]
    # What is under way ends within a second; then each turn of all that have room takes one.
    assert began - asked.at <= 1.0 + len(floods) // at_once + _EPSILON


@settings(deadline=None, max_examples=60)
@given(floods=FLOODS, at_once=st.integers(1, 8))
def test_no_room_is_kept_free_from_what_waits(
    floods: dict[str, tuple[int, int]], at_once: int
) -> None:
    requests = [
        Request(name, 0.0, 1.0) for name, (count, _) in floods.items() for _ in range(count)
    ]
    log = run(requests, at_once)
    most = at_once - at_once // 4
    shares = sum(min(count, most) for count, _ in floods.values())
    assert log.most_of_all == min(at_once, shares)
    for name, (count, _) in floods.items():
        assert log.most[name] <= min(most, count)


def test_slow_requests_of_one_namespace_leave_room_for_the_others() -> None:
    slow = [Request("slow", 0.0, 60.0) for _ in range(100)]
    quick = Request("quick", 1.0, 0.1)
    assert run([*slow, quick], 8).began[quick] == [pytest.approx(1.0)]


def test_within_a_namespace_the_first_comes_first() -> None:
    requests = [Request("a", number / 10, 1.0) for number in range(5)]
    log = run(requests, 1)
    assert [log.began[one][0] for one in requests] == pytest.approx([0, 1, 2, 3, 4])


@pytest.mark.looptime
async def test_requests_that_are_given_up_take_no_room() -> None:
    gate = RequestGate(1)

    async def hold(seconds: float) -> None:
        async with gate.turn("a"):
            await asyncio.sleep(seconds)

    holding = asyncio.create_task(hold(10))
    waiting = [asyncio.create_task(hold(10)) for _ in range(3)]
    await asyncio.sleep(1)
    for task in (*waiting, holding):
        task.cancel()
    await asyncio.gather(holding, *waiting, return_exceptions=True)
    async with asyncio.timeout(1), gate.turn("b"):
        pass


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers()), max_size=30))
def test_turns_lose_nothing_and_go_round(items: list[tuple[str, int]]) -> None:
    turns: NamespaceTurns[int] = NamespaceTurns()
    for namespace, item in items:
        turns.add(namespace, item)
    assert len(turns) == len(items)
    popped = []
    while (found := turns.pop()) is not None:
        popped.append(found)
    for name in "abc":
        assert [one for one in popped if one[0] == name] == [one for one in items if one[0] == name]
    rounds = [name for name, _ in popped]
    for start, name in enumerate(rounds):
        if name in rounds[start + 1 :]:
            until = rounds.index(name, start + 1)
            others = {one for one in rounds[until:] if one != name}
            assert others <= set(rounds[start + 1 : until])  # each that waits has had its turn


@pytest.mark.parametrize(
    ("path", "namespace"),
    [
        ("/api/v1/namespaces/shop/pods/a", "shop"),
        ("/apis/taskqueue.dev/v1alpha1/namespaces/shop/tasks", "shop"),
        ("/apis/taskqueue.dev/v1alpha1/tasks", ""),
    ],
)
def test_a_path_is_in_a_namespace_or_in_none(path: str, namespace: str) -> None:
    assert namespace_of(path) == namespace
