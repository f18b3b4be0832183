"""The handlers of README.md for the Python worker."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from taskqueue import Context, Fail, task

Payload = dict[str, Any]

_POLL_SECONDS = 0.02

#: How many numbers to sum for the first measurement of the speed.
_SOME = 5_000_000


def _append(payload: Payload, event: str) -> None:
    if "trace" in payload:
        with Path(payload["trace"]).open("a") as trace:
            trace.write(f"{event} {os.getpid()}\n")


@contextmanager
def _traced(payload: Payload) -> Iterator[None]:
    _append(payload, "begin")
    try:
        yield
    finally:
        _append(payload, "end")


@task(default=True)
def echo(payload: Payload) -> Payload:
    with _traced(payload):
        return payload


@task
def sleep(payload: Payload, ctx: Context) -> None:
    with _traced(payload):
        end = time.monotonic() + payload["seconds"]
        try:
            while time.monotonic() < end and not ctx.cancelled:
                time.sleep(_POLL_SECONDS)
        finally:
            if ctx.cancelled:
                time.sleep(payload.get("linger", 0))


@task
def deaf(payload: Payload) -> None:
    with _traced(payload):
        end = time.monotonic() + payload["seconds"]
        while (left := end - time.monotonic()) > 0:
            try:
                time.sleep(left)
            except BaseException:  # noqa: S112 - it ignores every attempt to stop it
                continue


@task
def burn(payload: Payload) -> None:
    """Keep the CPU busy with few calls of native code, which hold the interpreter's lock."""
    with _traced(payload):
        end = time.monotonic() + payload["seconds"]
        numbers = _SOME
        while (began := time.monotonic()) < end:
            sum(range(numbers))
            now = time.monotonic()
            # Half of what is left: other programs may take most of the CPU meanwhile.
            numbers = int(numbers * max((end - now) / 2, 0.1) / (now - began))


@task
def fail(payload: Payload) -> None:
    with _traced(payload):
        raise RuntimeError("broken, as asked")


@task("fail-as")
def fail_as(payload: Payload) -> None:
    with _traced(payload):
        raise Fail(payload["message"], type=payload["type"])


@task("fail-for-good")
def fail_for_good(payload: Payload) -> None:
    with _traced(payload):
        raise Fail("broken for good, as asked")


@task
def snooze(payload: Payload, ctx: Context) -> None:
    with _traced(payload):
        ctx.snooze(payload["seconds"])


@task
def steps(payload: Payload, ctx: Context) -> dict[str, int]:
    """Save the number of each step when it is done; return the number of the first."""
    with _traced(payload):
        first = (ctx.last_checkpoint or {"step": 0})["step"] + 1
        for step in range(first, payload["steps"] + 1):
            time.sleep(payload.get("seconds", 0))
            ctx.checkpoint({"step": step})
        return {"first": first}
