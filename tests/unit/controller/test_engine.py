"""How the engine handles Tasks and TaskQueues, without an API server."""

import asyncio
from collections.abc import AsyncIterator
from random import Random
from typing import Any

import pytest
from kubernetes.aio.client import Configuration

from taskqueue.controller.background import never_ends
from taskqueue.controller.engine import Engine
from taskqueue.controller.queues.queue_list import put_page
from taskqueue.controller.queues.reconciler import QueueReconciler
from taskqueue.controller.tasks.finished_tasks import FinishedTask
from taskqueue.controller.tasks.task_feed import TaskFeed
from taskqueue.kubernetes.client import ApiAccess, ApiError
from taskqueue.kubernetes.deployments import PoolState
from taskqueue.kubernetes.pages import Page
from taskqueue.limits import PAYLOAD_BYTES
from taskqueue.model.task import Phase
from tests.unit.controller.fakes import TOKENS, raw_task


@pytest.fixture
async def engine() -> AsyncIterator[Engine]:
    configuration = Configuration()
    configuration.host = "http://127.0.0.1:9"  # the discard port: nothing may be asked there
    access = ApiAccess(configuration=configuration, ssl_context=None)
    feed = TaskFeed(access, random=Random(1))
    engine = Engine(access, TOKENS, feed=feed, namespace="operators")
    yield engine
    await close(engine)
    await feed.close()


async def close(engine: Engine) -> None:
    """Stop what was started beside it, and close its connections, as it does at its end."""
    await engine._background.cancel()
    clients = (
        engine._client,
        engine._reader_client,
        engine._writer_client,
        engine._feed_client,
    )
    for client in clients:
        await client.close()


async def test_a_task_without_its_queue_is_blocked(engine: Engine) -> None:
    engine.tasks.on_upserted(raw_task())
    status = engine.tasks.tasks["uid-t"].status
    assert (status.phase, status.reason) == (Phase.BLOCKED, "QueueNotFound")


async def test_an_unreadable_task_does_not_stop_the_others(engine: Engine) -> None:
    broken = raw_task("broken")
    del broken["spec"]["handler"]
    engine.tasks.on_upserted(broken)
    engine.tasks.on_upserted(raw_task("good"))
    assert list(engine.tasks.tasks) == ["uid-good"]


async def test_a_payload_above_the_limit_is_refused_and_not_held(engine: Engine) -> None:
    engine.tasks.on_upserted(raw_task(payload={"text": "x" * PAYLOAD_BYTES}))
    entry = engine.tasks.tasks["uid-t"]
    assert (entry.status.phase, entry.status.reason) == (Phase.FAILED, "Invalid")
    assert not engine.tasks.payloads.is_at_hand(entry.task)


def raw_queue(name: str, created: str, target: str) -> dict[str, Any]:
    ref = {"apiVersion": "apps/v1", "kind": "Deployment", "name": target}
    return {
        "apiVersion": "taskqueue.dev/v1alpha1",
        "kind": "TaskQueue",
        "metadata": {
            "name": name,
            "namespace": "shop",
            "uid": f"uid-{name}",
            "generation": 1,
            "creationTimestamp": created,
        },
        "spec": {
            "broker": {"connectionSecret": {"name": "rabbit"}},
            "workers": {"scaleTargetRef": ref},
        },
    }


async def test_a_taskqueue_that_cannot_be_read_stops_no_other(engine: Engine) -> None:
    good, bad = (raw_queue(name, "2026-01-01T00:00:00Z", name) for name in ("good", "bad"))
    assert put_page(Page({"items": [good]}), engine.put_queue)
    assert not put_page(
        Page({"items": [{"metadata": bad["metadata"]}]}, "too deep"), engine.put_queue
    )
    assert not put_page(Page({"items": [{**bad, "spec": {}}, good]}), engine.put_queue)
    assert list(engine._controllers) == [("shop", "good")]


async def test_engine_that_may_not_lead_any_more_writes_nothing(engine: Engine) -> None:
    late = Engine(
        engine._client._access,
        TOKENS,
        feed=engine._tasks_feed,
        namespace="operators",
        leads=lambda: False,
    )
    for client in (late._client, late._writer_client, late._feed_client):
        with pytest.raises(ApiError, match="another operator may lead"):
            await client.request("PATCH", "/api/v1/namespaces/shop/pods/a", body={})
    await close(late)


async def test_a_workload_is_sized_by_the_oldest_that_names_it(engine: Engine) -> None:
    for name, created in (("young", "2026-02-01T00:00:00Z"), ("old", "2026-01-01T00:00:00Z")):
        engine.put_queue(raw_queue(name, created, "encoders"))
    engine.put_queue(raw_queue("other", "2025-01-01T00:00:00Z", "painters"))
    conflicts = {
        key[1]: engine._sizing_conflict(one.config) for key, (one, _) in engine._controllers.items()
    }
    assert (conflicts["old"], conflicts["other"]) == ("", "")
    assert "already sized by TaskQueue old" in conflicts["young"]
    engine.remove_queue(("shop", "old"), "uid-old")
    assert engine._sizing_conflict(engine._controllers["shop", "young"][0].config) == ""


async def test_a_scale_target_cannot_be_a_deployment_of_the_operator(engine: Engine) -> None:
    state = PoolState(desired=1, replicas=1, available=1, message="")
    engine.on_pool_state(("shop", "q"), state)
    engine.put_queue(raw_queue("p", "2026-01-01T00:00:00Z", "q-worker"))
    conflict = engine._sizing_conflict(engine._controllers["shop", "p"][0].config)
    assert "created by the operator for a template" in conflict


async def test_a_background_part_that_ends_is_an_error() -> None:
    async def end() -> None:
        raise OSError("boom")

    with pytest.raises(OSError, match="boom"):
        await never_ends(asyncio.create_task(end()))
    with pytest.raises(RuntimeError, match="has ended"):
        await never_ends(asyncio.create_task(asyncio.sleep(0), name="writer"))


async def test_conditions_name_the_operators_own_namespace(engine: Engine) -> None:
    engine.put_queue(raw_queue("q", "2026-01-01T00:00:00Z", "encoders"))
    controller, _ = engine._controllers["shop", "q"]
    assert controller._condition_settings.operator_namespace == "operators"


async def test_the_events_of_others_are_given_up_when_each_queue_has_bindings_of_its_own(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    unbound: list[int] = []
    monkeypatch.setattr(engine._links, "unbind_all_keys", lambda: unbound.append(1))
    bound: set[str] = set()
    monkeypatch.setattr(
        QueueReconciler, "is_bound", property(lambda self: self.config.name in bound)
    )

    def declare(name: str) -> None:
        bound.add(name)
        engine._controllers["shop", name][0]._broker._on_declared()

    for name in ("a", "b", "c"):
        engine.put_queue(raw_queue(name, "2026-01-01T00:00:00Z", name))
    declare("a")
    declare("b")
    assert not unbound  # not yet known whether there are more TaskQueues
    engine._queues_listed = True
    declare("b")
    assert not unbound
    engine.remove_queue(("shop", "c"), "uid-c")  # which could not be declared
    assert unbound == [1]
    engine.put_queue(raw_queue("d", "2026-01-01T00:00:00Z", "d"))
    declare("a")
    assert unbound == [1]
    declare("d")
    assert unbound == [1, 1]


async def test_a_queue_is_served_elsewhere_only_when_all_of_this_operator_are_known(
    engine: Engine,
) -> None:
    engine.put_queue(raw_queue("a", "2026-01-01T00:00:00Z", "a"))
    assert engine.has_queue(("shop", "a"))
    assert engine.has_queue(("shop", "b"))
    engine._queues_listed = True
    assert engine.has_queue(("shop", "a"))
    assert not engine.has_queue(("shop", "b"))


async def test_finished_task_stays_while_its_schedule_has_not_recorded_it() -> None:
    configuration = Configuration()
    configuration.host = "http://127.0.0.1:9"
    access = ApiAccess(configuration=configuration, ssl_context=None)
    feed = TaskFeed(access, random=Random(1))
    kept = {("shop", "run")}
    engine = Engine(access, TOKENS, feed=feed, namespace="operators", is_kept=kept.__contains__)
    assert engine._ttl._is_needed("shop", "run")
    assert not engine._ttl._is_needed("shop", "other")
    await close(engine)
    await feed.close()


OTHER, OWN = "elsewhere/default", "operators/default"


def held_by(installation: str, name: str = "q", **metadata: Any) -> dict[str, Any]:
    raw = raw_queue(name, "2026-01-01T00:00:00Z", name)
    raw["metadata"] |= metadata
    return {**raw, "status": {"installation": installation}}


async def test_a_taskqueue_of_another_installation_is_left_alone_with_its_tasks(
    engine: Engine,
) -> None:
    engine._queues_listed = True
    engine.put_queue(held_by(OTHER))
    engine.tasks.on_upserted(raw_task("early"))
    assert not engine._controllers
    assert not engine.tasks.tasks
    assert not engine.has_queue(("shop", "q"))  # its messages are not answered for
    assert engine.knows(held_by(OTHER))
    (event,) = engine._events._waiting["shop"]
    assert event.spec.reason == "ServedElsewhere"
    assert OTHER in event.spec.note
    engine.put_queue(held_by(OTHER))
    assert len(engine._events._waiting["shop"]) == 1


async def test_tasks_are_tracked_once_the_other_installation_has_let_go(engine: Engine) -> None:
    engine.put_queue(held_by(OTHER))
    engine.tasks.on_upserted(raw_task("early"))
    assert not engine.knows(held_by(""))
    engine.put_queue(held_by(""))
    engine.tasks.on_upserted(raw_task("late"))
    for _ in range(3):
        await asyncio.sleep(0)
    assert set(engine.tasks.tasks) == {"uid-early", "uid-late"}
    assert engine.serves(("shop", "q"), "uid-q")


async def test_finished_tasks_of_another_installation_are_its_own_to_delete(engine: Engine) -> None:
    finished = FinishedTask(queue=("shop", "q"), name="t", uid="uid-t", completed=1.0, ttl=0)
    engine.put_queue(held_by(OTHER))
    engine._ttl.add_listed([finished])
    assert not len(engine._ttl)  # its archive may not have the end yet
    engine._ttl._to_list.clear()
    engine.put_queue(held_by(""))
    assert engine._ttl._to_list
    engine._ttl.add_listed([finished])
    assert len(engine._ttl) == 1


async def test_tasks_of_a_deleted_taskqueue_are_nobodys(engine: Engine) -> None:
    engine.put_queue(held_by(OTHER))
    engine.tasks.on_upserted(raw_task("early"))
    engine.remove_queue(("shop", "q"), "uid-another")
    assert ("shop", "q") in engine.tasks.others
    engine.remove_queue(("shop", "q"), "uid-q")
    for _ in range(3):
        await asyncio.sleep(0)
    assert engine.tasks.tasks["uid-early"].status.reason == "QueueNotFound"


async def test_a_taskqueue_that_another_installation_has_claimed_is_let_go(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.put_queue(held_by(""))
    engine.tasks.on_upserted(raw_task("early"))
    assert set(engine.tasks.tasks) == {"uid-early"}

    async def lost(key: tuple[str, str], uid: str) -> str:
        return OTHER

    monkeypatch.setattr(engine._claims, "claim", lost)
    await engine._claim(engine._controllers["shop", "q"][0].config)
    assert not engine._controllers
    assert not engine.tasks.tasks
    engine.put_queue(held_by(OWN))
    for _ in range(3):
        await asyncio.sleep(0)
    assert set(engine.tasks.tasks) == {"uid-early"}


async def test_a_cleared_claim_is_made_again(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    claimed: list[str] = []

    async def won(key: tuple[str, str], uid: str) -> str:
        claimed.append(uid)
        return OWN

    monkeypatch.setattr(engine._claims, "claim", won)
    engine.put_queue(held_by(""))
    assert engine.knows(held_by(""))
    engine._claims._held.add("uid-q")
    assert engine.knows(held_by(OWN))
    assert not engine.knows(held_by(OWN, generation=2))
    assert not engine.knows(held_by(""))
    engine.put_queue(held_by(""))
    await asyncio.sleep(0)
    assert claimed == ["uid-q"]
