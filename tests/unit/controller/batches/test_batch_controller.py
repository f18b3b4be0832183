"""A TaskBatch from its creation to its end, with restarts, edits and failures in between."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from taskqueue.contract.outcome import AttemptEvent, EventError, EventKind, encode
from taskqueue.controller.batches.batch_controller import MOST_HELD
from taskqueue.controller.batches.progress import BatchProgress, ItemEnd
from taskqueue.controller.batches.window import LARGEST_WINDOW
from taskqueue.kubernetes.batch_codec import read_batch, read_state, status_body
from taskqueue.model.batch import BatchRecord
from taskqueue.model.command import CommandKind
from tests.unit.controller.batches.batch_world import TERMINAL, BatchWorld
from tests.unit.controller.fakes import turn

CONFIG_MAP = "/api/v1/namespaces/shop/configmaps/items"
FROM_CONFIG_MAP = {"itemsFrom": {"configMapKeyRef": {"name": "items", "key": "lines"}}}


@pytest.fixture
def worlds() -> Iterator[list[BatchWorld]]:
    made: list[BatchWorld] = []
    yield made
    for one in made:
        one.close()


def begun(worlds: list[BatchWorld], spec: dict[str, Any], **options: Any) -> BatchWorld:
    world = BatchWorld(spec, **options)
    worlds.append(world)
    world.lead()
    return world


def conditions(world: BatchWorld) -> set[str]:
    return {one["type"] for one in world.status["conditions"] if one["status"] == "True"}


def test_each_item_runs_once_and_the_batch_succeeds(worlds: list[BatchWorld]) -> None:
    world = begun(worlds, {"count": 30})
    world.finish()
    world.check_end()
    assert world.phase == "Succeeded"
    assert world.runs == dict.fromkeys(range(30), 1)
    assert world.payloads[7] == b'{"index":7}'
    assert conditions(world) == {"Finished", "Complete"}
    assert (world.status["total"], world.status["succeeded"]) == (30, 30)
    assert world.status["percent"] == 100
    assert world.operator.ended == ["b Succeeded"]


@pytest.mark.parametrize("spec", [{"count": 0}, {"items": []}])
def test_a_batch_without_items_is_complete_at_once(
    worlds: list[BatchWorld], spec: dict[str, Any]
) -> None:
    world = begun(worlds, spec)
    world.write()
    assert (world.phase, world.status["total"]) == ("Succeeded", 0)
    assert len(world.writes) == 1


def test_items_of_the_object_are_the_payloads(worlds: list[BatchWorld]) -> None:
    items = [{"url": f"http://x/{n}", "n": n} for n in range(5)]
    world = begun(worlds, {"items": items})
    world.finish()
    assert [orjson.loads(world.payloads[n]) for n in range(5)] == items


def test_items_of_a_config_map_are_waited_for_and_read(worlds: list[BatchWorld]) -> None:
    world = begun(worlds, FROM_CONFIG_MAP)
    world.pass_time(1.1)
    world.write()
    assert (world.phase, world.status["reason"]) == ("Blocked", "ItemsNotFound")
    lines = '{"a": 1}\n\n  {"a": 2}\n'
    world.operator.harness.api.objects[CONFIG_MAP] = {"data": {"lines": lines}}
    world.pass_time(6.0)
    world.finish()
    world.check_end()
    assert world.phase == "Succeeded"
    assert [world.payloads[n] for n in range(2)] == [b'{"a": 1}', b'{"a": 2}']


@pytest.mark.parametrize("text", ["{", "[1]", '{"a": NaN}', '{"a": 123456789012345678901}'])
def test_a_line_that_is_no_json_object_fails_the_batch_and_is_named(
    worlds: list[BatchWorld], text: str
) -> None:
    world = BatchWorld(FROM_CONFIG_MAP)
    worlds.append(world)
    world.operator.harness.api.objects[CONFIG_MAP] = {"data": {"lines": "{}\n" + text}}
    world.lead()
    world.finish()
    world.check_end()
    assert (world.phase, world.status["reason"]) == ("Failed", "Invalid")
    assert "line 2" in world.status["message"]
    assert not world.runs


def test_items_that_were_changed_fail_the_batch_when_the_operator_starts_again(
    worlds: list[BatchWorld],
) -> None:
    world = begun(worlds, {"items": [{"n": n} for n in range(9)]})
    world.run()
    world.pass_time(1.1)
    world.write()
    world.object["spec"]["items"][8] = {"n": 88}
    world.restart()
    world.finish()
    world.check_end()
    assert (world.phase, world.status["reason"]) == ("Failed", "ItemsChanged")


def test_a_batch_with_failed_items_fails_and_says_which_and_why(worlds: list[BatchWorld]) -> None:
    world = begun(worlds, {"count": 20}, fails=lambda index: index % 2 == 1)
    world.finish()
    world.check_end()
    assert (world.phase, world.status["reason"]) == ("Failed", "ItemsFailed")
    assert (world.status["succeeded"], world.status["failed"]) == (10, 10)
    assert world.status["failedIndexes"] == "1,3,5,7,9,11,13,15,17,19"
    assert world.status["errors"] == [
        {"type": "Boom", "count": 10, "indexes": [1, 3, 5], "message": "it broke"}
    ]
    assert conditions(world) == {"Finished", "Failed", "Stalled"}


def test_items_are_retried_by_the_policy_and_count_as_retried(worlds: list[BatchWorld]) -> None:
    world = begun(worlds, {"count": 3}, fails=lambda index: index == 1, max_attempts=3)
    world.finish()
    world.check_end()
    assert world.runs == {0: 1, 1: 3, 2: 1}
    assert (world.status["failed"], world.status["retried"]) == (1, 2)


@pytest.mark.parametrize(("limit", "phase"), [(2, "Succeeded"), (1, "Failed")])
def test_so_many_items_may_fail_and_no_more(
    worlds: list[BatchWorld], limit: int, phase: str
) -> None:
    world = begun(worlds, {"count": 40, "maxFailedItems": limit}, fails=lambda n: n in (3, 5))
    world.finish()
    world.check_end()
    assert world.phase == phase
    if phase == "Failed":
        assert world.status["reason"] == "TooManyFailures"
        assert world.status["cancelled"] > 20
        assert sum(world.status.get(k, 0) for k in ("succeeded", "failed", "cancelled")) == 40


def test_few_items_are_on_their_way_and_what_waits_is_the_backlog(
    worlds: list[BatchWorld],
) -> None:
    world = begun(worlds, {"count": 1000}, slots=3)
    assert len(world.queue) == 6
    assert world.operator.harness.dispatcher.waiting == 994


def test_parallelism_bounds_what_is_under_way(worlds: list[BatchWorld]) -> None:
    world = begun(worlds, {"count": 10, "parallelism": 1}, slots=8)
    assert len(world.queue) == 1
    world.run()
    assert [message.uid for message in world.queue] == ["batch/1"]


def test_the_older_batch_of_a_priority_comes_first(worlds: list[BatchWorld]) -> None:
    world = begun(worlds, {"count": 100}, slots=2)
    other = {
        **world.object,
        "metadata": {**world.object["metadata"], "name": "c", "uid": "other"},
        "spec": {**world.object["spec"], "priority": 5, "count": 3},
    }
    world.do(lambda: world.operator.batches.on_upserted(other))
    world.run()
    assert world.queue[-1].uid == "other/0"


def test_a_task_is_published_at_once_beside_a_batch(worlds: list[BatchWorld]) -> None:
    world = begun(worlds, {"count": 100_000}, slots=4)
    harness = world.operator.harness

    async def add() -> list[str]:
        harness.add("single", created=1e6)
        await turn()
        return harness.publisher.names

    assert world.loop.run_until_complete(add()) == ["single"]


def test_an_outcome_is_acknowledged_after_the_flush_and_not_before(
    worlds: list[BatchWorld],
) -> None:
    world = begun(worlds, {"count": 10})
    world.pass_time(1.1)
    world.write()
    world.run()
    world.pass_time(2.0)
    assert not world.operator.harness.channel.acked
    assert world.operator.harness.writer.writes
    world.write()
    assert world.operator.harness.channel.acked == [1]
    assert world.recorded() == {0}


def test_what_ended_before_a_restart_and_was_not_recorded_counts_when_it_comes_again(
    worlds: list[BatchWorld],
) -> None:
    world = begun(worlds, {"count": 40})
    world.pass_time(1.1)
    world.write()
    for _ in range(10):
        world.run()
    world.restart(last_first=True)
    world.finish()
    world.check_end()
    assert world.phase == "Succeeded"
    assert sum(world.runs.values()) <= 40 + 4, "what was published, at most, runs twice"


def test_a_suspended_batch_recalls_its_items_after_it_is_on_record(
    worlds: list[BatchWorld],
) -> None:
    world = begun(worlds, {"count": 10}, slots=2)
    world.pass_time(1.1)
    world.write()
    world.edit(suspend=True)
    publisher = world.operator.harness.publisher
    assert not publisher.commands
    world.write()
    assert world.status["phase"] == "Suspended"
    assert world.status["epoch"] == 1
    assert [one.kind for one in publisher.commands] == [CommandKind.RELEASE] * 4
    world.queue.clear()
    world.pass_time(5.0)
    assert not world.queue
    world.edit(suspend=False)
    world.finish()
    world.check_end()
    assert world.phase == "Succeeded"
    suspended = [one for one in world.status["conditions"] if one["type"] == "Suspended"]
    assert [one["status"] for one in suspended] == ["False"]


def test_a_cancelled_batch_stops_its_items_and_counts_the_others(
    worlds: list[BatchWorld],
) -> None:
    world = begun(worlds, {"count": 10}, slots=2)
    world.run()
    world.edit(cancel=True)
    world.write()
    assert (world.phase, world.status["reason"]) == ("Cancelled", "Cancelled")
    assert (world.status["succeeded"], world.status["cancelled"]) == (1, 9)
    commands = world.operator.harness.publisher.commands
    assert [one.kind for one in commands] == [CommandKind.CANCEL] * 4
    world.finish()
    world.check_end()


def test_a_batch_over_its_deadline_fails(worlds: list[BatchWorld]) -> None:
    world = begun(worlds, {"count": 10, "activeDeadlineSeconds": 30})
    world.run()
    world.pass_time(31.5)
    world.write()
    assert (world.phase, world.status["reason"]) == ("Failed", "DeadlineExceeded")
    commands = world.operator.harness.publisher.commands
    assert [one.kind for one in commands] == [CommandKind.CANCEL] * 4
    world.pass_time(0.1)
    assert not world.operator.harness.tasks.tasks
    world.finish()
    world.check_end()


def test_the_deadline_of_a_queue_is_for_tasks_and_not_for_items(worlds: list[BatchWorld]) -> None:
    world = begun(worlds, {"count": 10}, active_deadline_seconds=5)
    world.pass_time(20.0)
    world.finish()
    world.check_end()
    assert world.phase == "Succeeded"


def test_a_deleted_batch_stops_its_items_and_its_outcomes_are_acknowledged(
    worlds: list[BatchWorld],
) -> None:
    world = begun(worlds, {"count": 10}, slots=2)
    world.run()
    world.delete()
    commands = world.operator.harness.publisher.commands
    assert len(commands) == 4
    world.finish()
    world.check_end()


def test_a_batch_of_a_queue_that_another_installation_serves_is_left_alone_until_it_is_ours(
    worlds: list[BatchWorld],
) -> None:
    world = begun(worlds, {"count": 10}, slots=2)
    world.pass_time(1.1)
    world.write()
    tasks = world.operator.harness.tasks
    world.do(lambda: tasks.leave_queue(("shop", "q")))
    assert not tasks.tasks
    world.queue.clear()
    world.pass_time(5.0)
    assert not world.queue
    assert not world.operator.harness.writer.writes
    world.do(lambda: tasks.take_queue(("shop", "q")))
    world.pass_time(1.1)
    world.finish()
    world.check_end()
    assert world.phase == "Succeeded"
    assert set(world.runs) == set(range(10))


def test_without_its_queue_a_batch_waits(worlds: list[BatchWorld]) -> None:
    world = BatchWorld({"count": 3})
    worlds.append(world)
    dispatcher, config = world.operator.harness.dispatcher, world.operator.harness.config
    world.do(lambda: setattr(dispatcher, "config", None))
    world.lead()
    world.pass_time(1.1)
    world.write()
    assert (world.phase, world.status["reason"]) == ("Blocked", "QueueNotFound")
    world.do(lambda: setattr(dispatcher, "config", config))
    world.pass_time(1.1)
    world.finish()
    world.check_end()
    assert world.phase == "Succeeded"


def test_a_batch_whose_status_is_refused_begins_once_more_from_what_is_on_record(
    worlds: list[BatchWorld],
) -> None:
    world = begun(worlds, {"count": 10}, slots=2)
    world.run()
    world.pass_time(1.1)
    path = "/apis/taskqueue.dev/v1alpha1/namespaces/shop/taskbatches/b"
    world.operator.harness.api.objects[path] = world.object
    for one in world.operator.harness.writer.writes:
        world.do(lambda one=one: one.refuse(422))  # type: ignore[misc]
    world.operator.harness.writer.writes.clear()
    world.queue.clear()
    world.pass_time(6.0)
    world.finish()
    world.check_end()
    assert world.phase == "Succeeded"


def test_a_final_status_names_the_generation_that_the_api_server_has(
    worlds: list[BatchWorld],
) -> None:
    world = begun(worlds, {"count": 1})
    world.run()
    world.object["metadata"]["generation"] = 4
    world.write()
    world.write()
    assert world.status["observedGeneration"] == 4
    assert len(world.operator.batches) == 0


def test_the_status_of_a_large_batch_stays_small(worlds: list[BatchWorld]) -> None:
    """With as many items open, in as many places, as there can be."""
    world = begun(worlds, {"count": 100_000})
    progress = BatchProgress(100_000)
    hold = 100_000 // (MOST_HELD + LARGEST_WINDOW)
    while (index := progress.begin_next()) is not None:
        if index % hold != index // hold % hold:
            kind = f"Error{index % 12}" + "x" * 70
            succeeded = index % 3 != 0
            end = ItemEnd(succeeded=succeeded, error=kind, message="why " * 100)
            progress.end(index, end)
    batch, state = read_batch(world.object), read_state(world.object)
    body = status_body(batch, replace(state, record=progress.record()), now=0.0)
    assert len(json.dumps(body)) < 9_000
    again = read_state({"status": body}).record
    assert again == progress.record()


def test_failed_items_that_are_left_out_of_the_status_are_known_to_be(
    worlds: list[BatchWorld],
) -> None:
    world = begun(worlds, {"count": 9})
    batch, state = read_batch(world.object), read_state(world.object)
    record = BatchRecord(total=9, begun=9, succeeded=7, failures=2, failed=None)
    body = status_body(batch, replace(state, record=record), now=0.0)
    assert read_state({"status": body}).record == record
    none = BatchRecord(total=9, begun=9, succeeded=9)
    body = status_body(batch, replace(state, record=none), now=0.0)
    assert read_state({"status": body}).record == none


def test_an_item_that_waits_for_its_handler_blocks_the_batch(worlds: list[BatchWorld]) -> None:
    world = begun(worlds, {"count": 1})
    (message,) = world.queue
    event = AttemptEvent(
        kind=EventKind.FAILED,
        namespace="shop",
        queue="q",
        task="b",
        uid=message.uid,
        token=message.token,
        attempt=1,
        epoch=0,
        worker="pod-1",
        seconds=0.0,
        error=EventError(type="UnknownHandler", message="no resize here", reserved=True),
    )
    world.do(lambda: world.deliver(encode(event)))
    world.pass_time(1.1)
    world.write()
    assert (world.phase, world.status["reason"]) == ("Blocked", "UnknownHandler")


class Life(RuleBasedStateMachine):
    """What users, workers, the API server and restarts do to one batch, in any order."""

    @initialize(
        total=st.integers(0, 12),
        failing=st.sampled_from([0, 2, 3]),
        limit=st.sampled_from([None, 1]),
    )
    def begin(self, total: int, failing: int, limit: int | None) -> None:
        spec: dict[str, Any] = {"count": total}
        if limit is not None:
            spec["maxFailedItems"] = limit
        self.failing = failing
        self.total = total
        self.is_cancelled = False
        self.world = BatchWorld(spec, fails=self.fails, max_attempts=2)
        self.world.lead()

    def fails(self, index: int) -> bool:
        return bool(self.failing) and index % self.failing == 1

    @rule(place=st.integers(0, 5))
    def worker_runs(self, place: int) -> None:
        self.world.run(place)

    @rule()
    def api_server_answers(self) -> None:
        self.world.write()

    @rule(seconds=st.sampled_from([0.2, 1.1, 6.0]))
    def time_passes(self, seconds: float) -> None:
        self.world.pass_time(seconds)

    @rule(last_first=st.booleans())
    def operator_restarts(self, last_first: bool) -> None:
        self.world.restart(last_first=last_first)

    @rule(suspend=st.booleans())
    def user_suspends_or_resumes(self, suspend: bool) -> None:
        if self.world.phase not in TERMINAL and not self.world.is_deleted:
            self.world.edit(suspend=suspend)

    @rule(sure=st.integers(0, 5))
    def user_cancels(self, sure: int) -> None:
        if self.world.phase not in TERMINAL and not self.world.is_deleted and sure == 0:
            self.is_cancelled = True
            self.world.edit(cancel=True)

    @precondition(lambda self: not self.world.is_deleted)
    @rule(sure=st.integers(0, 9))
    def user_deletes(self, sure: int) -> None:
        if sure == 0:
            self.world.delete()

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        world = self.world
        if world.phase not in TERMINAL and not world.is_deleted:
            world.edit(suspend=False)
        world.finish()
        world.check_end()
        if not world.is_deleted:
            self._check_status()
        world.close()

    def _check_status(self) -> None:
        status = self.world.status
        assert self.world.phase in TERMINAL
        ends = [status.get(name, 0) for name in ("succeeded", "failed", "cancelled")]
        assert sum(ends) == status["total"] == self.total
        if self.world.phase == "Succeeded" or status["reason"] == "ItemsFailed":
            bad = sum(map(self.fails, range(self.total)))
            assert ends == [self.total - bad, bad, 0]
            assert set(self.world.runs) == set(range(self.total))
        assert self.is_cancelled or self.world.phase != "Cancelled"


Life.TestCase.settings = settings(
    max_examples=40,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
TestLife = Life.TestCase
