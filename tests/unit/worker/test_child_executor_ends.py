"""How attempts in child processes are stopped, and what becomes of children that end."""

from __future__ import annotations

import asyncio
import ctypes
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from taskqueue import Cancelled, Context
from tests.unit.worker.children import PATIENCE, alive, appears, children, gone


def begun(payload: dict[str, Any]) -> None:
    """Tell the test that the handler runs, and in which process."""
    Path(payload["begun"]).write_text(str(os.getpid()))


def hold(payload: dict[str, Any]) -> None:
    """Run for longer than any test, in Python."""
    begun(payload)
    while True:
        time.sleep(0.01)


# Cancels.


async def test_a_cancel_is_raised_in_the_handler_which_may_clean_up(tmp_path: Path) -> None:
    def handler(payload: dict[str, Any], ctx: Context) -> None:
        try:
            hold(payload)
        except Exception:
            (tmp_path / "swallowed").touch()
        finally:
            (tmp_path / "cleaned").write_text(str(ctx.cancelled))

    async with children(handler) as nursery:
        execution = nursery.start({"begun": str(tmp_path / "begun")})
        pid = int(await appears(tmp_path / "begun"))
        execution.cancel()
        assert (await nursery.error())[0] == "Cancelled"
        assert not alive(pid), "told when the process is gone"
        assert (tmp_path / "cleaned").read_text() == "True"
        assert not (tmp_path / "swallowed").exists()
        execution.cancel()  # harmless
        assert execution.kill()
        assert nursery.results.empty()


async def test_what_a_cancelled_handler_returns_is_its_end_all_the_same(tmp_path: Path) -> None:
    def handler(payload: dict[str, Any], ctx: Context) -> str:
        try:
            hold(payload)
        except Cancelled:
            return "saved"
        return "never"

    async with children(handler) as nursery:
        execution = nursery.start({"begun": str(tmp_path / "begun")})
        await appears(tmp_path / "begun")
        execution.cancel()
        assert (await nursery.result()).result == {"value": "saved"}


async def test_a_cancel_before_the_child_is_there_means_that_nothing_runs(tmp_path: Path) -> None:
    def handler(payload: dict[str, Any]) -> None:
        hold(payload)

    async with children(handler) as nursery:
        nursery.start({"begun": str(tmp_path / "begun")}).cancel()
        assert (await nursery.error())[0] == "Cancelled"
        assert not (tmp_path / "begun").exists()


async def test_the_next_attempt_after_a_cancel_is_not_cancelled() -> None:
    async with children(lambda payload: os.getpid()) as nursery:
        for _ in range(30):
            nursery.start().cancel()
            await nursery.result()
            assert await nursery.value() > 0


async def test_a_cancel_never_cuts_a_frame_in_two(tmp_path: Path) -> None:
    def handler(payload: dict[str, Any], ctx: Context) -> str:
        try:
            begun(payload)
            while True:
                ctx.progress(1, "x" * 100_000)
        except Cancelled:
            return "whole"

    async with children(handler) as nursery:
        for _ in range(20):
            (tmp_path / "begun").unlink(missing_ok=True)
            execution = nursery.start({"begun": str(tmp_path / "begun")})
            await appears(tmp_path / "begun")
            execution.cancel()
            assert (await nursery.result()).result == {"value": "whole"}


async def test_a_sigterm_that_is_not_the_workers_changes_nothing(tmp_path: Path) -> None:
    def handler(payload: dict[str, Any]) -> str:
        begun(payload)
        while not (tmp_path / "gate").exists():
            time.sleep(0.01)
        return "finished"

    async with children(handler) as nursery:
        execution = nursery.start({"begun": str(tmp_path / "begun")})
        pid = int(await appears(tmp_path / "begun"))
        for number in (signal.SIGTERM, signal.SIGINT):
            os.kill(pid, number)
            os.kill(nursery.spawner.pid, number)
        (tmp_path / "gate").touch()
        assert (await nursery.result()).result == {"value": "finished"}
        os.kill(pid, signal.SIGTERM)  # an idle one
        assert (await nursery.run({"begun": str(tmp_path / "begun")})).error is None
        assert int((tmp_path / "begun").read_text()) == pid
        assert execution.kill()


def swallow(payload: dict[str, Any]) -> None:
    begun(payload)
    while True:
        try:
            time.sleep(60)
        except BaseException:  # noqa: S112 - as a careless handler would
            continue


def block_the_signal(payload: dict[str, Any]) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    hold(payload)


def hold_the_interpreter(payload: dict[str, Any]) -> None:
    begun(payload)
    sum(range(10**15))


@pytest.mark.parametrize("handler", [swallow, block_the_signal, hold_the_interpreter])
async def test_who_does_not_end_is_killed_after_the_grace(
    tmp_path: Path, handler: Callable[..., Any]
) -> None:
    async with children(handler, kill_grace_seconds=0.3) as nursery:
        execution = nursery.start({"begun": str(tmp_path / "begun")})
        pid = int(await appears(tmp_path / "begun"))
        execution.cancel()
        before = nursery.loop.time()
        assert (await nursery.error())[0] == "Cancelled"
        assert nursery.loop.time() - before >= 0.3
        assert not alive(pid)


async def test_the_interpreter_being_held_the_loop_turns(tmp_path: Path) -> None:
    async with children(hold_the_interpreter) as nursery:
        execution = nursery.start({"begun": str(tmp_path / "begun")})
        await appears(tmp_path / "begun")
        await asyncio.wait_for(asyncio.sleep(0.01), 5)
        assert execution.kill()
        assert (await nursery.error())[0] == "Cancelled"


# Deaths.


def end_by(number: int) -> Callable[[dict[str, Any]], None]:
    return lambda payload: os.kill(os.getpid(), number)


@pytest.mark.parametrize(
    ("handler", "words"),
    [
        (lambda payload: ctypes.string_at(0), "ended by SIGSEGV"),
        (lambda payload: os.abort(), "ended by SIGABRT"),
        (end_by(signal.SIGKILL), "ended by SIGKILL"),
        (lambda payload: os._exit(3), "ended with exit code 3"),
        (lambda payload: os._exit(0), "ended with exit code 0"),
        (lambda payload: os.closerange(3, 65_536), "ended with exit code 74"),
    ],
)
async def test_a_child_that_dies_is_a_failed_attempt_and_another_takes_the_next(
    handler: Callable[..., Any], words: str
) -> None:
    def die_or_not(payload: dict[str, Any]) -> Any:
        return handler(payload) if payload else os.getpid()

    async with children(die_or_not) as nursery:
        pid = await nursery.value()
        nursery.start({"die": True})
        kind, message = await nursery.error()
        assert kind == "ChildDied"
        assert words in message
        assert await nursery.value() != pid


async def test_a_traceback_of_the_crash_is_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")

    def crash(payload: dict[str, Any]) -> None:
        ctypes.string_at(0)

    async with children(crash, capture=True) as nursery:
        nursery.start()
        await nursery.error()
    told = [getattr(record, "fields", {}).get("text", "") for record in caplog.records]
    assert "Fatal Python error: Segmentation fault" in told
    assert any("in crash" in text for text in told)


async def test_an_idle_child_that_dies_is_no_attempts_loss(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with children(lambda payload: os.getpid()) as nursery:
        pid = await nursery.value()
        os.kill(pid, signal.SIGKILL)
        async with asyncio.timeout(PATIENCE):
            while "child.died" not in caplog.messages:  # noqa: ASYNC110 - the pool has noticed
                await asyncio.sleep(0.005)
        assert await nursery.value() != pid


def resident_mib() -> int:
    """Return how much memory this process holds."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() // 2**20


async def test_more_memory_than_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("taskqueue.worker.executors.exit_status.MEMORY_SECONDS", 0.05)

    def grow(payload: dict[str, Any]) -> None:
        kept = [bytearray(payload["mib"] * 1024 * 1024)]
        while payload["mib"] and kept:
            time.sleep(0.01)

    # What this process holds, its child does, too: in a run of all tests more than in one of a few.
    limit = resident_mib() + 300
    async with children(grow, memory_mib=limit) as nursery:
        nursery.start({"mib": 400})
        kind, message = await nursery.error()
        assert kind == "MemoryLimit"
        assert f"limit is {limit} MiB" in message
        used = int(message.partition(" held ")[2].partition(" MiB")[0])
        assert limit <= used < limit + 300  # rounded
        assert (await nursery.run({"mib": 0})).error is None


# Processes of handlers.


async def test_what_a_handler_has_started_dies_with_its_child(tmp_path: Path) -> None:
    def handler(payload: dict[str, Any]) -> None:
        program = subprocess.Popen(["sleep", "1000"])
        (tmp_path / "program").write_text(str(program.pid))
        if (forked := os.fork()) == 0:
            while True:
                time.sleep(1)
        (tmp_path / "forked").write_text(str(forked))
        hold(payload)

    async with children(handler, kill_grace_seconds=0.2) as nursery:
        execution = nursery.start({"begun": str(tmp_path / "begun")})
        await appears(tmp_path / "begun")
        pids = [int((tmp_path / name).read_text()) for name in ("program", "forked")]
        assert all(map(alive, pids))
        execution.cancel()
        await nursery.error()
        assert not any(map(alive, pids)), "gone before the end is told"


async def test_a_handlers_own_processes_are_no_part_of_the_conversation() -> None:
    def handler(payload: dict[str, Any], ctx: Context) -> Any:
        if os.fork() == 0:
            ctx.progress(99, "from nowhere")
            return "twice"
        codes = {os.waitstatus_to_exitcode(os.wait()[1])}
        for _ in range(50):  # the signal may come before the process is itself
            process = multiprocessing.get_context("fork").Process(target=time.sleep, args=(1000,))
            process.start()
            process.terminate()
            process.join()
            codes.add(process.exitcode or 0)
        return sorted(codes)

    async with children(handler) as nursery:
        execution = nursery.start()
        assert (await nursery.result()).result == {"value": [-signal.SIGTERM, 0]}
        assert execution.progress is None
        assert nursery.results.empty()


# The fork server, and the end of all.


async def test_a_dead_fork_server_is_replaced_and_what_ran_is_lost(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with children(hold) as nursery:
        nursery.start({"begun": str(tmp_path / "begun")})
        pid = int(await appears(tmp_path / "begun"))
        async with asyncio.timeout(PATIENCE):  # what it runs may be faster than the server's word
            while pid not in {one.pid for one in nursery.spawner._processes.values()}:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        first = nursery.spawner.pid
        os.kill(first, signal.SIGKILL)
        result = await nursery.result()
        assert result.lost
        assert not alive(pid)
        # The one started anew has the handlers of its module.
        assert await nursery.value() not in {pid, os.getpid()}
        assert nursery.spawner.pid not in {0, first}
    assert "forkserver.died" in caplog.messages


async def test_an_attempt_waits_for_a_fork_server_that_cannot_be_started(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with children(hold) as nursery:
        failures = iter([OSError("no memory"), OSError("no memory"), None])
        launch = nursery.spawner._relaunch

        def relaunch() -> Any:
            if (problem := next(failures)) is not None:
                raise problem
            return launch()

        monkeypatch.setattr(nursery.spawner, "_relaunch", relaunch)
        os.kill(nursery.spawner.pid, signal.SIGKILL)
        while nursery.spawner.pid:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        assert await nursery.value() > 0
    assert caplog.messages.count("forkserver.start_failed") == 2


async def test_closing_lets_the_cancelled_clean_up_and_kills_the_rest(tmp_path: Path) -> None:
    def handler(payload: dict[str, Any]) -> None:
        if payload["how"] == "swallow":
            swallow(payload)
        try:
            hold(payload)
        finally:
            time.sleep(0.1)
            (tmp_path / "cleaned").touch()

    pids = []
    async with children(handler) as nursery:
        for how in ("swallow", "clean"):
            execution = nursery.start({"how": how, "begun": str(tmp_path / how)})
            pids.append(int(await appears(tmp_path / how)))
            execution.cancel()
        await nursery.executor.close(1)
        assert (tmp_path / "cleaned").exists()
        for pid in pids:
            await gone(pid)


ROOT = Path(__file__).parents[3]

WORKER = """
import asyncio, os, sys
from tests.unit.worker.children import children

def hold(payload):
    child = os.fork()
    open(sys.argv[1] + str(os.getpid()), "w").write(str(os.getppid()))
    while True:
        sum(range(10**9))

async def main():
    async with children(hold) as nursery:
        nursery.start()
        await asyncio.sleep(1000)

asyncio.run(main())
"""


async def test_no_process_outlives_a_killed_worker(tmp_path: Path) -> None:
    worker = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        WORKER,
        f"{tmp_path}/",
        env={**os.environ, "PYTHONPATH": f"{ROOT / 'operator'}:{ROOT}"},
    )
    async with asyncio.timeout(PATIENCE):
        while len(os.listdir(tmp_path)) < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    pids = [int(name) for name in os.listdir(tmp_path)]
    assert all(map(alive, pids))
    worker.kill()
    await worker.wait()
    for pid in pids:
        await gone(pid)
