"""The machine keeps its promises over random lives, and in single lives step by step."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import replace
from enum import Enum
from typing import Any

import pytest

from taskqueue.controller.tasks import effects, events
from taskqueue.controller.tasks.events import Confirmation, Timer
from taskqueue.controller.tasks.lifecycle import PHASES
from taskqueue.controller.tasks.machine import step
from taskqueue.controller.tasks.tracked_task import TaskStage
from taskqueue.controller.tasks.transition import STAGES
from taskqueue.limits import SNOOZES
from taskqueue.model.command import CommandKind
from taskqueue.model.task import Phase, Policy, PolicyOverrides, TaskState
from tests.unit.controller.tasks.task_life import (
    KEYED,
    LIVES,
    PLAIN,
    STARTS,
    Life,
    life_settings,
)
from tests.unit.controller.tasks.task_model import TaskModel
from tests.unit.controller.tasks.task_record import MAX_DELIVERIES, POLICY, START

TestLife = Life.TestCase
TestLife.settings = life_settings(LIVES)


@pytest.mark.long
@pytest.mark.timeout(1800)
class TestManyNewLives(Life.TestCase):  # type: ignore[misc, valid-type]
    """Other lives at each run."""

    settings = life_settings(10_000, new=True)


def seen(model: TaskModel) -> TaskModel:
    model.send(events.Seen())
    return model


def published(model: TaskModel) -> TaskModel:
    """Return a Task whose attempt the broker has."""
    seen(model).give_turn()
    write(model)
    model.settle(model.copies[-1], Confirmation.CONFIRMED, arrived=True)
    return model


def write(model: TaskModel, code: int = 200) -> None:
    model.begin_write()
    model.end_write(code)


def test_success_is_acknowledged_after_its_write_and_its_completion_event() -> None:
    model = published(TaskModel.of(PLAIN))
    model.report(model.copies[0], "succeeded")
    assert not model.acknowledged
    write(model)
    assert not model.acknowledged
    model.confirm_completion()
    assert model.acknowledged == {0}
    assert model.ttl_started == 1


def test_failed_attempt_is_acknowledged_after_the_write_of_its_retry() -> None:
    model = published(TaskModel.of(PLAIN))
    model.report(model.copies[0], "failed")
    assert (model.tracked.status.phase, model.puts) == (Phase.RETRYING, [])
    model.pass_time(2.1)
    assert not model.acknowledged
    write(model)
    assert model.acknowledged == {0}


@pytest.mark.parametrize("how", ["reported", "unreported"])
def test_without_its_queue_a_failed_attempt_waits_as_by_default(how: str) -> None:
    model = published(TaskModel.of(PLAIN))
    model.policy = None
    model.send(events.EnvironmentChanged())
    if how == "reported":
        model.report(model.copies[0], "failed")
    else:
        model.pass_time(Policy().attempt_timeout_seconds + 11.0)
        model.give_up_on_worker()
    model.policy = POLICY
    model.send(events.EnvironmentChanged())
    model.pass_time(0.9)
    assert not model.is_queued
    model.pass_time(0.2)  # one second by default, two by this queue
    assert model.is_queued
    model.give_turn()


def test_snooze_waits_until_its_time_and_is_acknowledged_after_its_write() -> None:
    model = published(TaskModel.of(KEYED))
    model.report(model.copies[0], "snoozed")
    status = model.tracked.status
    assert (status.phase, status.reason, model.stage) == (
        Phase.SCHEDULED,
        "Snoozed",
        TaskStage.HELD,
    )
    model.pass_time(2.1)
    assert not model.acknowledged
    write(model)
    assert model.acknowledged == {0}
    model.pass_time(2.8)
    assert model.stage is TaskStage.HELD
    model.pass_time(0.2)
    assert (model.stage, model.tracked.status.current_attempt) == (TaskStage.WAITING, 1)


def test_checkpoint_is_acknowledged_after_its_write_and_published_with_the_attempt() -> None:
    model = published(TaskModel.of(PLAIN))
    model.report(model.copies[0], "checkpoint")
    model.report(model.copies[0], "released", deliveries=1)
    assert model.acknowledged == {1}
    model.give_turn()
    assert (model.stage, len(model.copies)) == (TaskStage.PUBLISHED, 2)
    model.pass_time(2.1)
    assert model.acknowledged == {1}
    write(model)
    assert model.acknowledged == {0, 1}
    assert model.on_record.checkpoint == b'{"n":0}'


def test_later_checkpoint_replaces_one_that_is_not_written() -> None:
    model = published(TaskModel.of(PLAIN))
    for count in range(3):
        model.report(model.copies[0], "checkpoint")
        assert model.acknowledged == set(range(count))
    model.pass_time(9.9)
    assert not model.puts
    model.pass_time(0.2)
    write(model)
    assert (model.acknowledged, model.on_record.checkpoint) == ({0, 1, 2}, b'{"n":2}')


def test_checkpoint_does_not_hold_up_the_write_of_the_phase() -> None:
    model = published(TaskModel.of(PLAIN))
    model.report(model.copies[0], "checkpoint")
    model.report(model.copies[0], "started")
    model.pass_time(1.6)
    assert [one.status.phase for one in model.puts] == [Phase.RUNNING]


def test_end_lets_its_last_checkpoint_go_and_keeps_what_it_said() -> None:
    model = published(TaskModel.of(PLAIN))
    model.report(model.copies[0], "checkpoint")
    model.edit(cancel=True)
    assert model.acknowledged == {0}
    assert model.tracked.status.checkpoint == b'{"n":0}'


def test_attempt_that_loses_workers_without_progress_has_failed() -> None:
    model = published(TaskModel.of(PLAIN))
    for lost in range(1, MAX_DELIVERIES):
        model.report(model.copies[-1], "released", deliveries=1)
        model.give_turn()
        assert model.tracked.deliveries == lost
    model.report(model.copies[-1], "released", deliveries=1)
    assert (model.tracked.status.phase, model.tracked.status.reason) == (
        Phase.RETRYING,
        "WorkerLost",
    )
    assert model.tracked.deliveries == 0


def test_checkpoint_forgives_the_workers_lost_before() -> None:
    model = published(TaskModel.of(PLAIN))
    for _ in range(3 * MAX_DELIVERIES):
        model.report(model.copies[-1], "checkpoint")
        model.report(model.copies[-1], "released", deliveries=1)
        model.give_turn()
    assert (model.stage, model.tracked.status.attempts) == (TaskStage.PUBLISHED, 0)


def test_retry_has_the_last_checkpoint() -> None:
    model = published(TaskModel.of(PLAIN))
    model.report(model.copies[0], "checkpoint")
    model.report(model.copies[0], "failed")
    assert model.tracked.status.checkpoint == b'{"n":0}'
    write(model)


def test_snooze_does_not_hold_up_the_deadline() -> None:
    deadline = PolicyOverrides(active_deadline_seconds=4)
    model = published(TaskModel.of(replace(PLAIN, overrides=deadline)))
    model.report(model.copies[0], "snoozed")
    model.pass_time(4.1)
    assert model.tracked.status.reason == "DeadlineExceeded"


def test_snooze_above_the_limit_fails_the_task() -> None:
    model = published(TaskModel.of(PLAIN, TaskState(attempts=1, snoozes=SNOOZES)))
    model.report(model.copies[0], "snoozed")
    status = model.tracked.status
    assert (status.phase, status.reason) == (Phase.FAILED, "NonRetryable")
    assert status.history[-1].reason == "SnoozeLimit"


def test_end_without_an_outcome_waits_for_no_confirm() -> None:
    model = published(TaskModel.of(PLAIN))
    model.edit(cancel=True)
    write(model)
    assert model.tracked.status.phase is Phase.CANCELLED
    assert (model.ttl_started, model.is_announced) == (1, False)


def test_recall_is_commanded_after_the_write_of_its_epoch() -> None:
    model = published(TaskModel.of(PLAIN))
    model.edit(suspend=True)
    assert not model.commands
    write(model)
    assert model.commands == [effects.SendCommand(CommandKind.RELEASE, attempt=1, epoch=0)]
    assert model.on_record.epoch == 1


def test_claim_is_published_with_the_version_of_its_write() -> None:
    model = seen(TaskModel.of(KEYED))
    model.give_turn()
    assert (model.stage, model.copies) == (TaskStage.CLAIMING, [])
    write(model)
    assert model.stage is TaskStage.PUBLISHED
    assert model.fence == model.version


def test_claim_written_by_a_process_that_may_not_lead_is_not_published() -> None:
    model = seen(TaskModel.of(KEYED))
    model.give_turn()
    model.leads = False
    write(model)
    assert (model.stage, model.copies) == (TaskStage.WAITING, [])


def test_claim_that_was_not_written_is_not_relied_on_after_a_hold() -> None:
    """Though a former leader may have published it, that was not by this claim."""
    model = seen(TaskModel.of(KEYED, TaskState(epoch=1)))
    model.give_turn()
    assert model.stage is TaskStage.CLAIMING
    for model.policy in (None, POLICY):
        model.send(events.EnvironmentChanged())
    assert (model.stage, model.tracked.status.concurrency_key) == (TaskStage.WAITING, "")
    model.give_turn()
    assert (model.stage, model.copies) == (TaskStage.CLAIMING, [])


def test_claim_of_a_former_leader_counts_as_published() -> None:
    model = published(TaskModel.of(KEYED))
    status = model.on_record
    adopted = seen(TaskModel.of(KEYED, status))
    assert adopted.stage is TaskStage.PUBLISHED
    assert not adopted.copies
    assert adopted.has_key


def test_unclear_publish_with_a_key_is_not_repeated() -> None:
    model = seen(TaskModel.of(KEYED))
    model.give_turn()
    write(model)
    model.settle(model.copies[0], Confirmation.UNKNOWN, arrived=True)
    assert model.stage is TaskStage.PUBLISHED
    assert len(model.copies) == 1


def test_repeated_report_of_an_unknown_handler_does_not_end_the_next_attempt_with_a_key() -> None:
    model = published(TaskModel.of(KEYED))
    model.report(model.copies[0], "unknown handler")
    model.pass_time(6.0)
    model.give_turn()
    write(model)
    assert model.stage is TaskStage.PUBLISHED
    model.report(model.copies[0], "unknown handler")
    assert model.stage is TaskStage.PUBLISHED


def test_outcomes_of_a_deleted_task_are_acknowledged() -> None:
    model = published(TaskModel.of(PLAIN))
    model.report(model.copies[0], "succeeded")
    model.is_deleted = True
    write(model)
    model.pass_time(6.0)
    model.end_reads()
    assert model.acknowledged == {0}
    assert not model.is_tracked


def test_end_written_with_an_old_generation_is_written_again() -> None:
    model = published(TaskModel.of(PLAIN))
    model.report(model.copies[0], "succeeded")
    model.edit(priority=7, lags=True)
    write(model)
    assert model.is_tracked
    write(model)
    assert not model.is_tracked
    assert model.tracked.task.generation == 2


def test_retry_is_not_published_before_its_time() -> None:
    model = published(TaskModel.of(PLAIN))
    model.report(model.copies[0], "failed", retry_after=7.0)
    model.pass_time(6.9)
    assert (model.stage, model.copies[1:]) == (TaskStage.HELD, [])
    model.pass_time(0.2)
    assert model.stage is TaskStage.WAITING


def test_task_waits_until_start_after() -> None:
    model = seen(TaskModel.of(replace(PLAIN, start_after=START + 3)))
    assert (model.stage, model.timers[Timer.RECONCILE]) == (TaskStage.HELD, START + 3)
    model.pass_time(3.0)
    assert model.stage is TaskStage.WAITING


def test_unfinished_status_is_written_when_it_has_lasted() -> None:
    model = published(TaskModel.of(PLAIN))
    model.report(model.copies[0], "started")
    model.pass_time(1.4)
    assert not model.puts
    model.pass_time(0.2)
    assert [one.status.phase for one in model.puts] == [Phase.RUNNING]


def test_short_task_costs_one_write() -> None:
    model = published(TaskModel.of(PLAIN))
    model.report(model.copies[0], "started")
    model.pass_time(1.0)
    model.report(model.copies[0], "succeeded")
    assert [one.status.phase for one in model.puts] == [Phase.SUCCEEDED]


def test_stale_report_changes_nothing_and_is_acknowledged_at_once() -> None:
    model = published(TaskModel.of(PLAIN))
    model.edit(suspend=True)
    before = model.tracked
    model.report(model.copies[0], "succeeded")
    assert model.tracked is before
    assert model.acknowledged == {0}


@pytest.mark.parametrize("is_published", [False, True])
@pytest.mark.parametrize("start", sorted(STARTS))
def test_a_task_that_becomes_unreadable_ends_and_is_stopped(start: str, is_published: bool) -> None:
    model = seen(STARTS[start]())
    if is_published:
        if not model.is_queued:
            return
        model.give_turn()
        write(model)
        model.settle(model.copies[-1], Confirmation.CONFIRMED, arrived=True)
    epoch = model.tracked.status.epoch
    model.send(events.FoundUnreadable("flatten it"))
    model.send(events.FoundUnreadable("once more"))
    write(model)
    model.check()
    status = model.tracked.status
    assert (status.phase, status.reason, status.message) == (Phase.FAILED, "Invalid", "flatten it")
    assert status.epoch >= epoch
    # One more where a former leader may have published it.
    kinds = [one.kind for one in model.commands]
    assert kinds == [CommandKind.CANCEL] or (not kinds and not model.copies)
    assert (model.ends, model.is_tracked) == (1, False)


def test_step_needs_no_hash_of_a_receipt_or_a_source() -> None:
    """They are opaque: only their identity, or equality, counts."""
    model = published(TaskModel.of(PLAIN))
    about = events.ReportedAttempt(attempt=1, epoch=0, token="t", receipt=[1], source={})
    end = model._event(model.copies[0], "succeeded", 0, None)
    assert isinstance(end, events.AttemptSucceeded)
    after, todo = step(model.tracked, replace(end, about=about), model.environment)
    (put,) = (one for one in todo if isinstance(one, effects.WriteStatus))
    written = events.StatusWritten(put.status, put.receipts, generation=1)
    after, _ = step(after, written, model.environment)
    _, todo = step(after, events.CompletionConfirmed(), model.environment)
    assert todo[0] == effects.Acknowledge(([1],))


def parts(value: Any) -> Iterator[Any]:
    """Yield a value and all it consists of."""
    yield value
    if dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from parts(getattr(value, field.name))
    elif isinstance(value, Mapping):
        for one in (*value, *value.values()):
            yield from parts(one)
    elif isinstance(value, tuple | frozenset):
        for one in value:
            yield from parts(one)


def test_state_consists_of_plain_values_without_a_closure() -> None:
    model = published(TaskModel.of(KEYED))
    model.report(model.copies[0], "failed")
    model.report(model.copies[0], "failed")
    plain = (str, bytes, int, float, type(None), Enum, tuple, frozenset, dict)
    for value in parts(model.tracked):
        assert isinstance(value, plain) or dataclasses.is_dataclass(value), repr(value)
    assert "shop" in repr(model.tracked)


@pytest.mark.parametrize("final", [phase for phase in Phase if phase.terminal])
def test_nothing_follows_a_final_phase(final: Phase) -> None:
    assert not PHASES[final]


def test_every_phase_and_every_stage_is_in_its_table() -> None:
    assert set(PHASES) == set(Phase)
    assert set(STAGES) == set(TaskStage)
