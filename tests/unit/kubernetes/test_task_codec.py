"""How a Task's status is written: in full, and shorter when the API server refuses that."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import orjson
from hypothesis import given
from hypothesis import strategies as st

from taskqueue.api.task_status import TaskResourceStatus
from taskqueue.kubernetes.task_codec import read_task, status_patch
from taskqueue.limits import HISTORY_LENGTH, STATUS_MESSAGE_LENGTH
from taskqueue.model.result import ResultReference
from taskqueue.model.task import AttemptRecord, Phase, ProgressState, StatusDetail, TaskState
from tests.unit.controller.fakes import EPOCH, raw_task

FULL, SHORT, BARE = StatusDetail.FULL, StatusDetail.SHORT, StatusDetail.BARE
TASK = read_task(raw_task())
#: As much as the schema and the limits let a status hold.
LARGE = TaskState(
    phase=Phase.RETRYING,
    reason="Boom",
    message="m" * STATUS_MESSAGE_LENGTH,
    attempts=12,
    epoch=3,
    history=tuple(
        AttemptRecord(number, "Failed", EPOCH, EPOCH + 1, "pod", "Boom", "x" * 1024)
        for number in range(2, 2 + HISTORY_LENGTH)
    ),
    start_time=EPOCH,
    next_attempt_time=EPOCH + 60,
    worker="pod",
    progress=ProgressState(50, "p" * 1024),
    concurrency_key="k",
    snoozes=2,
    resumed_time=EPOCH,
    checkpoint=b'{"at":"%s"}' % (b"c" * 16_000),
    result={"text": "r" * 16_000},
    result_ref=ResultReference(
        key="shop/q/u/1-0",
        size_bytes=1,
        content_type="image/png",
        sha256="0" * 64,
        expiration_time=EPOCH,
    ),
)

times = st.none() | st.floats(EPOCH, EPOCH + 1e6)
texts = st.text(max_size=40)
records = st.builds(
    AttemptRecord,
    attempt=st.integers(1, 30),
    outcome=st.sampled_from(["Succeeded", "Failed", "Cancelled"]),
    start_time=st.just(EPOCH),
    finish_time=st.just(EPOCH),
    worker=texts,
    reason=texts,
    message=texts,
)
states = st.builds(
    TaskState,
    phase=st.sampled_from(Phase),
    reason=texts,
    message=texts,
    attempts=st.integers(0, 30),
    epoch=st.integers(0, 30),
    history=st.lists(records, max_size=HISTORY_LENGTH).map(tuple),
    start_time=times,
    next_attempt_time=times,
    worker=texts,
    progress=st.none() | st.builds(ProgressState, st.none() | st.integers(0, 100), texts),
    concurrency_key=st.sampled_from(["", "k"]),
    snoozes=st.integers(0, 3),
    resumed_time=times,
    checkpoint=st.none() | st.just(b'{"at":7}'),
    result=st.none() | st.just({"n": 1}),
    result_ref=st.none()
    | st.builds(
        ResultReference,
        key=texts.filter(bool),
        size_bytes=st.integers(0, 1000),
        content_type=texts,
        sha256=st.just("0" * 64),
        expiration_time=times,
    ),
)


def body(state: TaskState, detail: StatusDetail, why: str = "too large") -> dict[str, Any]:
    same, change = orjson.loads(status_patch(TASK, state, now=EPOCH, detail=detail, why=why))
    assert same == {"op": "test", "path": "/metadata/uid", "value": TASK.uid}
    assert (change["op"], change["path"]) == ("add", "/status")
    status: dict[str, Any] = change["value"]
    return status


def test_shorter_statuses_are_much_shorter() -> None:
    full, short, bare = (len(orjson.dumps(body(LARGE, one))) for one in (FULL, SHORT, BARE))
    assert full > 40_000
    assert short < 1500
    assert bare < 300


def test_short_status_says_why_it_is_short() -> None:
    short = body(LARGE, SHORT, "w" * 5000)
    assert short["message"].startswith("recorded in short, because")
    assert len(short["message"]) == STATUS_MESSAGE_LENGTH
    assert short["conditions"][0]["type"] == "Reconciling"
    assert not {"result", "checkpoint", "progress"} & short.keys()


@given(state=states, detail=st.sampled_from(StatusDetail))
def test_another_leader_goes_on_from_any_form_of_a_status(
    state: TaskState, detail: StatusDetail
) -> None:
    if state.phase.terminal:
        state = replace(state, completion_time=EPOCH, next_attempt_time=None, concurrency_key="")
    raw = body(state, detail)
    TaskResourceStatus.model_validate(raw)
    found = read_task(raw_task(status=raw)).status
    kept = ["phase", "reason", "attempts", "epoch"]
    if not state.phase.terminal:
        kept += ["concurrency_key", "snoozes", "current_attempt"]
    assert [getattr(found, name) for name in kept] == [getattr(state, name) for name in kept]
    for name in ("completion_time", "next_attempt_time"):
        before, after = getattr(state, name), getattr(found, name)
        assert (before is None) == (after is None)
        assert before is None or abs(after - before) < 0.002
    shorter = {StatusDetail.FULL: SHORT, SHORT: BARE}.get(detail)
    if shorter is not None:
        assert body(state, shorter).keys() <= raw.keys() | {"message"}  # which says why


@given(
    numbers=st.fixed_dictionaries(
        {}, optional={"attempts": st.integers(0, 99), "epoch": st.integers(0, 99)}
    )
)
def test_numbers_of_another_writer_are_read_before_the_operator_has_written_any(
    numbers: dict[str, int],
) -> None:
    unwritten = {"phase": "Pending", "observedGeneration": -1}
    found = read_task(raw_task(status=unwritten | numbers)).status
    assert (found.attempts, found.epoch) == (numbers.get("attempts", 0), numbers.get("epoch", 0))
