"""The client for Tasks without asyncio: `taskqueue.client.async_tasks`, run in a thread."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Unpack

from taskqueue.archive.history import HistoryOptions
from taskqueue.client.access import Connect
from taskqueue.client.async_handle import AsyncTaskHandle
from taskqueue.client.async_tasks import AsyncTaskClient
from taskqueue.client.batches import AsyncBatches, AsyncBatchHandle, BatchOptions, BatchStatus
from taskqueue.client.history import HistoryPage
from taskqueue.client.results import ResultValue
from taskqueue.client.spec import ConfigMapKey, TaskOptions
from taskqueue.client.status import TaskResult, TaskStatus
from taskqueue.loop_thread import LoopThread


class TaskClient:
    """Submits Tasks and waits for them, over the Kubernetes API; usable from any thread.

    In a pod it uses the pod's service account, elsewhere the current context of a kubeconfig. It
    connects on first use; use it with ``with``, or call `close`. It does not survive a fork: create
    it for a worker's handlers in a function marked with ``@on_start``.

    Arguments are those of `taskqueue.client.AsyncTaskClient`.
    """

    def __init__(
        self,
        *,
        namespace: str | None = None,
        kubeconfig: str | None = None,
        patience_seconds: float = 10.0,
        connect: Connect | None = None,
        results: str | Mapping[str, str] | None = None,
    ) -> None:
        self._thread = LoopThread("TaskClient")
        self._client = AsyncTaskClient(
            namespace=namespace,
            kubeconfig=kubeconfig,
            patience_seconds=patience_seconds,
            connect=connect,
            results=results,
        )
        #: Creates and finds TaskBatches.
        self.batches = Batches(self._thread, self._client.batches)

    def __enter__(self) -> TaskClient:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections; calls in progress in other threads fail. Idempotent."""
        self._thread.finish(self._client.close())

    def submit(
        self,
        queue: str,
        handler: str,
        payload: Any = None,
        *,
        name: str | None = None,
        generate_name: str | None = None,
        namespace: str | None = None,
        labels: Mapping[str, str] | None = None,
        annotations: Mapping[str, str] | None = None,
        **spec: Unpack[TaskOptions],
    ) -> TaskHandle:
        """Create a Task, or return it if it exists.

        A Task with the same name and spec is the same Task: submitting it again is safe, whatever
        its status is. The TaskQueue need not exist yet: the Task is then Blocked with reason
        QueueNotFound.

        Args:
            queue: name of the TaskQueue.
            handler: name of the handler.
            payload: a dict, a pydantic model or a dataclass; None: an empty object.
            name: of the Task; default: ``generate_name`` and a random suffix.
            generate_name: prefix of a generated name; default: the queue's name and "-".
            namespace: of the TaskQueue and the Task; default: the client's.
            labels: of the Task.
            annotations: of the Task.
            spec: the other fields of a Task's spec in snake_case, such as ``priority``,
                ``concurrency_key``, ``depends_on``, ``dependencies``, ``start_after``, ``retry``,
                ``attempt_timeout_seconds``, ``ttl_seconds_after_finished``.

        Raises:
            TypeError: an unknown argument, or a payload that is not a JSON object.
            ValueError: an invalid value; the text names the field.
            TaskConflict: another Task with this name exists.
            QuotaExceeded: the namespace has as many Tasks as it may; submit again later.
            Refused: the API server refused the request.
            Unavailable: the API server did not answer.
        """
        handle = self._thread.run(
            self._client.submit(
                queue,
                handler,
                payload,
                name=name,
                generate_name=generate_name,
                namespace=namespace,
                labels=labels,
                annotations=annotations,
                **spec,
            )
        )
        return TaskHandle(self._thread, handle)

    def get(self, name: str, *, namespace: str | None = None) -> TaskHandle:
        """Return an existing Task.

        Raises:
            ValueError: no Task can have this name.
            TaskGone: no Task has this name.
            Refused: the API server refused the request.
            Unavailable: the API server did not answer.
        """
        return TaskHandle(
            self._thread, self._thread.run(self._client.get(name, namespace=namespace))
        )

    def history(
        self,
        queue: str | None = None,
        *,
        namespace: str | None = None,
        archive: str | None = None,
        page: str = "",
        limit: int = 100,
        **conditions: Unpack[HistoryOptions],
    ) -> HistoryPage:
        """Return Tasks that have ended, from the archive of a TaskQueue: the last that ended first.

        They are there whether their objects still exist or not, as far as the TaskQueue had an
        archive when they ended. The end of a Task takes a moment to get there.

        Args:
            queue: name of the TaskQueue; None: of all of the namespace that use this archive, whose
                address must be given.
            namespace: of the TaskQueue; default: the client's.
            archive: address of the database, postgresql://; default: what the Secret says that the
                TaskQueue names. The caller needs get on both.
            page: ``next_page`` of the page before; "": from the beginning.
            limit: of Tasks, 1 to 1000.
            conditions: which Tasks: all of ``handler``, ``phases``, ``reason``, ``labels``,
                ``since`` and ``until`` (times with a zone), ``error_text`` (a part of the message)
                and ``payload`` (values by path, such as ``{"customer.id": 7}``) that are given.

        Raises:
            ValueError: an invalid argument.
            NoArchive: there is no archive, or it may not be read.
            Refused: the API server refused a request.
            Unavailable: the API server or the database did not answer.
        """
        return self._thread.run(
            self._client.history(
                queue,
                namespace=namespace,
                archive=archive,
                page=page,
                limit=limit,
                **conditions,
            )
        )

    def wait_all(
        self, tasks: Iterable[TaskHandle], timeout: float | None = None
    ) -> list[TaskResult]:
        """Wait for Tasks and return their results in the same order; failures are not raised.

        Args:
            tasks: to wait for.
            timeout: for all together, in seconds; None: no limit.

        Raises:
            WaitTimeout: one has not ended in time.
            TaskGone: one was deleted.
            Refused: the API server refused the request.
        """
        handles = [task._handle for task in tasks]
        return self._thread.run(self._client.wait_all(handles, timeout))


class TaskHandle:
    """A Task that was submitted; made by `TaskClient`.

    Attributes:
        namespace: of the Task.
        name: of the Task.
        uid: of the Task; Tasks of the same name at different times differ in it.
    """

    def __init__(self, thread: LoopThread, handle: AsyncTaskHandle) -> None:
        self._thread = thread
        self._handle = handle
        self.namespace = handle.namespace
        self.name = handle.name
        self.uid = handle.uid

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.namespace}/{self.name}>"

    def status(self) -> TaskStatus:
        """Return its present status.

        Raises:
            TaskGone: it was deleted.
            Refused: the API server refused the request.
            Unavailable: the API server did not answer.
        """
        return self._thread.run(self._handle.status())

    def wait(self, timeout: float | None = None) -> TaskResult:
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
        return self._thread.run(self._handle.wait(timeout))

    def result(self, timeout: float | None = None) -> ResultValue:
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
        return self._thread.run(self._handle.result(timeout))

    def output(self, attempt: int | None = None) -> str | None:
        """Return the end of what an attempt has printed, None if nothing of it was kept.

        It is kept as spec.results.output of the TaskQueue says: in its store, from a moment after
        the end of the attempt on, or with a failure in the Task's history.

        Args:
            attempt: its number; default: the last one that has begun.

        Raises:
            ResultUnavailable: it is in a store and cannot be read.
            TaskGone, Refused, Unavailable: as `status`.
        """
        return self._thread.run(self._handle.output(attempt))

    def stream(self) -> Iterator[TaskStatus]:
        """Yield its present status, then each change, the final status last.

        A status that lasts only a few seconds may be missing. Outages are retried without limit.

        Raises:
            TaskGone: it was deleted.
            Refused: the API server refused the request.
        """
        yield from self._thread.iterate(self._handle.stream())

    def cancel(self) -> None:
        """Request its cancellation; no effect if it has ended. `wait` returns when it has ended.

        Raises:
            TaskGone: it was deleted.
            Refused: the API server refused the request.
            Unavailable: the API server did not answer.
        """
        self._thread.run(self._handle.cancel())


class Batches:
    """TaskBatches: `TaskClient.batches`. Arguments and errors are those of `AsyncBatches`."""

    def __init__(self, thread: LoopThread, batches: AsyncBatches) -> None:
        self._thread = thread
        self._batches = batches

    def create(
        self,
        queue: str,
        handler: str,
        items: Iterable[Any] | None = None,
        *,
        count: int | None = None,
        items_from: ConfigMapKey | None = None,
        name: str | None = None,
        namespace: str | None = None,
        labels: Mapping[str, str] | None = None,
        **spec: Unpack[BatchOptions],
    ) -> BatchHandle:
        """Create a TaskBatch."""
        create = self._batches.create(
            queue,
            handler,
            items,
            count=count,
            items_from=items_from,
            name=name,
            namespace=namespace,
            labels=labels,
            **spec,
        )
        return BatchHandle(self._thread, self._thread.run(create))

    def get(self, name: str, *, namespace: str | None = None) -> BatchHandle:
        """Return a TaskBatch."""
        found = self._thread.run(self._batches.get(name, namespace=namespace))
        return BatchHandle(self._thread, found)


class BatchHandle:
    """A TaskBatch; made by `Batches`. Its errors are those of `AsyncBatchHandle`.

    Attributes:
        namespace: of the TaskBatch.
        name: of the TaskBatch.
        uid: of the TaskBatch.
    """

    def __init__(self, thread: LoopThread, handle: AsyncBatchHandle) -> None:
        self._thread = thread
        self._handle = handle
        self.namespace, self.name, self.uid = handle.namespace, handle.name, handle.uid

    def status(self) -> BatchStatus:
        """Return its present status."""
        return self._thread.run(self._handle.status())

    def wait(self, timeout: float | None = None) -> BatchStatus:
        """Wait until it has succeeded and return its status."""
        return self._thread.run(self._handle.wait(timeout))

    def cancel(self) -> None:
        """Request its cancellation; no effect if it has ended."""
        self._thread.run(self._handle.cancel())
