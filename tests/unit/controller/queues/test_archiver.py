"""How the outbox is drained into the archive, with stand-ins and in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from taskqueue.archive.errors import EXPLANATIONS, ArchiveTrouble
from taskqueue.contract.completion import archive_record, task_completion
from taskqueue.contract.outbox import ARCHIVE_OUTBOX
from taskqueue.controller.queues.archiver import MOST_ROWS
from taskqueue.kubernetes.client import ApiError
from taskqueue.model.origin import TaskOrigin
from taskqueue.model.queue import ArchiveConfig
from taskqueue.model.task import Phase, Task, TaskSpec, TaskState
from tests.unit.controller.queues.archive_case import ARCHIVE, CONFIG, KEY, URI, Case

pytestmark = pytest.mark.looptime


@pytest.fixture
async def case(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Case]:
    case = Case(monkeypatch)
    yield case
    await case.archiver.close()


def end(number: int = 0, *, completed: float = 1_700_000_000.0) -> bytes:
    task = Task(
        namespace="shop",
        name=f"t-{number}",
        uid=f"uid-{number}",
        generation=1,
        created=1.0,
        spec=TaskSpec(queue="q", handler="resize"),
    )
    status = TaskState(phase=Phase.SUCCEEDED, attempts=1, completion_time=completed)
    record = archive_record(task, status, TaskOrigin(), None)
    return task_completion(task, status, record).encode()


async def test_ends_are_written_in_batches_and_acknowledged_afterwards(case: Case) -> None:
    await case.reconcile()
    await asyncio.sleep(1)
    for number in range(30):
        case.outbox.publish(end(number))
    assert not case.archive.rows
    await asyncio.sleep(1)
    assert case.archive.rows.keys() == {f"uid-{number}" for number in range(30)}
    assert case.archive.batches == [30]
    assert not case.outbox.unacknowledged
    assert case.outbox.names == [ARCHIVE_OUTBOX.name(*KEY, "team-a")]
    assert (case.condition.status, case.condition.reason) == (True, "Connected")


async def test_nothing_is_acknowledged_before_it_is_written(case: Case) -> None:
    await case.reconcile()
    await asyncio.sleep(1)
    case.archive.writing.clear()
    case.outbox.publish(end())
    await asyncio.sleep(60)
    assert len(case.outbox.unacknowledged) == 1
    case.archive.writing.set()
    await asyncio.sleep(1)
    assert not case.outbox.unacknowledged


async def test_a_long_outbox_is_written_in_bounded_batches(case: Case) -> None:
    case.outbox.ready = [end(number) for number in range(3 * MOST_ROWS)]
    await case.reconcile()
    await asyncio.sleep(5)
    assert len(case.archive.rows) == 3 * MOST_ROWS
    assert max(case.archive.batches) <= MOST_ROWS
    assert case.outbox.most <= 2 * MOST_ROWS


async def test_fewer_ends_with_payloads_are_in_memory(case: Case) -> None:
    case.outbox.ready = [end(number) for number in range(500)]
    await case.reconcile(replace(ARCHIVE, keep_payloads=True))
    await asyncio.sleep(30)
    assert len(case.archive.rows) == 500
    assert case.outbox.most <= 64


async def test_ends_stay_in_the_outbox_while_the_archive_is_away(case: Case) -> None:
    await case.reconcile()
    await asyncio.sleep(1)
    case.archive.trouble = ArchiveTrouble.UNAVAILABLE
    for number in range(100):
        case.outbox.publish(end(number))
    await asyncio.sleep(600)
    assert len(case.outbox.ready) == 100
    assert not case.outbox.unacknowledged  # nothing of them is in memory
    assert (case.condition.status, case.condition.reason) == (False, "ArchiveUnavailable")
    case.archive.trouble = None
    await asyncio.sleep(15)
    assert len(case.archive.rows) == 100
    assert case.condition.status is True
    assert case.changes >= 2


@pytest.mark.parametrize("trouble", list(ArchiveTrouble))
async def test_a_condition_has_no_foreign_word(case: Case, trouble: ArchiveTrouble) -> None:
    case.archive.trouble = trouble
    await case.reconcile()
    await asyncio.sleep(1)
    condition = case.condition
    assert (condition.status, condition.reason) == (False, trouble.value)
    assert EXPLANATIONS[trouble] in condition.message
    assert "the server's words" not in condition.message
    assert "secret" not in condition.message


@pytest.mark.parametrize(
    ("secret", "reason"),
    [
        (ApiError(404, "NotFound", "x"), "SecretNotFound"),
        (ApiError(403, "Forbidden", "x"), "SecretForbidden"),
        ({}, "SecretInvalid"),
        ({"uri": "redis://password@somewhere"}, "SecretInvalid"),
        ({"uri": f"{URI}?sslrootcert=/proc/self/fd/1"}, "SecretInvalid"),
        ({"uri": f"{URI}?sslcert=/etc/tls.crt&sslkey=/etc/tls.key"}, "SecretInvalid"),
    ],
)
async def test_a_secret_that_names_no_database_is_said_and_read_again(
    case: Case, secret: dict[str, str] | ApiError, reason: str
) -> None:
    case.api.secret = secret
    case.outbox.publish(end())
    await case.reconcile()
    await asyncio.sleep(5)
    assert (case.condition.status, case.condition.reason) == (False, reason)
    assert "password" not in case.condition.message
    case.api.secret = {"uri": URI}
    await asyncio.sleep(15)
    assert case.condition.status is True
    assert len(case.archive.rows) == 1


async def test_a_database_that_is_away_is_noticed_while_no_task_ends(case: Case) -> None:
    await case.reconcile()
    await asyncio.sleep(1)
    assert case.condition.status is True
    changes, closed = case.changes, case.archive.closed
    case.archive.trouble = ArchiveTrouble.UNAVAILABLE
    await asyncio.sleep(60)
    assert case.condition.status is False
    assert case.condition.reason == "ArchiveUnavailable"
    assert case.changes > changes
    assert case.archive.closed > closed
    case.archive.trouble = None
    await asyncio.sleep(60)
    assert case.condition.status is True


async def test_a_secret_that_is_lost_while_no_task_ends_is_noticed(case: Case) -> None:
    await case.reconcile()
    await asyncio.sleep(1)
    case.api.secret = ApiError(503, "Unavailable", "x")  # that says nothing about the Secret
    await asyncio.sleep(60)
    assert case.condition.status is True
    case.api.secret = ApiError(404, "NotFound", "x")
    await asyncio.sleep(60)
    assert (case.condition.status, case.condition.reason) == (False, "SecretNotFound")


async def test_another_database_in_the_secret_is_used(case: Case) -> None:
    await case.reconcile()
    await asyncio.sleep(1)
    case.api.secret = {"uri": f"{URI}-2"}
    await asyncio.sleep(60)
    assert case.archive.opened == [URI, f"{URI}-2"]
    assert case.archive.closed == 1


@pytest.mark.parametrize("body", [b"", b"{}", b"\xff", end().replace(b"shop", b"other")])
async def test_what_cannot_be_read_stops_nothing(case: Case, body: bytes) -> None:
    await case.reconcile()
    case.outbox.ready = [end(1), body, end(2)]
    await asyncio.sleep(1)
    case.outbox.deliver()
    await asyncio.sleep(1)
    assert case.archive.rows.keys() == {"uid-1", "uid-2"}
    assert not case.outbox.unacknowledged


async def test_an_end_without_a_record_is_skipped(case: Case) -> None:
    await case.reconcile()
    await asyncio.sleep(1)
    case.outbox.publish(end().replace(b'"record"', b'"recorded"'))
    await asyncio.sleep(1)
    assert not case.archive.rows
    assert not case.outbox.unacknowledged


async def test_rows_above_the_retention_are_deleted_and_not_written_again(case: Case) -> None:
    await case.reconcile(ArchiveConfig(secret="archive", retention_seconds=3600))
    await asyncio.sleep(1)
    case.outbox.publish(end(1, completed=case.now - 3599))
    case.outbox.publish(end(2, completed=case.now - 3601))
    await asyncio.sleep(400)
    assert case.archive.rows.keys() == {"uid-1"}
    oldest = datetime.fromtimestamp(case.now, UTC) - timedelta(hours=1)
    assert case.archive.deleted == [oldest, oldest]
    assert not case.outbox.unacknowledged


async def test_a_closed_channel_is_replaced(case: Case) -> None:
    await case.reconcile()
    await asyncio.sleep(1)
    assert case.outbox.consumer is not None
    case.outbox.consumer[0].closed.set_result((0, "lost"))
    await asyncio.sleep(5)
    case.outbox.publish(end())
    await asyncio.sleep(5)
    assert len(case.archive.rows) == 1


async def test_a_consumer_that_the_broker_ends_is_replaced(case: Case) -> None:
    await case.reconcile()
    await asyncio.sleep(1)
    assert case.outbox.consumer is not None
    case.outbox.consumer[0].on_cancel("deleted")
    await asyncio.sleep(5)
    assert len(case.outbox.names) == 2


async def test_without_an_outbox_or_an_archive_nothing_is_consumed(case: Case) -> None:
    case.session.outbox = None
    await case.reconcile()
    await asyncio.sleep(1)
    assert case.condition.status is None
    await case.reconcile(None)
    assert case.archiver.conditions(replace(CONFIG, archive=None)) == ()
    case.session.outbox = case.outbox
    await case.reconcile(None)
    await asyncio.sleep(1)
    assert not case.outbox.names
    await case.reconcile()
    await asyncio.sleep(1)
    assert len(case.outbox.names) == case.backfill.runs == 1
    await case.reconcile(None)
    assert case.outbox.consumer is None
