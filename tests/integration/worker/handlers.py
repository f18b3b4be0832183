"""Handlers of the worker under test. Each run writes a line to the file that the payload names."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from pathlib import Path
from typing import Any

from taskqueue import Context, Fail, Retry, task

#: The gate file is polled this often, in seconds.
_POLL_SECONDS = 0.01


def _note(payload: dict[str, Any]) -> None:
    """Write down that a run has started: one line with our process id."""
    if "runs" in payload:
        with Path(payload["runs"]).open("a") as runs:
            runs.write(f"{os.getpid()}\n")


@task
def echo(payload: dict[str, Any], ctx: Context) -> dict[str, Any]:
    _note(payload)
    return {"payload": payload, "attempt": ctx.attempt, "task": ctx.task, "uid": ctx.uid}


@task(default=True)
def noop(payload: dict[str, Any]) -> None:
    _note(payload)


@task
def broken(payload: dict[str, Any]) -> None:
    _note(payload)
    raise ValueError("the picture has no pixels")


@task
def later(payload: dict[str, Any]) -> None:
    raise Retry("not ready", after=12.5)


@task
def never(payload: dict[str, Any]) -> None:
    raise Fail("no such customer", type="NotFound")


@task
def too_much(payload: dict[str, Any]) -> str:
    return "x" * 20_000


@task
def hold(payload: dict[str, Any]) -> str:
    """Run until the test opens the gate."""
    _note(payload)
    while not Path(payload["gate"]).exists():
        time.sleep(_POLL_SECONDS)
    return "held"


@task
def report_progress(payload: dict[str, Any], ctx: Context) -> None:
    """Report progress, and run until the test opens the gate."""
    ctx.progress(40, "resizing")
    hold(payload)


@task(thread=True)
def polite(payload: dict[str, Any], ctx: Context) -> dict[str, Any]:
    """Run until the result is no longer wanted, and say so in a second line."""
    _note(payload)
    while not ctx.cancelled:
        time.sleep(_POLL_SECONDS)
    _note(payload)
    return {"fence": ctx.fence}


@task(thread=True)
def thread_hold(payload: dict[str, Any]) -> None:
    """Hold a thread of the worker, and one more that the interpreter waits for at its end."""
    inner = threading.Thread(target=hold, args=(payload,), daemon=False)
    inner.start()
    inner.join()


@task
async def async_hold(payload: dict[str, Any]) -> str:
    _note(payload)
    while not Path(payload["gate"]).exists():  # noqa: ASYNC110, ASYNC240 - the test's file
        await asyncio.sleep(_POLL_SECONDS)
    return "held"
