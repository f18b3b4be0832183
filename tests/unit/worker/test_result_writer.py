"""Results reach the store before anybody knows the end of their attempt, or the attempt fails."""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taskqueue.contract.outcome import EventKind
from taskqueue.limits import RESULT_BYTES
from taskqueue.results.reference import StoredResult
from taskqueue.worker.executor import AttemptResult, Execution
from taskqueue.worker.outcome import raised, succeeded
from taskqueue.worker.result_writer import ResultWriter
from taskqueue.worker.sdk import BinaryResult, Snooze
from tests.unit.controller.virtual_time import VirtualLoop
from tests.unit.results.memory import MemoryStore
from tests.unit.worker.children import attempt
from tests.unit.worker.fakes import FakeExecution, FakeExecutor, turn, work
from tests.unit.worker.harness import RuntimeHarness, direct

pytestmark = pytest.mark.looptime

KEY = "shop/q/u/1-0"
LARGE = "x" * RESULT_BYTES


class Written:
    """A writer over a fake executor and a store in memory, and the ends it has reported."""

    def __init__(self, *, always: bool = False, **store: Any) -> None:
        self.loop = asyncio.get_running_loop()
        self.store = MemoryStore(**store)
        self.executor = FakeExecutor()
        self.writer = ResultWriter(
            self.executor, self.store, self.loop, namespace="shop", always=always
        )
        self.ends: list[AttemptResult] = []

    def start(self, **changes: Any) -> tuple[Execution, FakeExecution]:
        execution = self.writer.start(attempt(**{"epoch": 0, **changes}), self.ends.append)
        return execution, self.executor.started[-1]


async def test_a_large_result_is_reported_when_it_is_in_the_store() -> None:
    made = Written(call_seconds=2)
    _, running = made.start()
    running.done(succeeded(LARGE, 0.5))
    await asyncio.sleep(1)
    assert not made.ends
    await asyncio.sleep(2)
    (end,) = made.ends
    body = made.store.kept[KEY].body
    assert orjson.loads(body) == {"value": LARGE}
    assert end.reference is not None
    assert (end.reference.key, end.reference.size_bytes) == (KEY, len(body))
    assert end.reference.sha256 == hashlib.sha256(body).hexdigest()
    assert (end.result, end.unstored, end.error, end.seconds) == (None, None, None, 0.5)


async def test_bytes_keep_their_content_type() -> None:
    made = Written()
    _, running = made.start()
    running.done(succeeded(BinaryResult(b"\x89PNG", "image/png"), 0.5))
    await turn()
    assert made.store.kept[KEY] == StoredResult(b"\x89PNG", "image/png")
    assert made.ends[0].reference is not None
    assert made.ends[0].reference.content_type == "image/png"


@pytest.mark.parametrize(
    "end",
    [
        succeeded({"a": 1}, 0.1),
        succeeded(None, 0.1),
        raised(ValueError("no"), 0.1),
        raised(Snooze(5), 0.1),
        AttemptResult(seconds=0.1, released=True),
        AttemptResult(seconds=0.1, lost="its worker"),
        AttemptResult(seconds=0.1, not_begun="no memory"),
    ],
)
async def test_what_needs_no_store_passes_at_once(end: AttemptResult) -> None:
    made = Written()
    _, running = made.start()
    running.done(end)
    assert made.ends == [end]
    assert made.ends[0] is end
    assert not made.store.calls


async def test_every_result_is_stored_if_all_are_to_be() -> None:
    made = Written(always=True)
    _, running = made.start()
    running.done(succeeded({"a": 1}, 0.1))
    await turn()
    assert made.store.kept == {KEY: StoredResult(b'{"a":1}', "application/json")}
    assert made.ends[0].result is None
    _, running = made.start(uid="v")
    running.done(succeeded(None, 0.1))  # there is none
    assert made.ends[1].reference is None
    assert len(made.store.calls) == 1


async def test_a_direct_messages_result_is_not_stored() -> None:
    made = Written(always=True)
    _, running = made.start(epoch=None)
    end = succeeded(LARGE, 0.1)
    running.done(end)
    assert made.ends == [end]
    assert not made.store.calls


async def test_an_attempt_that_runs_twice_reports_what_is_in_the_store() -> None:
    """The other one wrote first, and its outcome may be the one that counts."""
    made = Written()
    made.store.kept[KEY] = StoredResult(b"first", "text/plain")
    _, running = made.start()
    running.done(succeeded(LARGE, 0.5))
    await turn()
    reference = made.ends[0].reference
    assert reference is not None
    assert (reference.size_bytes, reference.content_type) == (5, "text/plain")
    assert reference.sha256 == hashlib.sha256(b"first").hexdigest()


async def test_a_store_that_stays_away_fails_the_attempt_which_may_be_tried_again() -> None:
    made = Written(away_until=asyncio.get_running_loop().time() + 1000)
    _, running = made.start(timeout_seconds=300)
    begun = made.loop.time()
    running.done(succeeded(LARGE, 0.5))
    while not made.ends:  # noqa: ASYNC110  (in virtual time)
        await asyncio.sleep(0.5)
    assert 45 < made.loop.time() - begun < 62
    (end,) = made.ends
    assert end.error is not None
    assert (end.error.type, end.error.retryable, end.error.reserved) == (
        "ResultNotStored",
        True,
        True,
    )
    assert end.error.message == "its result of 16396 bytes was not stored: away"
    assert (end.reference, end.unstored) == (None, None)


async def test_the_wait_ends_before_the_attempts_time_does() -> None:
    made = Written(away_until=asyncio.get_running_loop().time() + 1000)
    _, running = made.start(timeout_seconds=20)
    begun = made.loop.time()
    running.done(succeeded(LARGE, 5.0))
    await asyncio.sleep(14.5)
    assert made.ends
    assert made.ends[0].error is not None
    assert made.ends[0].error.type == "ResultNotStored"
    assert made.loop.time() - begun < 15


@pytest.mark.parametrize("how", ["cancel", "kill"])
async def test_writing_ends_when_the_attempt_is_to_end(how: str) -> None:
    made = Written(away_until=asyncio.get_running_loop().time() + 1000)
    execution, running = made.start()
    assert execution.killable is running.killable
    running.done(succeeded(LARGE, 0.5))
    await asyncio.sleep(1)
    assert execution.killable
    getattr(execution, how)()
    await turn()
    assert made.ends[0].error is not None
    assert made.ends[0].error.type == "Cancelled"
    assert not running.cancelled


async def test_before_that_a_cancel_is_the_handlers() -> None:
    made = Written()
    execution, running = made.start()
    execution.cancel()
    assert running.cancelled


async def test_what_the_store_raises_besides_is_a_failure_too() -> None:
    made = Written()

    async def put(key: str, result: StoredResult) -> StoredResult:
        raise RuntimeError("a bug")

    made.store.put = put  # type: ignore[method-assign]
    _, running = made.start()
    running.done(succeeded(LARGE, 0.5))
    await turn()
    assert made.ends[0].error is not None
    assert made.ends[0].error.message == "its result was not stored: RuntimeError: a bug"


async def test_closing_ends_what_is_being_written() -> None:
    made = Written(away_until=asyncio.get_running_loop().time() + 1000)
    _, running = made.start()
    running.done(succeeded(LARGE, 0.5))
    await asyncio.sleep(1)
    await made.writer.close()
    await turn()
    assert made.store.closed == 1
    assert len(made.ends) == 1


# With the runtime.


async def test_the_outcome_names_what_is_in_the_store_and_not_where() -> None:
    store = MemoryStore(call_seconds=0.3)
    harness = RuntimeHarness(store=store)
    harness.deliver(work("k.1", attempt=2, epoch=5))
    harness.executor.started[0].done(succeeded(LARGE, 0.25))
    assert harness.runtime.undecided == 1
    assert harness.events == []
    await asyncio.sleep(0.4)
    (published,) = harness.publisher.settle()
    assert published.event.kind is EventKind.SUCCEEDED
    body = store.kept["shop/q/uid-k.1/2-5"].body
    assert orjson.loads(published.body)["data"]["resultRef"] == {
        "sizeBytes": len(body),
        "contentType": "application/json",
        "sha256": hashlib.sha256(body).hexdigest(),
    }
    assert b"uid-k.1/2-5" not in published.body
    assert len(published.body) < 1000
    await turn()
    assert harness.channel.settled == [("ack", 1, False)]


async def test_an_attempt_whose_result_takes_too_long_has_timed_out() -> None:
    store = MemoryStore(call_seconds=60)
    harness = RuntimeHarness(store=store)
    harness.deliver(work("k.1", timeout_seconds=5))
    harness.executor.started[0].done(succeeded(LARGE, 0.25))
    await asyncio.sleep(6)
    event = harness.publisher.settle()[-1].event
    assert event.error is not None
    assert (event.kind, event.error.type) == (EventKind.FAILED, "Timeout")
    await asyncio.sleep(60)
    assert harness.runtime.busy == 0
    assert harness.events == []


@pytest.mark.parametrize(
    ("value", "kind", "message"),
    [
        (LARGE, "ResultTooLarge", "the result is 16396 bytes of JSON, the limit is 16384: give "),
        (b"\xff", "InvalidResult", "the result is 1 bytes of application/octet-stream, and a "),
    ],
)
async def test_without_a_store_it_is_a_failure_that_says_what_to_do(
    value: Any, kind: str, message: str
) -> None:
    harness = RuntimeHarness()
    harness.deliver(work())
    harness.executor.started[0].done(succeeded(value, 0.1))
    error = harness.publisher.settle()[0].event.error
    assert error is not None
    assert (error.type, error.retryable) == (kind, False)
    assert error.message.startswith(message)
    assert "spec.results.store" in error.message


async def test_a_direct_message_has_no_store() -> None:
    harness = RuntimeHarness(store=MemoryStore())
    harness.deliver(direct())
    harness.executor.started[0].done(succeeded(LARGE, 0.1))
    error = harness.publisher.settle()[0].event.error
    assert error is not None
    assert error.type == "ResultTooLarge"
    assert "only the results of Tasks" in error.message


# Whatever happens.


@dataclass(frozen=True)
class Life:
    """How an attempt ends, what the store does meanwhile, and when the attempt is cancelled."""

    value: Any
    always: bool
    away: float
    transient: bool
    call_seconds: float
    timeout: int
    cancel_after: float | None


LIVES = st.builds(
    Life,
    value=st.sampled_from([None, {"a": 1}, LARGE, b"\x00", BinaryResult(b"1", "image/png")]),
    always=st.booleans(),
    away=st.sampled_from([0.0, 0.5, 20.0, 1e6]),
    transient=st.booleans(),
    call_seconds=st.sampled_from([0.0, 0.3, 9.0]),
    timeout=st.integers(1, 400),
    cancel_after=st.none() | st.floats(0.0, 30.0),
)


@settings(max_examples=60, deadline=None)
@given(LIVES)
def test_one_end_is_reported_and_a_reference_only_to_what_is_there(life: Life) -> None:
    async def live() -> None:
        loop = asyncio.get_running_loop()
        made = Written(
            always=life.always,
            away_until=loop.time() + life.away,
            transient=life.transient,
            call_seconds=life.call_seconds,
        )
        execution, running = made.start(timeout_seconds=life.timeout)
        running.done(succeeded(life.value, 0.1))
        if life.cancel_after is not None:
            await asyncio.sleep(life.cancel_after)
            if not made.ends:
                execution.cancel()
        await asyncio.sleep(500)
        (end,) = made.ends
        if end.error is not None:
            assert (end.reference, end.error.type in ("ResultNotStored", "Cancelled")) == (
                None,
                True,
            )
            return
        wanted = succeeded(life.value, 0.1)
        if end.reference is None:
            assert end.result == wanted.result
            assert end.unstored is None
            assert not (life.always and wanted.result is not None)
            return
        found = made.store.kept[end.reference.key]
        assert end.reference.sha256 == hashlib.sha256(found.body).hexdigest()
        body = orjson.dumps(wanted.result) if wanted.unstored is None else wanted.unstored.body
        assert found.body == body

    loop = VirtualLoop()
    try:
        loop.run_until_complete(live())
        assert not loop.problems
    finally:
        loop.die()
