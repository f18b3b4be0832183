"""The handlers that README.md asks for, for the Python worker."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from taskqueue import Context, Fail, task

Payload = dict[str, Any]

_LOOK_SECONDS = 0.02

#: Numbers that are summed up in a moment, to measure how fast that is.
_SOME = 5_000_000


def _note(payload: Payload, word: str) -> None:
    if "trace" in payload:
        with Path(payload["trace"]).open("a") as trace:
            trace.write(f"{word} {os.getpid()}\n")


@contextmanager
def _traced(payload: Payload) -> Iterator[None]:
    _note(payload, "begin")
    try:
        yield
    finally:
        _note(payload, "end")


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
                time.sleep(_LOOK_SECONDS)
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
            except BaseException:  # noqa: S112 - whatever it is, it is not listened to
                continue


@task
def burn(payload: Payload) -> None:
    """Keep the CPU by few calls of native code, which hold the interpreter's lock."""
    with _traced(payload):
        end = time.monotonic() + payload["seconds"]
        numbers = _SOME
        while (began := time.monotonic()) < end:
            sum(range(numbers))
            now = time.monotonic()
            numbers = int(numbers * max(end - now, 0.1) / (now - began))


@task
def fail(payload: Payload) -> None:
    with _traced(payload):
        raise RuntimeError("broken, as asked")


@task("fail-for-good")
def fail_for_good(payload: Payload) -> None:
    with _traced(payload):
        raise Fail("broken for good, as asked")
