"""A status that the API server refuses: shorter, then read, then let go of; step by step."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from typing import Any

import pytest

from taskqueue.contract.outcome import EventKind
from taskqueue.controller.metrics import OUTCOMES_DROPPED, STATUSES_REFUSED
from taskqueue.controller.tasks import events
from taskqueue.controller.tasks.events import Confirmation, Timer
from taskqueue.controller.tasks.refusals import LONGEST_READ_SECONDS
from taskqueue.kubernetes.task_codec import task_path
from taskqueue.model.task import StatusDetail
from tests.unit.controller.fakes import TaskHarness, raw_task, turn
from tests.unit.controller.tasks.task_life import PLAIN
from tests.unit.controller.tasks.task_model import TaskModel

TOO_LARGE = "etcdserver: request is too large"
FULL, SHORT, BARE = StatusDetail.FULL, StatusDetail.SHORT, StatusDetail.BARE


def published() -> TaskModel:
    model = TaskModel.of(PLAIN)
    model.send(events.Seen())
    model.give_turn()
    model.settle(model.copies[-1], Confirmation.CONFIRMED, arrived=True)
    return model


def ended() -> TaskModel:
    model = published()
    model.report(model.copies[0], "succeeded")
    return model


def answer(model: TaskModel, code: int) -> StatusDetail:
    """Answer the status that waits to be written, and return in which detail it was."""
    (put,) = model.puts
    model.begin_write()
    model.end_write(code)
    return put.detail


def refuse_all(model: TaskModel) -> list[StatusDetail]:
    details = []
    while model.puts:
        details.append(answer(model, 422))
    return details


def read(model: TaskModel) -> float:
    """Let time pass until the object was read, and return how long that took."""
    pause = model.timers[Timer.READ] - model.now
    model.pass_time(pause)
    model.end_reads()
    return pause


def test_refused_status_is_written_shorter_step_by_step_and_then_read() -> None:
    model = ended()
    assert refuse_all(model) == [FULL, SHORT, BARE]
    assert not model.acknowledged
    read(model)
    assert answer(model, 200) is BARE
    model.confirm_completion()
    assert model.acknowledged == {0}
    assert not model.is_reported


def test_outcome_of_a_status_refused_again_after_a_read_is_let_go_of_with_an_event() -> None:
    model = ended()
    refuse_all(model)
    read(model)
    assert refuse_all(model) == [BARE]
    assert model.acknowledged == {0}
    assert model.is_reported
    assert model.is_tracked


def test_refused_status_is_tried_again_after_growing_pauses() -> None:
    model = ended()
    refuse_all(model)
    pauses = []
    for _ in range(10):
        pauses.append(read(model))
        assert refuse_all(model) == [BARE]
    assert all(after > before for before, after in pairwise(pauses[:6]))
    assert LONGEST_READ_SECONDS / 2 < pauses[-1] <= LONGEST_READ_SECONDS
    read(model)
    assert answer(model, 200) is BARE
    model.confirm_completion()
    assert model.ends == model.ttl_started == 1


def test_another_status_is_tried_in_full_and_its_outcome_let_go_of_at_once() -> None:
    model = published()
    model.report(model.copies[0], "failed", retry_after=60.0)
    model.pass_time(2.1)
    refuse_all(model)
    read(model)
    refuse_all(model)
    assert model.acknowledged == {0}
    model.pass_time(60.0)
    model.give_turn()
    model.settle(model.copies[-1], Confirmation.CONFIRMED, arrived=True)
    model.report(model.copies[1], "succeeded")
    assert refuse_all(model) == [FULL, SHORT, BARE]
    assert model.acknowledged == {0, 1}


def test_end_that_replaces_a_refused_status_is_written_shorter_too() -> None:
    model = published()
    model.report(model.copies[0], "started")
    model.pass_time(2.1)
    assert answer(model, 422) is FULL
    model.report(model.copies[0], "succeeded")  # before Running is written in short
    model.begin_write()
    model.end_write(422)
    assert refuse_all(model) == [SHORT, BARE]


def test_end_written_in_short_with_an_old_generation_is_written_in_short_again() -> None:
    model = ended()
    answer(model, 422)
    model.edit(priority=7, lags=True)
    assert answer(model, 200) is SHORT
    assert answer(model, 200) is SHORT
    assert not model.is_tracked


def test_a_write_of_the_same_status_refused_twice_is_shortened_once() -> None:
    model = ended()
    (put,) = model.puts
    for _ in range(2):
        model.send(events.StatusRejected(put.status, 422, "no", detail=FULL))
    assert [one.detail for one in model.puts[1:]] == [SHORT]


def test_deleted_task_is_dropped_however_its_status_was_refused() -> None:
    model = ended()
    refuse_all(model)
    model.is_deleted = True
    read(model)
    assert model.acknowledged == {0}
    assert not model.is_tracked
    assert not model.is_reported


def test_outcome_is_held_for_a_status_that_is_only_behind_another_writer() -> None:
    model = ended()
    refuse_all(model)
    read(model)
    model.raise_numbers(attempts=1, epochs=1)
    assert answer(model, 200) is BARE
    assert not model.acknowledged
    read(model)
    assert answer(model, 200) is FULL
    model.confirm_completion()
    assert model.acknowledged == {0}


def test_object_that_is_found_but_whose_status_is_not_is_let_go_of_too() -> None:
    model = ended()
    for _ in range(3):
        answer(model, 404)
        read(model)
    assert model.acknowledged == {0}
    assert model.is_reported


@pytest.mark.looptime
async def test_task_that_cannot_be_recorded_gets_an_event_and_holds_no_message() -> None:
    harness = TaskHarness()
    entry = await harness.published()
    harness.api.objects[task_path("shop", "t")] = raw_task()
    counters: list[Any] = [STATUSES_REFUSED, OUTCOMES_DROPPED.labels("unrecorded")]
    before = [one._value.get() for one in counters]
    tag = harness.event(entry, EventKind.SUCCEEDED)
    for _ in range(3):
        harness.writer.writes[-1].refuse(500, TOO_LARGE)
    await asyncio.sleep(6)
    assert not harness.channel.acked
    harness.writer.writes[-1].refuse(500, TOO_LARGE)
    await turn()
    assert harness.channel.acked == [tag]
    assert harness.refused == [("t", TOO_LARGE)]
    assert [one._value.get() for one in counters] == [value + 1 for value in before]
    assert not harness.recorded
    await asyncio.sleep(30)
    harness.writer.writes[-1].succeed()
    await turn()
    assert harness.recorded == ["t"]
    assert not harness.entries
