"""Handlers that do to their process whatever a process can suffer."""

from __future__ import annotations

import ctypes
import os
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

from taskqueue import Context, task


def _note(payload: dict[str, Any], *pids: int) -> None:
    """Write down which processes there are: our own, and these."""
    with Path(payload["runs"]).open("a") as runs:
        runs.write("".join(f"{pid}\n" for pid in (os.getpid(), *pids)))


@task
def hold(payload: dict[str, Any]) -> str:
    """Run until the gate is open; leave a mark when it went on after that."""
    _note(payload)
    while not Path(payload["gate"]).exists():
        time.sleep(0.01)
    Path(payload["gate"] + ".mark").touch()
    return "held"


@task(default=True)
def pid(payload: dict[str, Any]) -> int:
    return os.getpid()


@task
def segfault(payload: dict[str, Any]) -> None:
    ctypes.string_at(0)


@task
def exit_three(payload: dict[str, Any]) -> None:
    os._exit(3)


@task(memory_mib=200)
def greedy(payload: dict[str, Any]) -> None:
    kept = []
    while True:
        kept.append(bytearray(10 * 1024 * 1024))
        time.sleep(0.01)


@task
def deaf(payload: dict[str, Any]) -> None:
    """Block SIGTERM."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    hold(payload)


@task
def long_sum(payload: dict[str, Any]) -> None:
    """Hold the interpreter in one call of C code."""
    _note(payload)
    sum(range(10**15))


@task
def long_regex(payload: dict[str, Any]) -> None:
    """Hold the interpreter in another one."""
    _note(payload)
    re.match(r"(a+)+$", "a" * 64 + "b")


@task
def family(payload: dict[str, Any]) -> None:
    """Have a program and a forked process beside us."""
    program = subprocess.Popen(["sleep", "1000"])
    forked = os.fork()
    while not forked:
        time.sleep(1)
    _note(payload, program.pid, forked)
    hold(payload)


@task
def tidy(payload: dict[str, Any], ctx: Context) -> None:
    """Write down that the attempt was asked to end."""
    try:
        hold(payload)
    finally:
        Path(payload["gate"] + ".tidy").write_text(str(ctx.cancelled))


@task
def speak(payload: dict[str, Any], ctx: Context) -> None:
    print("a printed line")
    ctx.logger.info("a logged line")
    ctx.progress(50, "half")
