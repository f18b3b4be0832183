from dataclasses import replace
from typing import Any

import pytest

from taskqueue.domain.registry import LOST_SECONDS, Registry, Worker

WORKER = Worker(pod="a", node="node-1", cpus=4.0, slots=2, handlers=("resize",))


def beat(
    registry: Registry,
    pod: str = "a",
    *,
    running: int = 0,
    draining: bool = False,
    now: float = 0.0,
    **changes: Any,
) -> bool:
    worker = replace(WORKER, pod=pod, **changes)
    return registry.beat(worker, running=running, draining=draining, now=now)


def test_nobody_is_there_at_first() -> None:
    registry = Registry()
    assert (len(registry), registry.workers, registry.slots, registry.busy) == (0, (), 0, 0)


def test_workers_join_and_are_told_by_name() -> None:
    registry = Registry()
    assert beat(registry, "b", slots=3)
    assert beat(registry, "a")
    assert [worker.pod for worker in registry.workers] == ["a", "b"]
    assert registry.workers[0] == WORKER
    assert (len(registry), registry.slots) == (2, 5)


def test_the_same_again_is_no_news() -> None:
    registry = Registry()
    beat(registry)
    assert not beat(registry, now=10.0)
    assert not beat(registry, running=2, now=20.0)


@pytest.mark.parametrize(
    "change",
    [{"slots": 3}, {"cpus": 2.0}, {"node": "node-2"}, {"handlers": ()}, {"draining": True}],
    ids=lambda change: next(iter(change)),
)
def test_another_description_is(change: dict[str, Any]) -> None:
    registry = Registry()
    beat(registry)
    assert beat(registry, now=10.0, **change)
    assert len(registry) == 1


def test_one_that_drains_takes_no_more_but_is_there_and_busy() -> None:
    registry = Registry()
    beat(registry, "a", running=1, draining=True)
    beat(registry, "b", running=2)
    beat(registry, "c")
    assert (len(registry), registry.slots, registry.busy) == (3, 4, 2)
    beat(registry, "a", running=0, draining=True)
    assert registry.busy == 1


def test_one_that_stops_is_gone_at_once() -> None:
    registry = Registry()
    beat(registry, running=1)
    assert registry.leave("a")
    assert (len(registry), registry.slots, registry.busy) == (0, 0, 0)
    assert not registry.leave("a")
    assert registry.expire(1e9) == ()


def test_silence_is_an_end_too_and_told_once() -> None:
    registry = Registry()
    beat(registry, "silent", now=0.0)
    beat(registry, "alive", now=1.0)
    assert registry.expire(LOST_SECONDS) == ()
    assert registry.expire(LOST_SECONDS + 0.5) == ("silent",)
    assert registry.expire(LOST_SECONDS + 0.5) == ()
    assert [worker.pod for worker in registry.workers] == ["alive"]


def test_each_heartbeat_begins_the_time_anew() -> None:
    registry = Registry()
    beat(registry)
    beat(registry, now=30.0)
    assert registry.expire(LOST_SECONDS + 29.0) == ()
    assert registry.expire(LOST_SECONDS + 30.5) == ("a",)


def test_one_that_was_lost_may_come_back() -> None:
    registry = Registry()
    beat(registry)
    registry.expire(100.0)
    assert beat(registry, now=101.0)
    assert len(registry) == 1
