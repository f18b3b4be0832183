"""Keeps the end of what attempts print, so that it can be read when their pod is gone.

With a store it goes there, after the end of the attempt has been reported: whatever the store does,
no outcome waits for it. Without one, the last lines of a failed attempt are in its outcome.

The application may have a function that removes what nobody must read (`taskqueue.redact_output`).
It runs in a thread, and what it fails on is not kept.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

from taskqueue.limits import OUTPUT_BYTES, STATUS_OUTPUT_BYTES
from taskqueue.logs import EventLog
from taskqueue.model.result import output_key
from taskqueue.results.patience import put_patiently
from taskqueue.results.reference import StoredResult
from taskqueue.results.store import ResultStore, StoreError
from taskqueue.worker.executor import AttemptRequest, AttemptResult, Execution, Executor
from taskqueue.worker.outcome import describe_exception, encodable

log = EventLog("taskqueue.worker")

#: How long an outcome waits for the application's function at most, in seconds.
REDACTION_SECONDS = 0.5

#: Outputs that wait for the store, of all attempts. More are dropped, the newest first.
_WAITING = 64

CONTENT_TYPE = "text/plain; charset=utf-8"

Redactor = Callable[[str], str]


class OutputTail:
    """Keeps the last lines of an attempt's output, within `OUTPUT_BYTES` of UTF-8."""

    __slots__ = ("_bytes", "_lines")

    def __init__(self) -> None:
        self._lines: deque[bytes] = deque()
        self._bytes = 0

    def add(self, text: str) -> None:
        """Add a line, or several."""
        line = encodable(text).encode() + b"\n"
        self._lines.append(line)
        self._bytes += len(line)
        while self._bytes - len(self._lines[0]) >= OUTPUT_BYTES:
            self._bytes -= len(self._lines.popleft())

    def text(self) -> str:
        """Return it, from the beginning of a line on: half a secret may look like none."""
        return last_lines(b"".join(self._lines), OUTPUT_BYTES)


def last_lines(text: bytes, size: int) -> str:
    """Return as many of the last lines of a text as fit a size in bytes."""
    if len(text) > size:
        _, _, text = text[-size - 1 :].partition(b"\n")
    return text.decode("utf-8", "replace")


class OutputKeeper:
    """Runs attempts by another executor, and keeps their output; an executor itself.

    Args:
        executor: runs the attempts.
        loop: everything here is called on it.
        store: where output goes; None: to the outcomes of failed attempts.
        namespace: of the TaskQueue.
        failed_only: that of attempts that succeed is not kept.
        redact: the application's function; None: it has none.
    """

    def __init__(
        self,
        executor: Executor,
        loop: asyncio.AbstractEventLoop,
        *,
        store: ResultStore | None,
        namespace: str,
        failed_only: bool,
        redact: Redactor | None,
    ) -> None:
        self._executor = executor
        self._loop = loop
        self._store = store
        self._namespace = namespace
        self._failed_only = failed_only
        self._redact = redact
        self._waiting: set[asyncio.Task[None]] = set()

    def start(self, attempt: AttemptRequest, done: Callable[[AttemptResult], None]) -> Execution:
        """Run an attempt."""
        if attempt.epoch is None:
            return self._executor.start(attempt, done)
        tail = OutputTail()

        def on_ended(result: AttemptResult) -> None:
            self._on_ended(attempt, tail, result, done)

        return self._executor.start(replace(attempt, on_output=tail.add), on_ended)

    async def close(self, seconds: float = 0.0) -> None:
        """Give what waits for the store as long as attempts have, and close the executor."""
        if self._waiting:
            await asyncio.wait(set(self._waiting), timeout=seconds)
        for task in self._waiting:
            task.cancel()
        await self._executor.close(seconds)

    def _on_ended(
        self,
        attempt: AttemptRequest,
        tail: OutputTail,
        result: AttemptResult,
        done: Callable[[AttemptResult], None],
    ) -> None:
        has_ended = result.error is not None or result.is_success
        text = tail.text() if has_ended else ""
        if not text or (result.is_success and (self._failed_only or self._store is None)):
            done(result)
        elif self._store is not None:
            done(result)
            if len(self._waiting) >= _WAITING:
                log.warning("output.dropped", reason="too much waits", **attempt.log_fields)
                return
            self._spawn(self._write(self._store, attempt, text))
        elif self._redact is None:
            done(_with_output(result, text))
        else:
            self._spawn(self._report(attempt, text, result, done))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._waiting.add(task)
        task.add_done_callback(self._waiting.discard)

    async def _write(self, store: ResultStore, attempt: AttemptRequest, text: str) -> None:
        key = output_key(
            namespace=self._namespace,
            queue=attempt.queue,
            uid=attempt.uid,
            attempt=attempt.attempt,
            epoch=attempt.epoch or 0,
        )
        try:
            text = await self._redacted(text)
            await put_patiently(store, key, StoredResult(text.encode(), CONTENT_TYPE))
        except StoreError as error:
            log.warning("output.not_stored", error=str(error), **attempt.log_fields)
        except Exception as error:  # of the application's function
            _log_redaction(attempt, error)

    async def _report(
        self,
        attempt: AttemptRequest,
        text: str,
        result: AttemptResult,
        done: Callable[[AttemptResult], None],
    ) -> None:
        try:
            async with asyncio.timeout(REDACTION_SECONDS):
                result = _with_output(result, await self._redacted(text))
        except Exception as error:
            _log_redaction(attempt, error)
        done(result)

    async def _redacted(self, text: str) -> str:
        if self._redact is None:
            return text
        return encodable(await asyncio.to_thread(self._redact, text))


def _with_output(result: AttemptResult, text: str) -> AttemptResult:
    return replace(result, output=last_lines(text.encode(), STATUS_OUTPUT_BYTES))


def _log_redaction(attempt: AttemptRequest, error: Exception) -> None:
    log.error(
        "output.redaction_failed",
        error=describe_exception(error) if not isinstance(error, TimeoutError) else "it took long",
        hint="the output of the attempt is not kept: correct the function marked with "
        "@redact_output",
        **attempt.log_fields,
    )
