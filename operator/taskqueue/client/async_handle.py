"""A Task that `taskqueue.client.async_tasks` has submitted or found: its status, end and result."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TYPE_CHECKING

from taskqueue.client.access import ApiConnection
from taskqueue.client.errors import TaskCancelled, TaskFailed, TaskGone, WaitTimeout
from taskqueue.client.results import ResultValue
from taskqueue.client.status import TaskResult, TaskStatus, result_of, status_of
from taskqueue.client.task_watch import LastSeen, TaskRef, watch_task

if TYPE_CHECKING:
    from taskqueue.client.async_tasks import AsyncTaskClient


class AsyncTaskHandle:
    """A Task that was submitted; made by `AsyncTaskClient`.

    Attributes:
        namespace: of the Task.
        name: of the Task.
        uid: of the Task; Tasks of the same name at different times differ in it.
    """

    def __init__(self, client: AsyncTaskClient, connection: ApiConnection, task: TaskRef) -> None:
        self._client = client
        self._connection = connection
        self._task = task
        self.namespace = task.namespace
        self.name = task.name
        self.uid = task.uid

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.namespace}/{self.name}>"

    async def status(self) -> TaskStatus:
        """Return its present status.

        Raises:
            TaskGone: it was deleted.
            Refused: the API server refused the request.
            Unavailable: the API server did not answer.
        """
        raw = await self._client._get_task(self._connection, self.namespace, self.name)
        if raw["metadata"]["uid"] != self.uid:
            raise replaced(self._task)
        return status_of(raw)

    async def wait(self, timeout: float | None = None) -> TaskResult:  # noqa: ASYNC109
        """Wait until it has succeeded and return its result.

        Args:
            timeout: in seconds; None: no limit, also while the API server is unreachable.

        Raises:
            TaskFailed: it has failed.
            TaskCancelled: it was cancelled.
            WaitTimeout: it has not ended in time.
            TaskGone: it was deleted.
            Refused: the API server refused the request.
        """
        status = await self._wait_for_end(timeout)
        if status.phase == "Failed":
            raise TaskFailed(
                f"{self._task} has failed after {status.attempts} attempts: {status}", status=status
            )
        if status.phase == "Cancelled":
            raise TaskCancelled(f"{self._task} was cancelled", status=status)
        return result_of(status)

    async def result(self, timeout: float | None = None) -> ResultValue:  # noqa: ASYNC109
        """Wait until it has succeeded and return what its handler returned, wherever that is.

        A JSON object is a dict; a handler's other values are in its field ``value``. Bytes are a
        `BinaryResult`.

        Args:
            timeout: in seconds, for the end of the Task; None: no limit.

        Raises:
            ResultExpired: it was in a store, and has been deleted as its time was over.
            ResultUnavailable: it is in a store and cannot be read.
            TaskFailed, TaskCancelled, WaitTimeout, TaskGone, Refused: as `wait`.
        """
        ended = await self.wait(timeout)
        if ended.result_ref is None:
            return ended.result
        return await self._client._results.read(self._connection, self.namespace, ended.result_ref)

    async def output(self, attempt: int | None = None) -> str | None:
        """Return the end of what an attempt has printed, None if nothing of it was kept.

        It is kept as spec.results.output of the TaskQueue says: in its store, from a moment after
        the end of the attempt on, or with a failure in the Task's history.

        Args:
            attempt: its number; default: the last one that has begun.

        Raises:
            ResultUnavailable: it is in a store and cannot be read.
            TaskGone, Refused, Unavailable: as `status`.
        """
        raw = await self._client._get_task(self._connection, self.namespace, self.name)
        if raw["metadata"]["uid"] != self.uid:
            raise replaced(self._task)
        number = attempt or (raw.get("status") or {}).get("attempts") or 1
        return await self._client._results.read_output(self._connection, raw, number)

    async def stream(self) -> AsyncGenerator[TaskStatus, None]:
        """Yield its present status, then each change, the final status last.

        A status that lasts only a few seconds may be missing. Outages are retried without limit.

        Raises:
            TaskGone: it was deleted.
            Refused: the API server refused the request.
        """
        async with aclosing(watch_task(self._task, self._connection, LastSeen())) as statuses:
            async for status in statuses:
                yield status

    async def cancel(self) -> None:
        """Request its cancellation; no effect if it has ended. `wait` returns when it has ended.

        Raises:
            TaskGone: it was deleted.
            Refused: the API server refused the request.
            Unavailable: the API server did not answer.
        """
        await self._client._request_cancel(self._connection, self._task)

    async def _wait_for_end(
        self,
        seconds: float | None,
        *,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> TaskStatus:
        """Return its final status.

        Args:
            seconds: how long to wait; None: no limit.
            timeout: the caller's whole timeout, for the error; default: ``seconds``.
        """
        seen = LastSeen()
        try:
            async with asyncio.timeout(seconds):
                async with aclosing(watch_task(self._task, self._connection, seen)) as statuses:
                    async for status in statuses:
                        if status.finished:
                            return status
                raise AssertionError("the watch ends with a final status only")
        except TimeoutError:
            known = f"it is {seen.status}" if seen.status else "its status is unknown"
            error = f"; the API server is unreachable: {seen.error}" if seen.error else ""
            raise WaitTimeout(
                f"{self._task} has not ended within {timeout or seconds:g} s: {known}{error}",
                status=seen.status,
            ) from None


def replaced(task: TaskRef) -> TaskGone:
    """Return the error of a Task whose name is another's by now."""
    return TaskGone(f"{task} was deleted, and another was created under its name")
