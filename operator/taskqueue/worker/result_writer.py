"""Writes the results of attempts to a store, before their ends are known to anybody.

It stands between the runtime and what runs attempts, so that whatever ran an attempt, its end is
held up until the result is in the store: the attempt keeps its slot, which bounds what is in
memory, and can be cancelled or time out as before. A store that is away is waited for, at most as
long as the attempt may take; then the attempt has failed, and may be tried again. So an outcome
that names a result never comes before the result.

Small results pass untouched unless all are to be stored, and those of direct messages always: no
Task would say where they are.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

import orjson

from taskqueue.logs import EventLog
from taskqueue.model.result import result_key
from taskqueue.results.patience import PATIENCE_SECONDS, put_patiently
from taskqueue.results.reference import JSON, StoredResult, reference_to
from taskqueue.results.store import ResultStore, StoreError
from taskqueue.worker.executor import AttemptRequest, AttemptResult, Execution, Executor
from taskqueue.worker.outcome import failure
from taskqueue.worker.sdk import Progress

log = EventLog("taskqueue.worker")

#: How much of an attempt's time is left for the report that its result was not stored, in seconds.
_REPORT_SECONDS = 1.0


class ResultWriter:
    """Runs attempts by another executor, and stores their results; an executor itself.

    Args:
        executor: runs the attempts.
        store: where results go.
        loop: everything here is called on it.
        namespace: of the TaskQueue.
        always: store every result, not only those that no status takes.
    """

    def __init__(
        self,
        executor: Executor,
        store: ResultStore,
        loop: asyncio.AbstractEventLoop,
        *,
        namespace: str,
        always: bool,
    ) -> None:
        self._executor = executor
        self._store = store
        self._namespace = namespace
        self._always = always
        self._writing: set[asyncio.Task[AttemptResult]] = set()
        self.loop = loop

    def start(self, attempt: AttemptRequest, done: Callable[[AttemptResult], None]) -> Execution:
        """Run an attempt."""
        if attempt.epoch is None:
            return self._executor.start(attempt, done)
        execution = _StoredExecution(self, attempt, done)
        execution.running = self._executor.start(attempt, execution.on_ended)
        return execution

    async def close(self, seconds: float = 0.0) -> None:
        """Close the executor, then the store."""
        await self._executor.close(seconds)
        for task in self._writing:
            task.cancel()
        await self._store.close()

    def unstored(self, result: AttemptResult) -> StoredResult | None:
        """Return what is to be stored of an attempt's result; None: nothing."""
        if result.unstored is None and self._always and result.result is not None:
            return StoredResult(orjson.dumps(result.result), JSON) if result.is_success else None
        return result.unstored

    def write(
        self, attempt: AttemptRequest, result: AttemptResult, stored: StoredResult
    ) -> asyncio.Task[AttemptResult]:
        """Store a result; the task returns what has become of the attempt."""
        task = self.loop.create_task(self._write(attempt, result, stored))
        self._writing.add(task)
        task.add_done_callback(self._writing.discard)
        return task

    async def _write(
        self, attempt: AttemptRequest, result: AttemptResult, stored: StoredResult
    ) -> AttemptResult:
        key = result_key(
            namespace=self._namespace,
            queue=attempt.queue,
            uid=attempt.uid,
            attempt=attempt.attempt,
            epoch=attempt.epoch or 0,
        )
        left = attempt.timeout_seconds - result.seconds - _REPORT_SECONDS
        try:
            kept = await put_patiently(
                self._store, key, stored, seconds=max(min(PATIENCE_SECONDS, left), 0.0)
            )
        except StoreError as error:
            return failure(
                "ResultNotStored",
                f"its result of {len(stored.body)} bytes was not stored: {error}",
                result.seconds,
            )
        reference = reference_to(key, kept)
        return replace(result, result=None, unstored=None, reference=reference)


class _StoredExecution:
    """An attempt, from its start until its result is stored."""

    __slots__ = ("_attempt", "_done", "_seconds", "_task", "_writer", "running")

    running: Execution

    def __init__(
        self,
        writer: ResultWriter,
        attempt: AttemptRequest,
        done: Callable[[AttemptResult], None],
    ) -> None:
        self._writer = writer
        self._attempt = attempt
        self._done = done
        self._seconds = 0.0
        self._task: asyncio.Task[AttemptResult] | None = None

    @property
    def progress(self) -> Progress | None:
        """The latest progress reported, or None."""
        return self.running.progress

    @property
    def killable(self) -> bool:
        """Whether it can be ended by force."""
        return self._task is not None or self.running.killable

    def cancel(self) -> None:
        """Ask the attempt to end, or end the writing."""
        if self._task is None:
            self.running.cancel()
        else:
            self._task.cancel()

    def kill(self) -> bool:
        """End the attempt by force, or the writing."""
        if self._task is None:
            return self.running.kill()
        self._task.cancel()
        return True

    def on_ended(self, result: AttemptResult) -> None:
        """Store the result of the attempt, which has ended, or report the end at once."""
        stored = self._writer.unstored(result)
        if stored is None:
            self._done(result)
            return
        self._seconds = result.seconds
        self._task = self._writer.write(self._attempt, result, stored)
        self._task.add_done_callback(self._on_written)

    def _on_written(self, task: asyncio.Task[AttemptResult]) -> None:
        if task.cancelled():
            result = failure("Cancelled", "its result was being stored", self._seconds)
        elif (error := task.exception()) is not None:
            log.error("result.write_failed", exc_info=error, **self._attempt.log_fields)
            reason = f"its result was not stored: {type(error).__name__}: {error}"
            result = failure("ResultNotStored", reason, self._seconds)
        else:
            result = task.result()
        self._done(result)
