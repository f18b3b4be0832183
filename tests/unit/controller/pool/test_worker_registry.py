from dataclasses import replace
from typing import Any

import pytest

from taskqueue.controller.pool import worker_registry
from taskqueue.controller.pool.worker_registry import STOPPED_SECONDS, WorkerRegistry, WorkerView
from taskqueue.limits import WORKER_LOST_SECONDS
from taskqueue.model.worker import Worker, WorkerState

WORKER = Worker(pod="a", node="node-1", cpus=4.0, slots=2, handlers=("resize",))


def beat(
    registry: WorkerRegistry,
    pod: str = "a",
    *,
    running: int = 0,
    busy: int | None = None,
    state: WorkerState = WorkerState.READY,
    now: float = 0.0,
    proven: bool = False,
    **changes: Any,
) -> bool:
    worker = replace(WORKER, pod=pod, **changes)
    return registry.on_heartbeat(
        worker,
        running=running,
        busy=running if busy is None else busy,
        state=state,
        now=now,
        proven=proven,
    )


def stop(registry: WorkerRegistry, pod: str = "a", now: float = 0.0) -> bool:
    return beat(registry, pod, state=WorkerState.STOPPED, now=now)


def test_registry_is_empty_at_first() -> None:
    registry = WorkerRegistry()
    assert (len(registry), registry.workers, registry.slots, registry.busy) == (0, (), 0, 0)
    assert (registry.foreign, registry.views) == (0, {})


def test_workers_register_and_are_listed_by_name() -> None:
    registry = WorkerRegistry()
    assert beat(registry, "b", slots=3)
    assert beat(registry, "a")
    assert [worker.pod for worker in registry.workers] == ["a", "b"]
    assert registry.workers[0] == WORKER
    assert (len(registry), registry.slots) == (2, 5)


def test_names_that_anybody_may_report_do_not_come_before_real_pods() -> None:
    registry = WorkerRegistry()
    for pod in ("a-invented", "q-worker-2", "q-worker-1", "b-invented"):
        beat(registry, pod)
    registry.on_pods_listed(["q-worker-1", "q-worker-2"])
    assert [worker.pod for worker in registry.workers] == [
        *("q-worker-1", "q-worker-2"),
        *("a-invented", "b-invented"),
    ]


def test_same_heartbeat_is_not_a_change() -> None:
    registry = WorkerRegistry()
    beat(registry)
    assert not beat(registry, now=10.0)
    assert not beat(registry, running=2, now=20.0)


@pytest.mark.parametrize(
    "change",
    [
        {"slots": 3},
        {"cpus": 2.0},
        {"node": "node-2"},
        {"handlers": ()},
        {"state": WorkerState.DRAINING},
    ],
    ids=lambda change: next(iter(change)),
)
def test_another_description_is(change: dict[str, Any]) -> None:
    registry = WorkerRegistry()
    beat(registry)
    assert beat(registry, now=10.0, **change)
    assert len(registry) == 1


def test_one_that_drains_takes_no_more_but_is_there_and_busy() -> None:
    registry = WorkerRegistry()
    beat(registry, "a", running=1, state=WorkerState.DRAINING)
    beat(registry, "b", running=2)
    beat(registry, "c")
    assert (len(registry), registry.slots, registry.busy) == (3, 4, 2)
    beat(registry, "a", running=0, state=WorkerState.DRAINING)
    assert registry.busy == 1


def test_what_is_known_of_each() -> None:
    registry = WorkerRegistry()
    beat(registry, "a", running=1, busy=2, slots=3, now=1.0)
    beat(registry, "b", running=2, state=WorkerState.DRAINING, now=2.0)
    stop(registry, "c", now=3.0)
    assert registry.views == {
        "a": WorkerView(pod="a", slots=3, busy=2, running=1, state=WorkerState.READY, seen=1.0),
        "b": WorkerView(pod="b", slots=2, busy=2, running=2, state=WorkerState.DRAINING, seen=2.0),
        "c": WorkerView(pod="c", slots=2, busy=0, running=0, state=WorkerState.STOPPED, seen=3.0),
    }


def test_what_was_known_does_not_change_afterwards() -> None:
    registry = WorkerRegistry()
    beat(registry, "a")
    views = registry.views
    beat(registry, "b")
    assert list(views) == ["a"]


def test_direct_messages_are_what_is_run_besides_tasks() -> None:
    registry = WorkerRegistry()
    beat(registry, "a", running=1, busy=4)
    beat(registry, "b", running=0, busy=2, state=WorkerState.DRAINING)
    beat(registry, "tells of Tasks alone", running=3)
    beat(registry, "tells nonsense", running=3, busy=1)
    assert registry.foreign == 5
    assert registry.busy == 4
    stop(registry, "b")
    assert registry.foreign == 3
    registry.on_heartbeat(WORKER, running=0, busy=7, state=WorkerState.STOPPED, now=0.0)
    assert registry.foreign == 0, "whatever one says that has stopped"


def test_one_that_stops_lives_no_more_at_once() -> None:
    registry = WorkerRegistry()
    beat(registry, running=1)
    assert stop(registry)
    assert (len(registry), registry.workers, registry.slots, registry.busy) == (0, (), 0, 0)
    assert not stop(registry, now=10.0), "no news"


def test_one_that_stopped_unknown_is_known_as_drained() -> None:
    registry = WorkerRegistry()
    assert stop(registry)
    assert registry.views["a"].state is WorkerState.STOPPED
    assert len(registry) == 0


def test_one_that_stopped_is_remembered_until_its_pod_says_something_else() -> None:
    registry = WorkerRegistry()
    beat(registry)
    stop(registry, now=10.0)
    assert beat(registry, now=20.0)
    assert registry.views["a"].state is WorkerState.READY
    assert (len(registry), registry.slots) == (1, 2)


def test_stopped_worker_stays_registered_until_its_pod_is_deleted() -> None:
    registry = WorkerRegistry()
    for pod in ("a", "b"):
        stop(registry, pod)
    beat(registry, "runs outside of any pod")
    registry.on_pods_listed(["b", "another"])
    assert set(registry.views) == {"b", "runs outside of any pod"}
    assert len(registry) == 1


def test_one_that_stopped_is_remembered_for_so_long_and_never_missed() -> None:
    registry = WorkerRegistry()
    beat(registry)
    stop(registry, now=5.0)
    stop(registry, now=10.0)
    assert registry.pop_lost(STOPPED_SECONDS + 10.0) == ()
    assert list(registry.views) == ["a"]
    assert registry.pop_lost(STOPPED_SECONDS + 10.5) == ()
    assert registry.views == {}


def test_silent_worker_is_lost_once() -> None:
    registry = WorkerRegistry()
    beat(registry, "silent", now=0.0)
    beat(registry, "alive", now=1.0)
    assert registry.pop_lost(WORKER_LOST_SECONDS) == ()
    assert registry.pop_lost(WORKER_LOST_SECONDS + 0.5) == ("silent",)
    assert registry.pop_lost(WORKER_LOST_SECONDS + 0.5) == ()
    assert [worker.pod for worker in registry.workers] == list(registry.views) == ["alive"]


def test_each_heartbeat_restarts_the_time() -> None:
    registry = WorkerRegistry()
    beat(registry)
    beat(registry, now=30.0)
    assert registry.pop_lost(WORKER_LOST_SECONDS + 29.0) == ()
    assert registry.pop_lost(WORKER_LOST_SECONDS + 30.5) == ("a",)


def test_one_that_was_lost_may_come_back() -> None:
    registry = WorkerRegistry()
    beat(registry)
    registry.pop_lost(100.0)
    assert beat(registry, now=101.0)
    assert len(registry) == 1


def test_slots_of_one_are_those_of_the_living_and_remembered() -> None:
    """Workers that drain must not look like ones with fewer slots."""
    registry = WorkerRegistry()
    assert registry.slots_each == 1
    for pod in "abcd":
        beat(registry, pod, slots=8)
    for pod in "abc":
        beat(registry, pod, slots=8, state=WorkerState.DRAINING)
    assert (registry.slots, registry.slots_each) == (8, 8)
    for pod in "abcd":
        beat(registry, pod, slots=8, state=WorkerState.STOPPED)
    assert (registry.slots, registry.slots_each) == (0, 8)


def test_invented_workers_displace_each_other_and_no_real_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(worker_registry, "REGISTERED_WORKERS", 10)
    registry = WorkerRegistry()
    registry.on_pods_listed(["of-a-pod", "stopped"])
    beat(registry, "of-a-pod", now=0.0)
    beat(registry, "stopped", now=0.0, state=WorkerState.STOPPED)
    beat(registry, "with-a-token", now=0.0, proven=True, running=1)
    beat(registry, "with-a-token", now=1.0)
    for number in range(1000):
        beat(registry, f"invented-{number}", now=1.0)
        assert len(registry.views) <= 10
    assert {"of-a-pod", "stopped", "with-a-token"} < registry.views.keys()
    assert list(registry.views)[3:] == [f"invented-{number}" for number in range(993, 1000)]
    assert len(registry) == 9


def test_of_real_workers_alone_the_one_longest_silent_is_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(worker_registry, "REGISTERED_WORKERS", 2)
    registry = WorkerRegistry()
    for pod, now in (("a", 0.0), ("b", 1.0), ("a", 2.0), ("c", 3.0)):
        beat(registry, pod, now=now, proven=True)
    assert list(registry.views) == ["a", "c"]


def test_a_pod_that_is_gone_is_reported_once() -> None:
    gone: list[str] = []
    registry = WorkerRegistry(gone.append)
    for pods in (set(), {"a", "b"}, {"b", "c"}, {"b", "c"}, set()):
        registry.on_pods_listed(pods)
    assert (gone[0], sorted(gone[1:])) == ("a", ["b", "c"])
