"""What attempts print is kept for later, and no outcome waits for it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskqueue.limits import OUTPUT_BYTES, STATUS_OUTPUT_BYTES
from taskqueue.worker import output_keeper
from taskqueue.worker.executor import AttemptResult
from taskqueue.worker.outcome import raised, succeeded
from taskqueue.worker.output_keeper import OutputKeeper, OutputTail, last_lines
from tests.unit.results.memory import MemoryStore
from tests.unit.worker.children import attempt
from tests.unit.worker.fakes import FakeExecution, FakeExecutor

KEY = "shop/q/u/1-0.output"
FAILED = raised(ValueError("no"), 0.1)
SUCCEEDED = succeeded({"a": 1}, 0.1)


class Kept:
    """A keeper over a fake executor, and the ends it has reported."""

    def __init__(
        self,
        *,
        store: MemoryStore | None = None,
        failed_only: bool = False,
        redact: Callable[[str], str] | None = None,
    ) -> None:
        self.executor = FakeExecutor()
        self.keeper = OutputKeeper(
            self.executor,
            asyncio.get_running_loop(),
            store=store,
            namespace="shop",
            failed_only=failed_only,
            redact=redact,
        )
        self.ends: list[AttemptResult] = []

    def start(self, **changes: Any) -> FakeExecution:
        self.keeper.start(attempt(**{"epoch": 0, **changes}), self.ends.append)
        return self.executor.started[-1]

    def run(self, end: AttemptResult, *lines: str) -> None:
        running = self.start()
        assert running.attempt.on_output is not None
        for line in lines:
            running.attempt.on_output(line)
        running.done(end)

    async def settle(self) -> None:
        while self.keeper._waiting:
            await asyncio.wait(set(self.keeper._waiting))


@pytest.mark.parametrize("end", [FAILED, SUCCEEDED])
@pytest.mark.parametrize("failed_only", [False, True])
async def test_output_goes_to_the_store_as_is_asked_for(
    end: AttemptResult, failed_only: bool
) -> None:
    store = MemoryStore()
    kept = Kept(store=store, failed_only=failed_only)
    kept.run(end, "one", "two\nthree")
    assert kept.ends == [end]  # at once
    await kept.settle()
    if failed_only and end is SUCCEEDED:
        assert not store.kept
    else:
        assert store.kept[KEY].body == b"one\ntwo\nthree\n"
        assert store.kept[KEY].content_type == "text/plain; charset=utf-8"


@pytest.mark.parametrize(
    "end",
    [
        AttemptResult(seconds=0.1, released=True),
        AttemptResult(seconds=0.1, snooze_seconds=5),
        AttemptResult(seconds=0.1, lost="its worker"),
        AttemptResult(seconds=0.1, not_begun="no memory"),
    ],
)
async def test_what_has_not_ended_has_no_output(end: AttemptResult) -> None:
    store = MemoryStore()
    kept = Kept(store=store)
    kept.run(end, "one")
    await kept.settle()
    assert kept.ends == [end]
    assert not store.kept


async def test_without_output_nothing_is_written() -> None:
    store = MemoryStore()
    kept = Kept(store=store)
    kept.run(FAILED)
    await kept.settle()
    assert not store.calls


async def test_a_direct_message_has_no_key_for_it() -> None:
    kept = Kept(store=MemoryStore())
    assert kept.start(epoch=None).attempt.on_output is None


async def test_without_a_store_the_last_lines_are_in_the_outcome_of_a_failure() -> None:
    kept = Kept()
    kept.run(FAILED, *(f"line {number}" for number in range(2000)))
    (end,) = kept.ends
    assert end.error == FAILED.error
    assert len(end.output.encode()) <= STATUS_OUTPUT_BYTES
    lines = end.output.splitlines()
    assert lines[-1] == "line 1999"
    assert lines[0] == f"line {2000 - len(lines)}"
    kept.run(SUCCEEDED, "one")
    assert kept.ends[1] is SUCCEEDED


async def test_what_nobody_must_read_is_removed_first() -> None:
    store = MemoryStore()
    threads = []

    def redact(text: str) -> str:
        threads.append(threading.current_thread())
        return text.replace("s3cret", "…")

    kept = Kept(store=store, redact=redact)
    kept.run(SUCCEEDED, "the password is s3cret")
    await kept.settle()
    assert store.kept[KEY].body.decode() == "the password is …\n"
    kept = Kept(redact=redact)
    kept.run(FAILED, "the password is s3cret")
    await kept.settle()
    assert kept.ends == [replace(FAILED, output="the password is …\n")]
    assert threading.main_thread() not in threads


@pytest.mark.parametrize("with_store", [True, False])
async def test_output_that_cannot_be_redacted_is_not_kept(
    with_store: bool, caplog: pytest.LogCaptureFixture
) -> None:
    def redact(text: str) -> str:
        raise LookupError("s0rry")

    store = MemoryStore() if with_store else None
    kept = Kept(store=store, redact=redact)
    kept.run(FAILED, "the password is s3cret")
    await kept.settle()
    assert kept.ends == [FAILED]
    assert store is None or not store.kept
    assert "output.redaction_failed" in caplog.text
    assert "s3cret" not in caplog.text


async def test_an_outcome_does_not_wait_for_a_redaction_that_takes_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(output_keeper, "REDACTION_SECONDS", 0.01)
    gate = threading.Event()

    def redact(text: str) -> str:
        gate.wait(30)
        return text

    kept = Kept(redact=redact)
    kept.run(FAILED, "one")
    await kept.settle()
    assert kept.ends == [FAILED]
    gate.set()


@pytest.mark.looptime
async def test_no_outcome_waits_for_a_store_that_is_away_and_what_waits_is_bounded() -> None:
    store = MemoryStore(away_until=asyncio.get_running_loop().time() + 1e6)
    kept = Kept(store=store)
    for _ in range(100):
        kept.run(FAILED, "one")
    assert len(kept.ends) == 100
    assert len(kept.keeper._waiting) == output_keeper._WAITING
    await asyncio.sleep(100)
    assert not kept.keeper._waiting
    assert not store.kept


@pytest.mark.looptime
async def test_closing_gives_what_is_written_a_moment() -> None:
    store = MemoryStore(call_seconds=1)
    kept = Kept(store=store)
    kept.run(FAILED, "one")
    await kept.keeper.close(4)
    assert KEY in store.kept
    store = MemoryStore(call_seconds=10)
    kept = Kept(store=store)
    kept.run(FAILED, "one")
    await kept.keeper.close(4)
    await asyncio.sleep(0.1)
    assert not kept.keeper._waiting
    assert KEY not in store.kept


@given(st.lists(st.text(max_size=30), max_size=20), st.integers(1, 60))
def test_the_last_whole_lines_are_kept(lines: list[str], size: int) -> None:
    tail = OutputTail()
    for line in lines:
        tail.add(line)
    whole = tail.text()
    assert whole == "".join(f"{line}\n" for line in lines)
    cut = last_lines(whole.encode(), size)
    assert whole.endswith(cut)
    assert len(cut.encode()) <= size
    assert cut == whole or not cut or whole[: -len(cut)].endswith("\n")


def test_much_output_costs_little_memory() -> None:
    tail = OutputTail()
    for number in range(5000):
        tail.add(f"{number} {'x' * 200}")
    assert tail._bytes <= OUTPUT_BYTES + 300
    text = tail.text()
    assert OUTPUT_BYTES - 300 < len(text) <= OUTPUT_BYTES
    assert text.endswith(f"4999 {'x' * 200}\n")
    tail.add("y" * (2 * OUTPUT_BYTES))
    assert tail.text() == ""
    tail.add("z")
    assert tail.text() == "z\n"
