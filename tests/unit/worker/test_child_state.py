"""What an attempt does to its child process, and what the next attempt sees of it."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from taskqueue.worker.sdk import HandlerRegistry
from tests.unit.worker.children import alive, appears, children, gone, worker_log

FOREVER = 600

#: What an attempt leaves to the interpreter, so that it does not go with its frame.
KEPT: list[Any] = []


def sleeper(**how: Any) -> int:
    return subprocess.Popen(["sleep", str(FOREVER)], **how).pid


def daemon() -> int:
    """Start a process as daemons do: forked twice, in a session of its own."""
    reading, writing = os.pipe()
    if os.fork() == 0:
        os.setsid()
        pid = os.fork()
        if pid == 0:
            os.execvp("sleep", ["sleep", str(FOREVER)])  # noqa: S606
        os.write(writing, str(pid).encode())
        os._exit(0)
    os.close(writing)
    with open(reading) as file:
        return int(file.read())


def ignore(number: int, frame: Any) -> None:
    """Do nothing."""


def handle_timers() -> None:
    for number in (signal.SIGPROF, signal.SIGVTALRM):
        signal.signal(number, ignore)


def change_environment() -> None:
    os.environ["PATH"] = "/nowhere"
    os.environ["NEW"] = "1"
    os.environ["TZ"] = "Asia/Tokyo"
    time.tzset()
    del os.environ["HOME"]


def redirect(fd: int) -> None:
    other = os.open(os.devnull, os.O_RDWR)
    os.dup2(other, fd)
    os.close(other)


def lower_soft_limit() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))


#: What is undone: the same child runs the next attempt.
RESTORED: dict[str, Callable[[], Any]] = {
    "alarm": lambda: signal.alarm(FOREVER),
    "timer": lambda: signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001),
    "virtual-timer": lambda: signal.setitimer(signal.ITIMER_VIRTUAL, 0.001, 0.001),
    "profile-timer": lambda: signal.setitimer(signal.ITIMER_PROF, 0.001, 0.001),
    "folder": lambda: os.chdir("/proc"),
    "umask": lambda: os.umask(0o077),
    "environment": change_environment,
    "environment-replaced": lambda: setattr(os, "environ", {}),
    "environment-cleared": lambda: os.environ.clear(),
    "handlers": lambda: [signal.signal(n, ignore) for n in (signal.SIGALRM, signal.SIGUSR1)],
    "term-ignored": lambda: signal.signal(signal.SIGTERM, signal.SIG_IGN),
    "int-default": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    "children-ignored": lambda: signal.signal(signal.SIGCHLD, signal.SIG_IGN),
    "crash-handler": lambda: signal.signal(signal.SIGSEGV, ignore),
    "mask": lambda: signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGUSR2}),
    "soft-limit": lower_soft_limit,
    "processors": lambda: os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}),
    "recursion-limit": lambda: sys.setrecursionlimit(sys.getrecursionlimit() + 7),
    "stdout-replaced": lambda: setattr(sys, "stdout", None),
    "stdout-closed": lambda: sys.stdout.close(),
    "stderr-closed": lambda: sys.stderr.close(),
    "stdin-replaced": lambda: setattr(sys, "stdin", None),
    "stdout-redirected": lambda: redirect(1),
    "stderr-redirected": lambda: redirect(2),
    "stdin-redirected": lambda: redirect(0),
    "stdout-descriptor-closed": lambda: os.close(1),
    "stderr-descriptor-closed": lambda: os.close(2),
    "connection-kept": lambda: KEPT.append(socket.socketpair()),
    "device-kept": lambda: KEPT.append(os.open(os.devnull, os.O_RDONLY)),
    "thread-about-to-end": lambda: threading.Thread(target=time.sleep, args=(0.005,)).start(),
    "zombie": lambda: KEPT.append(subprocess.Popen(["true"])),
}

#: Processes that an attempt leaves.
STARTED: dict[str, Callable[[], int]] = {
    "process": sleeper,
    "session": lambda: sleeper(start_new_session=True),
    "group": lambda: sleeper(process_group=0),
    "deaf": lambda: (
        subprocess.Popen(
            ["sh", "-c", f"trap '' TERM INT HUP; sleep {FOREVER}"], start_new_session=True
        ).pid
    ),
    "daemon": daemon,
    "shell": lambda: subprocess.Popen(["sh", "-c", f"sleep {FOREVER} & sleep {FOREVER}"]).pid,
}


def lower_hard_limit() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if os.geteuid() == 0:  # root may raise it again
        resource.setrlimit = fail_to_set


def fail_to_set(*_: Any) -> None:
    raise ValueError("not allowed to raise maximum limit")


def lower_priority() -> None:
    os.setpriority(os.PRIO_PROCESS, 0, os.getpriority(os.PRIO_PROCESS, 0) + 1)
    if os.geteuid() == 0:
        os.setpriority = fail_to_renice  # type: ignore[assignment]


def fail_to_renice(*_: Any) -> None:
    raise PermissionError


#: What cannot be undone: the next attempt gets another child.
LEFT: dict[str, tuple[Callable[[], Any], str]] = {
    "thread": (
        lambda: threading.Thread(target=time.sleep, args=(FOREVER,), name="worker-1").start(),
        "it left threads running: worker-1",
    ),
    "daemon-thread": (
        lambda: threading.Thread(target=time.sleep, args=(FOREVER,), daemon=True, name="d").start(),
        "it left threads running: d",
    ),
    "timer-thread": (
        lambda: threading.Timer(FOREVER, print).start(),
        "it left threads running: Thread-",
    ),
    "file": (
        lambda: KEPT.append(tempfile.TemporaryFile()),  # noqa: SIM115
        "it left files open: ",
    ),
    "file-descriptor": (
        lambda: os.open("/etc/passwd", os.O_RDONLY),
        "it left files open: /etc/passwd",
    ),
    "folder-descriptor": (lambda: os.open("/etc", os.O_RDONLY), "it left files open: /etc"),
    "pipe": (lambda: KEPT.append(os.pipe()), "it left files open: pipe:"),
    "listener": (
        lambda: KEPT.append(socket.create_server(("127.0.0.1", 0))),
        "it left files open: socket:",
    ),
    "hard-limit": (lower_hard_limit, "it lowered a hard resource limit"),
    "priority": (lower_priority, "it lowered its priority"),
}


def state() -> dict[str, Any]:
    """Return what an attempt can see of its process."""
    status = Path("/proc/self/status").read_text()
    return {
        "pid": os.getpid(),
        "timers": [signal.getitimer(which) for which in range(3)],
        "folder": os.getcwd(),
        "umask": status[status.index("Umask") :].split()[1],
        "environment": sorted(os.environ.items()),
        "in programs": sorted(
            subprocess.run(["env"], capture_output=True, text=True).stdout.splitlines()
        ),
        "zone": time.tzname,
        "handlers": [str(signal.getsignal(number)) for number in range(1, 32)],
        # As the kernel has them: caught, ignored, blocked. Above the first 31 the C library takes
        # two for itself when the first thread starts.
        "signals": {
            name: int(mask, 16) & 0x7FFF_FFFF
            for name, _, mask in (each.partition(":") for each in status.splitlines())
            if name in {"SigBlk", "SigIgn", "SigCgt"}
        },
        "limits": [resource.getrlimit(limit) for limit in range(16)],
        "priority": os.getpriority(os.PRIO_PROCESS, 0),
        "processors": sorted(os.sched_getaffinity(0)),
        "recursion limit": sys.getrecursionlimit(),
        "streams": [os.readlink(f"/proc/self/fd/{fd}") for fd in range(3)],
        "closed": [stream.closed for stream in (sys.stdin, sys.stdout, sys.stderr)],
        "crashes": faulthandler.is_enabled(),
    }


def handler(payload: dict[str, Any]) -> Any:
    name = payload.get("do", "")
    if name in RESTORED:
        RESTORED[name]()
        if payload.get("raise"):
            raise ValueError(name)
        return None
    if name in STARTED:
        return STARTED[name]()
    if name in LEFT:
        LEFT[name][0]()
        return os.getpid()
    return state()


@pytest.mark.parametrize("how", [{}, {"raise": True}], ids=["returns", "raises"])
async def test_the_next_attempt_in_a_child_sees_nothing_of_the_one_before(
    how: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    registry = HandlerRegistry()
    registry.start_hooks.append(handle_timers)
    async with children(handler, registry=registry, capture=True) as nursery:
        before = (await nursery.run({})).result
        for name in RESTORED:
            result = await nursery.run({"do": name, **how})
            assert (result.error is not None) == bool(how) or name == "timer", name
            assert (await nursery.run({})).result == before, name
    assert "child.replaced" not in caplog.messages
    assert "child.died" not in caplog.messages


async def test_an_alarm_of_an_attempt_that_has_returned_rings_nobody() -> None:
    def alarming(payload: dict[str, Any]) -> int:
        signal.setitimer(signal.ITIMER_REAL, 0.02)
        if payload.get("wait"):
            signal.setitimer(signal.ITIMER_REAL, 0)
            time.sleep(0.05)
        return os.getpid()

    async with children(alarming) as nursery:
        pids = {await nursery.value({"wait": wait}) for wait in (0, 1, 0, 1)}
    assert len(pids) == 1


@pytest.mark.parametrize("name", STARTED)
async def test_processes_that_an_attempt_leaves_have_ended_when_its_outcome_comes(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with children(handler) as nursery:
        before = (await nursery.run({})).result
        pid = await nursery.value({"do": name})
        assert not alive(pid)
        assert before is not None
        assert (await nursery.run({})).result == before
        assert not nursery.pool.children - set(nursery.pool.idle)


@pytest.mark.parametrize("name", STARTED)
async def test_processes_of_an_attempt_that_is_killed_end_with_it(
    name: str, tmp_path: Path
) -> None:
    def endless(payload: dict[str, Any]) -> None:
        (tmp_path / "pid").write_text(str(STARTED[name]()))
        while True:
            with contextlib.suppress(BaseException):
                time.sleep(FOREVER)

    async with children(endless, kill_grace_seconds=0.1) as nursery:
        execution = nursery.start()
        pid = int(await appears(tmp_path / "pid"))
        execution.cancel()
        assert (await nursery.error())[0] == "Cancelled"
        await gone(pid)


async def test_processes_of_a_start_hook_stay() -> None:
    started: list[int] = []
    registry = HandlerRegistry()
    registry.start_hooks.append(lambda: started.append(sleeper()))
    async with children(
        lambda payload: [started, STARTED["session"]()], registry=registry
    ) as nursery:
        (first, *_), left = await nursery.value()
        (again, *_), _ = await nursery.value()
        assert first == again
        assert alive(first)
        assert not alive(left)


@pytest.mark.parametrize("name", LEFT)
async def test_a_child_in_which_something_is_left_is_replaced_and_the_log_says_why(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with children(handler, kill_grace_seconds=0.2) as nursery:
        pid = await nursery.value({"do": name})
        assert not alive(pid), "the outcome comes when nothing of the attempt runs any more"
        following = (await nursery.run({})).result
        assert following is not None
        assert following["pid"] != pid
    (record,) = [each for each in caplog.records if each.message == "child.replaced"]
    fields = record.fields  # type: ignore[attr-defined]
    assert fields["reason"].startswith(LEFT[name][1])
    assert "@on_start" in fields["hint"]
    assert (fields["task"], fields["handler"], fields["pid"]) == ("a", "f", pid)


async def test_threads_and_files_of_a_start_hook_stay() -> None:
    registry = HandlerRegistry()
    registry.start_hooks.append(
        lambda: threading.Thread(target=time.sleep, args=(FOREVER,), daemon=True).start()
    )
    registry.start_hooks.append(lambda: KEPT.append(open("/etc/passwd")))  # noqa: SIM115
    async with children(lambda payload: os.getpid(), registry=registry) as nursery:
        assert len({await nursery.value() for _ in range(5)}) == 1


async def test_what_an_exception_holds_open_is_closed_before_it_is_judged() -> None:
    def failing(payload: dict[str, Any]) -> int:
        if payload.get("fail"):
            file = open("/etc/passwd")  # noqa: SIM115
            try:
                raise ValueError(file.name)
            except ValueError as error:
                error.within = error  # type: ignore[attr-defined]
                raise
        return os.getpid()

    async with children(failing) as nursery:
        before = await nursery.value()
        assert (await nursery.run({"fail": True})).error is not None
        assert await nursery.value() == before


async def test_leftovers_are_kept_where_the_settings_say_so() -> None:
    async with children(handler, keep_leftovers=True) as nursery:
        before = (await nursery.run({})).result
        assert before is not None
        for name in ("thread", "file"):
            assert await nursery.value({"do": name}) == before["pid"]
        after = (await nursery.run({})).result
        assert after is not None
        assert after["pid"] == before["pid"]


async def test_the_warning_about_processes_names_the_attempt(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with worker_log():
        async with children(handler) as nursery:
            await nursery.value({"do": "process"})
    assert "handler.processes_ended" in capfd.readouterr().err
