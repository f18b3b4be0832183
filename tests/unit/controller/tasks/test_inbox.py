"""What comes into the inbox about Tasks that are no longer held, and direct messages."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import replace
from typing import Any

import pytest

from taskqueue.amqp.properties import BasicProperties
from taskqueue.amqp.publisher import Settled
from taskqueue.contract.batch import join
from taskqueue.contract.names import DEAD_EXCHANGE, HEARTBEATS_EXCHANGE, OUTCOMES_EXCHANGE
from taskqueue.contract.outcome import (
    AttemptEvent,
    EventError,
    EventKind,
    EventResultRef,
    encode,
)
from taskqueue.controller.tasks.tracked_task import TaskStage
from taskqueue.kubernetes.task_codec import task_path
from taskqueue.limits import (
    CHECKPOINT_BYTES,
    EVENT_BYTES,
    PARSED_EVENT_BYTES,
    RESULT_BYTES,
)
from taskqueue.model.queue import ResultsConfig
from taskqueue.model.task import Phase, Policy
from taskqueue.timestamps import from_rfc3339, to_rfc3339
from tests.unit.controller.fakes import EPOCH, TOKENS, TaskHarness, raw_task, turn

pytestmark = pytest.mark.looptime

FINISHED = {
    "phase": "Succeeded",
    "attempts": 1,
    "observedGeneration": 1,
    "completionTime": to_rfc3339(EPOCH - 5),
    "result": {"a": 1},
}


async def test_a_completion_is_published_after_the_write_and_before_the_acknowledgement() -> None:
    harness = TaskHarness()
    entry = await harness.published()
    tag = harness.event(entry, EventKind.SUCCEEDED)
    await asyncio.sleep(5)
    assert not harness.publisher.events
    harness.writer.writes[0].succeed()
    (event,) = harness.publisher.events
    assert (event["id"], event["type"]) == ("uid-t.1", "dev.taskqueue.task.succeeded.v1")
    assert harness.recorded == ["t"]
    assert not harness.channel.acked  # the event is not confirmed yet
    await turn()
    assert harness.channel.acked == [tag]


async def test_a_failed_attempt_that_is_retried_publishes_no_completion() -> None:
    harness = TaskHarness()
    entry = await harness.published()
    harness.failed(entry)
    await asyncio.sleep(3)
    harness.writer.writes[0].succeed()
    await turn()
    assert not harness.publisher.events


async def test_a_completion_is_published_again_for_a_task_no_longer_held() -> None:
    """Its former leader recorded it, and did not live to let the outcome go."""
    harness = TaskHarness()
    harness.open()
    harness.api.objects[task_path("shop", "t")] = raw_task("t", status=FINISHED)
    tag = harness.message(encode(_outcome()))
    assert not harness.channel.acked
    await asyncio.sleep(0.01)
    (event,) = harness.publisher.events
    assert (event["id"], event["data"]["result"]) == ("uid-t.1", {"a": 1})
    assert harness.channel.acked == [tag]


@pytest.mark.parametrize(
    "there",
    [
        None,
        raw_task("t"),
        {**raw_task("t", status=FINISHED), "metadata": {**raw_task("t")["metadata"], "uid": "b"}},
    ],
    ids=["deleted", "unfinished", "another of the name"],
)
async def test_an_outcome_without_a_finished_task_is_acknowledged(
    there: dict[str, Any] | None,
) -> None:
    harness = TaskHarness()
    harness.open()
    if there is not None:
        harness.api.objects[task_path("shop", "t")] = there
    tag = harness.message(encode(_outcome()))
    await asyncio.sleep(0.01)
    assert harness.channel.acked == [tag]
    assert not harness.publisher.events


@pytest.mark.parametrize("kind", [EventKind.RELEASED, EventKind.STARTED])
async def test_an_event_that_is_not_an_end_causes_no_read(kind: EventKind) -> None:
    harness = TaskHarness()
    harness.open()
    tag = harness.message(encode(_outcome(kind)))
    await asyncio.sleep(0.01)
    assert harness.channel.acked == [tag]
    assert not harness.api.asked


async def test_a_dead_letter_of_a_past_attempt_is_acknowledged() -> None:
    harness = TaskHarness()
    entry = harness.add("t")
    harness.open()
    await turn()
    message = harness.publisher.published[0].message
    harness.failed(entry)
    tag = harness.dead_letter(message, **{"x-last-death-reason": "delivery_limit"})
    assert harness.channel.acked == [tag]
    assert len(entry.status.history) == 1


async def test_a_dead_letter_of_a_direct_message_is_for_people() -> None:
    harness = TaskHarness()
    message = await _message(harness)
    properties = message.properties()
    properties.headers = {}
    tag = harness.message(message.body, exchange="taskqueue.dead", properties=properties)
    assert harness.channel.acked == [tag]
    assert not harness.given_up


@pytest.mark.parametrize(
    "origin",
    [
        {"tq-exchange": "taskqueue.direct"},
        {"x-death": [{"exchange": "taskqueue.direct"}], "tq-exchange": "taskqueue.work"},
    ],
)
async def test_a_dead_letter_that_was_a_direct_message_ends_no_attempt_whose_token_it_has(
    origin: dict[str, Any],
) -> None:
    harness = TaskHarness()
    message = await _message(harness)
    tag = harness.dead_letter(message, **origin)
    assert harness.channel.acked == [tag]
    assert harness.entries["uid-t"].stage is TaskStage.PUBLISHED


@pytest.mark.parametrize("batch", [False, True], ids=["alone", "in a batch"])
@pytest.mark.parametrize("held", [True, False], ids=["held", "late"])
@pytest.mark.parametrize("kind", [*EventKind, None])
async def test_the_content_of_an_event_is_not_kept_until_it_is_acknowledged(
    kind: EventKind | None, held: bool, batch: bool
) -> None:
    harness = TaskHarness()
    if held:
        await harness.published()
    else:
        harness.open()
        harness.api.objects[task_path("shop", "t")] = raw_task("t", status=FINISHED)
    checkpoint = {"a": 1} if kind is EventKind.CHECKPOINT else None
    event = (
        direct_end("") if kind is None else encode(replace(_outcome(kind), checkpoint=checkpoint))
    )
    body = join([event, event]) if batch else event
    before = sys.getrefcount(body)
    content_type = "application/cloudevents-batch+json" if batch else None
    harness.message(body, properties=BasicProperties(content_type, headers={"a": body}))
    assert sys.getrefcount(body) == before


@pytest.mark.parametrize("exchange", ["taskqueue.work", "taskqueue.direct", ""])
async def test_the_exchange_of_a_direct_message_is_known_from_its_end(exchange: str) -> None:
    harness = TaskHarness()
    harness.open()
    harness.message(direct_end(exchange))
    harness.message(direct_end(exchange), broker=object())
    harness.message(direct_end(exchange), routing_key="other.q.task.succeeded")
    assert harness.direct_ends == [(("shop", "q"), exchange)]


async def test_what_is_about_a_queue_of_another_operator_changes_nothing() -> None:
    harness = TaskHarness()
    harness.open()
    forged = encode(replace(_outcome(), namespace="other", token="k.00"))
    message = await _message(harness)
    letter = message.properties()
    letter.headers["tq-token"] = "k.00"
    tags = [
        harness.message(forged, routing_key="other.q.task.succeeded"),
        harness.message(direct_end("", "other"), routing_key="other.q.task.succeeded"),
        harness.message(b"no JSON", routing_key="other.q.task.succeeded"),
        harness.message(b"no JSON", routing_key="other.q.task.failed", problem="unreadable"),
        harness.message(b"{}", exchange=DEAD_EXCHANGE, routing_key="other.q", properties=letter),
    ]
    assert harness.channel.acked == tags
    assert not harness.given_up
    assert not harness.publisher.events
    assert not harness.direct_ends


async def test_an_outcome_that_its_token_proves_counts_without_its_task_queue() -> None:
    """Deleted, and perhaps created again: the Task waits for what its workers report."""
    harness = TaskHarness()
    entry = await harness.published()
    harness.queues.clear()
    harness.event(entry, EventKind.SUCCEEDED)
    assert entry.status.phase is Phase.SUCCEEDED


def direct_end(exchange: str, namespace: str = "shop") -> bytes:
    event = AttemptEvent(
        kind=EventKind.SUCCEEDED,
        namespace=namespace,
        queue="q",
        task="q",
        uid="",
        token="",
        attempt=1,
        epoch=0,
        worker="pod-1",
        exchange=exchange,
    )
    return encode(event)


async def test_a_forged_dead_letter_is_dropped() -> None:
    harness = TaskHarness()
    message = await _message(harness)
    tag = harness.dead_letter(message, **{"tq-token": "k.00"})
    assert harness.channel.acked == [tag]
    assert harness.entries["uid-t"].stage is TaskStage.PUBLISHED


async def test_an_outcome_is_acknowledged_once_whatever_is_written_meanwhile() -> None:
    harness = TaskHarness(max_attempts=9)
    entry = await harness.published()
    tag = harness.failed(entry)
    await asyncio.sleep(2.1)
    harness.add("t", suspend=True)
    await asyncio.sleep(2.1)
    assert len(harness.writer.writes) == 2
    for write in harness.writer.writes:
        write.succeed()
    await turn()
    assert harness.channel.acked == [tag]


async def test_an_unknown_handler_releases_the_key_on_record_first() -> None:
    harness = TaskHarness()
    entry = harness.add("t", concurrencyKey="k")
    harness.open()
    await turn()
    harness.writer.writes.pop().succeed()
    harness.publisher.settle(Settled.CONFIRMED)
    error = EventError(type="UnknownHandler", message="no handler 'resize'", reserved=True)
    tag = harness.event(entry, EventKind.FAILED, error=error)
    assert not harness.channel.acked
    await asyncio.sleep(2.1)
    harness.writer.writes.pop().succeed()
    assert harness.channel.acked == [tag]


def _outcome(kind: EventKind = EventKind.SUCCEEDED) -> AttemptEvent:
    return AttemptEvent(
        kind=kind,
        namespace="shop",
        queue="q",
        task="t",
        uid="uid-t",
        token=TOKENS.sign("uid-t", 1, 0),
        attempt=1,
        epoch=0,
        worker="pod-1",
        seconds=0.1,
        result={"a": 1} if kind is EventKind.SUCCEEDED else None,
    )


async def _message(harness: TaskHarness) -> Any:
    harness.add("t")
    harness.open()
    await turn()
    return harness.publisher.published[0].message


async def test_an_end_announced_again_starts_its_time_to_live() -> None:
    harness = TaskHarness()
    entry = await harness.published()
    harness.api.objects[task_path("shop", "t")] = raw_task("t", status=FINISHED)
    harness.event(entry, EventKind.SUCCEEDED)
    harness.writer.writes[-1].succeed()
    await turn()
    harness.completed.clear()  # as if the broker was lost before it confirmed that
    tag = harness.event(entry, EventKind.SUCCEEDED)
    await asyncio.sleep(1)
    assert tag in harness.channel.acked
    assert harness.completed == ["t"]


async def test_an_outcome_that_comes_again_while_it_is_written_is_acknowledged_with_it() -> None:
    harness = TaskHarness()
    entry = await harness.published()
    first = harness.failed(entry)
    await asyncio.sleep(3)
    (write,) = harness.writer.writes
    second = harness.failed(entry)
    assert not harness.channel.acked
    write.succeed()
    assert sorted(harness.channel.acked) == [first, second]


@pytest.mark.parametrize("exchange", [OUTCOMES_EXCHANGE, HEARTBEATS_EXCHANGE, DEAD_EXCHANGE])
async def test_a_message_that_cannot_be_read_is_parked_or_acknowledged(exchange: str) -> None:
    harness = TaskHarness()
    tag = harness.message(b"body", exchange=exchange, problem="its properties cannot be read")
    if exchange == OUTCOMES_EXCHANGE:
        ((delivery, reason),) = harness.given_up
        assert (delivery.body, reason) == (b"body", "its properties cannot be read")
    else:  # the dead queue has it too, and nobody needs a heartbeat of old
        assert harness.channel.acked == [tag]


async def test_an_outcome_whose_header_cannot_be_read_ends_its_attempt() -> None:
    harness = TaskHarness(max_attempts=1)
    entry = await harness.published()
    message = harness.message
    harness.message = lambda body: message(  # type: ignore[method-assign, misc, assignment]
        body, problem="its properties cannot be read"
    )
    harness.event(entry, EventKind.SUCCEEDED)
    assert entry.status.phase is Phase.FAILED
    assert "its properties cannot be read" in entry.status.message


async def test_a_checkpoint_is_kept_and_published_with_the_attempt() -> None:
    harness = TaskHarness()
    entry = await harness.published()
    tag = harness.event(entry, EventKind.CHECKPOINT, checkpoint={"step": 3})
    await asyncio.sleep(11)
    (write,) = harness.writer.writes
    assert write.status["checkpoint"] == {"step": 3}
    assert not harness.channel.acked
    write.succeed()
    assert harness.channel.acked == [tag]
    harness.event(entry, EventKind.RELEASED, deliveries=1)
    await turn()
    message = harness.publisher.published[-1].message
    assert (message.checkpointed, message.checkpoint) == (True, b'{"step":3}')
    assert message.max_deliveries == Policy().max_deliveries - 1


@pytest.mark.parametrize("checkpoint", [None, {"text": "x" * CHECKPOINT_BYTES}])
async def test_a_checkpoint_that_breaks_the_contract_does_not_end_its_attempt(
    checkpoint: dict[str, Any] | None,
) -> None:
    harness = TaskHarness()
    entry = await harness.published()
    harness.event(entry, EventKind.CHECKPOINT, checkpoint=checkpoint)
    await asyncio.sleep(11)
    assert not harness.writer.writes
    assert harness.entries[entry.uid].stage is TaskStage.PUBLISHED


@pytest.mark.parametrize(
    ("result", "place"),
    [
        (b'{"items": [1, {"loss": NaN}]}', "result.items[1].loss"),
        (b'{"loss": 18446744073709551615}', "result.loss"),
    ],
)
async def test_a_result_that_is_not_exact_fails_its_attempt_for_good(
    result: bytes, place: str
) -> None:
    harness = TaskHarness()
    entry = await harness.published("t")
    body = encode(replace(_outcome(), token=TOKENS.sign(entry.task.uid, 1, 0), result={}))
    tag = harness.message(body.replace(b'"result":{}', b'"result":' + result))
    await asyncio.sleep(5)
    status = harness.writer.writes[0].status
    assert (status["phase"], status["reason"]) == ("Failed", "NonRetryable")
    assert f"InvalidResult: {place}: " in status["message"]
    harness.writer.writes[0].succeed()
    await turn()
    await turn()
    assert harness.channel.acked == [tag]


async def test_an_event_above_the_limit_is_parked_unparsed() -> None:
    harness = TaskHarness()
    await harness.published("t")
    body = encode(_outcome())
    harness.message(body[:-1] + b" " * PARSED_EVENT_BYTES + b"}")
    ((delivery, reason),) = harness.given_up
    assert "the limit is 1048576" in reason
    assert len(delivery.body) > PARSED_EVENT_BYTES


async def test_an_event_that_is_too_large_without_its_result_ends_its_attempt() -> None:
    harness = TaskHarness(max_attempts=1)
    entry = await harness.published("t")
    large = replace(_outcome(), token=TOKENS.sign(entry.task.uid, 1, 0), worker="w" * EVENT_BYTES)
    harness.message(encode(large))
    await asyncio.sleep(5)
    status = harness.writer.writes[0].status
    assert status["phase"] == "Failed"
    assert "without its result or checkpoint, the limit is 65536" in status["message"]
    assert not harness.given_up


async def test_a_result_counts_as_compact_json_however_it_is_written() -> None:
    harness = TaskHarness()
    entry = await harness.published("t")
    event = replace(_outcome(), token=TOKENS.sign(entry.task.uid, 1, 0), result={"a": 1})
    written = ("é" * (RESULT_BYTES // 2 - 100)).encode("unicode_escape").replace(b"\\x", b"\\u00")
    body = encode(event).replace(
        b'{"a":1}', b'{"a": ' + b" " * EVENT_BYTES + b'"' + written + b'"}'
    )
    harness.message(body)
    await asyncio.sleep(5)
    assert harness.writer.writes[0].status["phase"] == "Succeeded"


@pytest.mark.parametrize(
    ("size", "phase"), [(RESULT_BYTES, "Succeeded"), (RESULT_BYTES + 1, "Failed")]
)
async def test_a_result_of_one_byte_too_many_is_too_large(size: int, phase: str) -> None:
    harness = TaskHarness()
    entry = await harness.published("t")
    result = {"a": "x" * (size - len('{"a":""}'))}
    harness.event(entry, EventKind.SUCCEEDED, result=result)
    await asyncio.sleep(5)
    assert harness.writer.writes[0].status["phase"] == phase


STORED = EventResultRef(size_bytes=7, content_type="image/png", sha256="0123abcd" * 8)


@pytest.mark.parametrize("retention", [None, 3600])
async def test_a_result_in_the_store_is_in_the_status_by_the_tasks_own_key(
    retention: int | None,
) -> None:
    """Whatever namespace and queue an outcome names: its token proves the attempt only."""
    harness = TaskHarness()
    harness.dispatcher.config = replace(
        harness.config, results=ResultsConfig(secret="s", retention_seconds=retention)
    )
    entry = await harness.published("t")
    token = TOKENS.sign(entry.task.uid, 1, 0)
    said = replace(_outcome(), token=token, result=None, result_ref=STORED)
    harness.message(encode(replace(said, queue="other", namespace="foreign")))
    await asyncio.sleep(5)
    status = harness.writer.writes[0].status
    assert status["phase"] == "Succeeded"
    assert "result" not in status
    reference = status["resultRef"]
    expires = reference.pop("expirationTime", None)
    assert reference == {
        "key": f"shop/q/{entry.task.uid}/1-0",
        "sizeBytes": 7,
        "contentType": "image/png",
        "sha256": "0123abcd" * 8,
    }
    assert (expires is None) is (retention is None)
    if expires is not None:
        completed = from_rfc3339(status["completionTime"])
        assert from_rfc3339(expires) == pytest.approx(completed + 3600, abs=0.01)


@pytest.mark.parametrize("kind", [EventKind.FAILED, EventKind.CANCELLED, EventKind.RELEASED])
async def test_only_a_success_has_a_result_in_the_store(kind: EventKind) -> None:
    harness = TaskHarness(max_attempts=1)
    entry = await harness.published("t")
    token = TOKENS.sign(entry.task.uid, 1, 0)
    body = encode(replace(_outcome(), token=token, result=None, result_ref=STORED))
    harness.message(body.replace(b"task.succeeded", kind.value.encode()))
    await asyncio.sleep(20)
    assert all("resultRef" not in write.status for write in harness.writer.writes)


async def test_a_reference_that_is_none_fails_the_attempt() -> None:
    harness = TaskHarness(max_attempts=1)
    entry = await harness.published("t")
    token = TOKENS.sign(entry.task.uid, 1, 0)
    body = encode(replace(_outcome(), token=token, result=None, result_ref=STORED))
    harness.message(body.replace(b"0123abcd", b"0123ABCD"))
    await asyncio.sleep(5)
    status = harness.writer.writes[0].status
    assert status["phase"] == "Failed"
    assert "data.resultRef.sha256" in status["message"]


@pytest.mark.parametrize(
    ("name", "attempts", "phase", "reason"),
    [
        ("UnknownHandler", 2, "Retrying", "UnknownHandler"),
        ("UnknownHandler", 1, "Failed", "RetriesExhausted"),
        ("WorkerLost", 1, "Failed", "RetriesExhausted"),
    ],
)
async def test_an_applications_error_of_a_reserved_name_is_just_an_error(
    name: str, attempts: int, phase: str, reason: str
) -> None:
    harness = TaskHarness(max_attempts=attempts)
    entry = await harness.published("a")
    harness.event(entry, EventKind.FAILED, error=EventError(type=name, message="an application's"))
    await asyncio.sleep(5)
    status = harness.writer.writes[0].status
    assert (status["phase"], status["reason"]) == (phase, reason)
    assert status["attempts"] == 1


async def test_a_lost_worker_that_a_worker_reports_is_the_reason_of_the_end() -> None:
    harness = TaskHarness(max_attempts=1)
    entry = await harness.published("a")
    lost = EventError(type="WorkerLost", message="delivered 3 times", reserved=True)
    harness.event(entry, EventKind.FAILED, error=lost)
    await asyncio.sleep(5)
    assert harness.writer.writes[0].status["reason"] == "WorkerLost"
