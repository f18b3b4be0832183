"""Sync handlers in real child processes: what comes back, and what is told while they run."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from taskqueue import BinaryResult, Context, Fail, Retry
from taskqueue.limits import RESULT_BYTES, STORED_RESULT_BYTES
from taskqueue.results.reference import StoredResult
from taskqueue.worker.executor import AttemptResult
from taskqueue.worker.executors.memory import resident_mib
from taskqueue.worker.sdk import HandlerRegistry
from tests.unit.worker.children import PATIENCE, appears, attempt, children, gone, worker_log

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)


async def test_a_handler_runs_in_another_process_and_knows_its_attempt() -> None:
    def handler(payload: dict[str, Any], ctx: Context) -> Any:
        return {
            "pid": os.getpid(),
            "group": os.getpgid(0),
            "session": os.getsid(0),
            "width": payload["width"],
            "about": [ctx.task, ctx.uid, ctx.queue, ctx.attempt, ctx.max_attempts],
            "more": [ctx.timeout_seconds, ctx.fence, ctx.cancelled],
            "scheduled": str(ctx.scheduled_time),
            "index": ctx.index,
            "main": threading.current_thread() is threading.main_thread(),
        }

    async with children(handler) as nursery:
        result = (await nursery.run({"width": 3}, fence=7, scheduled_time=NOON, index=5)).result
    assert result is not None
    assert result["pid"] not in {os.getpid(), nursery.spawner.pid}
    assert result["group"] == result["pid"], "a terminal's signals do not reach it"
    assert result["session"] != os.getsid(0)
    assert result["about"] == ["shop/a", "u", "q", 1, 3]
    assert result["more"] == [30, 7, False]
    assert result["scheduled"] == str(NOON)
    assert result["index"] == 5
    assert result["main"]
    assert result["width"] == 3


async def test_a_free_child_is_used_again_and_as_many_are_made_as_run_at_once(
    tmp_path: Path,
) -> None:
    def handler(payload: dict[str, Any]) -> int:
        while "gate" in payload and not Path(payload["gate"]).exists():
            time.sleep(0.005)
        return os.getpid()

    gate = tmp_path / "gate"
    async with children(handler) as nursery:
        one_by_one = {await nursery.value() for _ in range(20)}
        for _ in range(3):
            nursery.start({"gate": str(gate)})
        await nursery.run()
        gate.touch()
        at_once = {(await nursery.result()).result["value"] for _ in range(3)}  # type: ignore[index]
        again = {await nursery.value() for _ in range(20)}
    assert len(one_by_one) == 1
    assert len(at_once) == 3
    assert one_by_one < at_once
    assert len(again) == 1


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        ({"pages": 3}, {"pages": 3}),
        ([1, 2], {"value": [1, 2]}),
        ("x", {"value": "x"}),
    ],
)
async def test_what_is_returned(value: Any, expected: dict[str, Any] | None) -> None:
    async with children(lambda payload: value) as nursery:
        result = await nursery.run()
    assert (result.error, result.result) == (None, expected)
    assert 0 <= result.seconds < 1


async def test_what_json_cannot_say_is_a_failure_that_names_the_handler() -> None:
    deep: list[Any] = []
    for _ in range(1000):
        deep = [deep]
    for value in ({1, 2}, object(), deep):
        async with children(lambda payload, value=value: value) as nursery:
            error = (await nursery.run()).error
        assert error is not None
        assert (error.type, error.retryable) == ("InvalidResult", False)
        assert "handler 'f' returned" in error.message


@pytest.mark.parametrize(
    ("value", "body", "content_type"),
    [
        ("x" * RESULT_BYTES, b'{"value":"%s"}' % (b"x" * RESULT_BYTES), "application/json"),
        (b"\n\x00" * 5_000_000, b"\n\x00" * 5_000_000, "application/octet-stream"),
        (BinaryResult(b"", "image/png; a=1"), b"", "image/png; a=1"),
    ],
    ids=["JSON", "10 MB of bytes", "empty"],
)
async def test_a_result_for_a_store(value: Any, body: bytes, content_type: str) -> None:
    async with children(lambda payload: value if payload else 7) as nursery:
        result = await nursery.run({"a": 1})
        assert await nursery.value() == 7  # the next attempt has nothing of it
    assert (result.error, result.result) == (None, None)
    assert result.unstored == StoredResult(body, content_type)


async def test_a_result_above_the_limit_of_a_store_is_too_large() -> None:
    async with children(lambda payload: bytes(STORED_RESULT_BYTES + 1)) as nursery:
        error = (await nursery.run()).error
    assert error is not None
    assert (error.type, error.retryable) == ("ResultTooLarge", False)


async def test_what_is_raised(caplog: pytest.LogCaptureFixture) -> None:
    def handler(payload: dict[str, Any]) -> None:
        if payload["how"] == "retry":
            raise Retry("not yet", after=2.5)
        if payload["how"] == "fail":
            raise Fail("gone", type="NotFound")
        if payload["how"] == "exit":
            sys.exit(3)
        raise ValueError("no pixels \udcff")

    async with children(handler) as nursery:
        results = {how: await nursery.run({"how": how}) for how in ("retry", "fail", "exit", "")}
        pids = {each for each in nursery.pool.children}
    told = {how: result.error for how, result in results.items() if result.error}
    assert (told["retry"].type, told["retry"].retryable) == ("Retry", True)
    assert results["retry"].retry_after_seconds == 2.5
    assert (told["fail"].type, told["fail"].message, told["fail"].retryable) == (
        "NotFound",
        "gone",
        False,
    )
    assert told["exit"].type == "SystemExit"
    assert (told[""].type, told[""].message) == ("ValueError", "no pixels ?")
    text = str(results[""].exception)
    assert 'raise ValueError("no pixels' in text
    assert "taskqueue/worker/executors/child.py" not in text, "our own frames are of no use"
    assert results["retry"].exception is None
    assert len(pids) == 1, "an exception does not cost the child"


async def test_a_payload_larger_than_any_buffer() -> None:
    async with children(lambda payload: len(payload["text"])) as nursery:
        assert await nursery.value({"text": "x" * 5_000_000}) == 5_000_000
        assert await nursery.value({"text": "x"}) == 1


async def test_a_payload_that_cannot_be_passed_on_is_an_invalid_one() -> None:
    deep: dict[str, Any] = {}
    for _ in range(1000):
        deep = {"a": deep}
    async with children(lambda payload: None) as nursery:
        error = (await nursery.run(deep)).error
    assert error is not None
    assert (error.type, error.retryable) == ("InvalidPayload", False)


async def test_progress_is_seen_while_it_runs(tmp_path: Path) -> None:
    def handler(payload: dict[str, Any], ctx: Context) -> None:
        threading.Thread(target=ctx.progress, args=(10, "from another thread")).start()
        for number in range(1000):
            ctx.progress(number / 20, "some")
        ctx.progress(50, "half")
        while not Path(payload["gate"]).exists():
            time.sleep(0.005)

    async with children(handler) as nursery:
        execution = nursery.start({"gate": str(tmp_path / "gate")})
        assert execution.progress is None
        async with asyncio.timeout(PATIENCE):
            while execution.progress is None or execution.progress.percent != 50:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        assert execution.progress.message == "half"
        (tmp_path / "gate").touch()
        assert (await nursery.result()).error is None


@pytest.mark.parametrize("where", ["main", "thread"])
async def test_an_attempt_that_has_ended_speaks_for_no_other(where: str) -> None:
    """Its context may live on: in a module, or in a thread that the child keeps."""
    contexts: list[Context] = []

    def handler(payload: dict[str, Any], ctx: Context) -> Any:
        contexts.append(ctx)

        def report() -> None:
            contexts[0].progress(99, "of the first")
            contexts[0].checkpoint({"step": 99})

        if where == "main":
            report()
        else:
            thread = threading.Thread(target=report)
            thread.start()
            thread.join()
        return os.getpid()

    saved: list[bytes] = []
    pids = []
    async with children(handler) as nursery:
        for _ in range(3):
            execution = nursery.start(on_checkpoint=saved.append)
            pids.append((await nursery.result()).result)
            progress = execution.progress
            assert (progress is not None) == (len(pids) == 1)
    assert saved == [b'{"step":99}']
    assert len({str(pid) for pid in pids}) == 1, "all in the same child"


async def test_what_it_logs_has_the_fields_of_its_attempt(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def handler(payload: dict[str, Any], ctx: Context) -> None:
        ctx.logger.warning("from the context")
        logging.getLogger("shop").warning("from %s", "elsewhere")

    with worker_log():
        async with children(handler) as nursery:
            await nursery.run()
    lines = capsys.readouterr().err.splitlines()
    for words in ("from the context", "from elsewhere"):
        (line,) = [each for each in lines if words in each]
        assert '"task": "shop/a", "uid": "u", "attempt": 1' in line


async def test_output_becomes_log_lines_of_the_attempt(caplog: pytest.LogCaptureFixture) -> None:
    def handler(payload: dict[str, Any]) -> None:
        print("\n".join([f"a line of {payload['number']}"] * 200))
        os.write(2, b"and one without an end ")
        os.system("echo from a program")  # noqa: S605

    caplog.set_level(logging.INFO)
    async with children(handler, capture=True) as nursery:
        first, second = (
            attempt(payload={"number": number}, task=f"shop/task-{number}") for number in (1, 2)
        )

        def go_on(result: AttemptResult) -> None:
            # At once, as the runtime does: what the first has written may not have been read yet.
            nursery.executor.start(second, nursery.results.put_nowait)

        nursery.executor.start(first, go_on)
        await nursery.result()
    told = [
        (record.fields["task"], record.fields["text"])  # type: ignore[attr-defined]
        for record in caplog.records
        if record.getMessage() == "handler.output"
    ]
    assert told == [
        *[("task-1", "a line of 1")] * 200,
        ("task-1", "and one without an end from a program"),
        *[("task-2", "a line of 2")] * 200,
        ("task-2", "and one without an end from a program"),
    ]


async def test_a_child_leaves_after_so_many_attempts() -> None:
    async with children(lambda payload: os.getpid(), max_tasks=3) as nursery:
        pids = [await nursery.value() for _ in range(7)]
        assert [pids.count(pid) for pid in dict.fromkeys(pids)] == [3, 3, 1]
        await gone(pids[0])


async def test_a_child_that_has_grown_leaves() -> None:
    kept = []

    def handler(payload: dict[str, Any]) -> int:
        kept.append(bytearray(payload["mib"] * 1024 * 1024))
        return os.getpid()

    inherited = resident_mib(os.getpid())  # whatever the other tests have left in this process
    assert inherited is not None
    async with children(handler, max_mib=int(inherited) + 200) as nursery:
        first = await nursery.value({"mib": 0})
        assert await nursery.value({"mib": int(inherited) + 300}) == first
        assert await nursery.value({"mib": 0}) != first


async def test_start_hooks_run_once_in_each_child_and_stop_hooks_at_its_end(
    tmp_path: Path,
) -> None:
    registry = HandlerRegistry()
    note = tmp_path / "note"

    def noted(word: str) -> Any:
        def hook() -> None:
            with note.open("a") as file:
                file.write(f"{word} {os.getpid()}\n")

        return hook

    registry.start_hooks.append(noted("start"))
    registry.stop_hooks += [noted("last"), noted("first")]
    async with children(lambda payload: os.getpid(), registry=registry, max_tasks=2) as nursery:
        pid = await nursery.value()
        await nursery.value()
        await gone(pid)
    assert note.read_text() == f"start {pid}\nfirst {pid}\nlast {pid}\n"


def fails_until(gate: Path) -> None:
    if not gate.exists():
        raise ValueError("no database")


@pytest.mark.parametrize("how", ["raises", "exits", "crashes"])
async def test_an_attempt_whose_start_hook_fails_runs_when_the_hook_succeeds(
    how: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def hook() -> None:
        try:
            fails_until(tmp_path / "gate")
        except ValueError:
            with (tmp_path / "tries").open("a") as file:
                file.write(".")
            if how == "exits":
                sys.exit(3)
            if how == "crashes":
                os.kill(os.getpid(), signal.SIGSEGV)
            raise

    registry = HandlerRegistry()
    registry.start_hooks.append(hook)
    async with children(lambda payload: "done", registry=registry) as nursery:
        nursery.start()
        while len(await appears(tmp_path / "tries")) < 3:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        assert nursery.executor.start_failure
        assert nursery.results.empty()
        (tmp_path / "gate").touch()
        assert (await nursery.result()).result == {"value": "done"}
        assert nursery.executor.start_failure == ""
    assert "child.start_failed" in caplog.messages


async def test_an_attempt_is_given_back_uncounted_when_the_hook_fails_for_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("taskqueue.worker.executors.child_pool.HELD_SECONDS", 0.0)
    registry = HandlerRegistry()
    registry.start_hooks.append(lambda: fails_until(Path("/nowhere")))
    async with children(lambda payload: None, registry=registry) as nursery:
        result = await nursery.run()
    assert result.error is None
    assert result.not_begun == "an @on_start hook failed: ValueError: no database"


async def test_a_cancelled_attempt_does_not_wait_for_the_hook() -> None:
    registry = HandlerRegistry()
    registry.start_hooks.append(lambda: fails_until(Path("/nowhere")))
    async with children(lambda payload: None, registry=registry) as nursery:
        execution = nursery.start()
        async with asyncio.timeout(PATIENCE):
            while not nursery.pool.start_failure:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        execution.cancel()
        assert (await nursery.error())[0] == "Cancelled"


async def test_the_worker_starts_when_the_hooks_succeed_in_a_child(tmp_path: Path) -> None:
    registry = HandlerRegistry()
    registry.start_hooks.append(lambda: fails_until(tmp_path / "gate"))
    async with children(lambda payload: None, registry=registry) as nursery:
        started = asyncio.ensure_future(nursery.executor.run_start_hooks())
        async with asyncio.timeout(PATIENCE):
            while not nursery.executor.start_failure:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        assert not started.done()
        (tmp_path / "gate").touch()
        await asyncio.wait_for(started, PATIENCE)
        assert nursery.executor.start_failure == ""


def below(pid: int) -> list[str]:
    """Return the processes a process has made."""
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


async def test_two_hundred_attempts_leave_nothing_behind() -> None:
    def handler(payload: dict[str, Any]) -> int:
        return len(os.listdir("/proc/self/fd"))

    async with children(handler, capture=True, max_tasks=10) as nursery:
        first = await nursery.value()
        ours = len(os.listdir("/proc/self/fd"))
        server = len(os.listdir(f"/proc/{nursery.spawner.pid}/fd"))
        for number in range(200):
            if number % 20:
                assert await nursery.value() == first
            else:
                nursery.start().cancel()
                await nursery.result()
        async with asyncio.timeout(PATIENCE):
            while len(nursery.pool.children) > 1:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        # The first count may have come before the server closed what it gave to the child.
        assert len(os.listdir(f"/proc/{nursery.spawner.pid}/fd")) <= server
        assert len(os.listdir("/proc/self/fd")) == ours
        assert len(below(nursery.spawner.pid)) == 1


async def test_a_warm_child_is_ready_before_the_first_attempt(tmp_path: Path) -> None:
    registry = HandlerRegistry()

    def note() -> None:
        (tmp_path / "pid").write_text(str(os.getpid()))

    registry.start_hooks.append(note)
    async with children(lambda payload: os.getpid(), registry=registry) as nursery:
        await nursery.executor.run_start_hooks()
        pid = await appears(tmp_path / "pid")
        assert await nursery.value() == int(pid)
