"""The asyncio client for Tasks; `taskqueue.client.tasks` is the same for other programs."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterable, Mapping
from typing import Any, Unpack

from taskqueue.archive.history import HistoryFilter, HistoryOptions
from taskqueue.client.access import ApiConnection, Connect, connector
from taskqueue.client.async_handle import AsyncTaskHandle, replaced
from taskqueue.client.batches import AsyncBatches
from taskqueue.client.errors import TaskConflict, TaskGone
from taskqueue.client.history import HistoryPage, HistoryReader
from taskqueue.client.requests import client_error, is_quota_exceeded, request_with_retries
from taskqueue.client.results import ResultReader
from taskqueue.client.spec import TaskOptions, differences, manifest, task_spec
from taskqueue.client.status import TaskResult, result_of, status_of
from taskqueue.client.task_watch import TaskRef, task_path, tasks_path
from taskqueue.kubernetes.client import MERGE_PATCH, ApiError

#: Shown in metadata.managedFields of the Tasks it creates.
_FIELD_MANAGER = "taskqueue-client"

#: Tasks that `AsyncTaskClient.wait_all` watches at the same time.
_WATCHED_AT_ONCE = 8

#: A name that exists for the create and not for the read: somebody keeps deleting the Task.
_SUBMIT_ROUNDS = 5


class AsyncTaskClient:
    """Submits Tasks and waits for them, over the Kubernetes API.

    In a pod it uses the pod's service account, elsewhere the current context of a kubeconfig. It
    connects on first use; use it with ``async with``, or call `close`. Requests are retried through
    short outages; all of them are safe to repeat.

    Args:
        namespace: of Tasks for which none is given; default: the service account's, or that of the
            kubeconfig's current context.
        kubeconfig: path of the file to use; default: $KUBECONFIG, then ``~/.kube/config``.
        patience_seconds: how long a request is retried while the API server is unreachable.
        connect: connects to the API server, instead of the above.
        results: where the results are that no status has: the address of the store, such as
            ``postgresql://…``, or the keys of its Secret. Default: the store that the TaskQueue
            names, whose Secret the program must be permitted to read.

    Attributes:
        batches: creates and finds TaskBatches.
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
        self.batches = AsyncBatches(self)
        self._results = ResultReader(results, patience_seconds=patience_seconds)
        self._namespace = namespace
        self._patience = patience_seconds
        self._connect = connect or connector(kubeconfig)
        self._connection: ApiConnection | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False
        self._connecting = asyncio.Lock()
        self._history = HistoryReader(patience_seconds=patience_seconds)

    async def __aenter__(self) -> AsyncTaskClient:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections; calls in progress fail. Idempotent."""
        self._closed = True
        await self._history.close()
        await self._results.close()
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    async def submit(
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
    ) -> AsyncTaskHandle:
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
        wanted = task_spec(queue, handler, payload, spec)
        if name is None:
            # Generated here, not by the API server, so that a request can be repeated when its
            # response was lost.
            name = f"{generate_name or f'{queue}-'}{uuid.uuid4().hex[:10]}"
        connection = await self._open()
        resolved = self._resolve_namespace(connection, namespace)
        action = f"submit Task {resolved}/{name}"
        body = manifest(wanted, name, labels=labels, annotations=annotations)
        for _ in range(_SUBMIT_ROUNDS):
            try:
                created = await request_with_retries(
                    connection.requests,
                    "POST",
                    tasks_path(resolved),
                    patience_seconds=self._patience,
                    body=body,
                    params={"fieldManager": _FIELD_MANAGER},
                )
                return self._handle(connection, created)
            except ApiError as error:
                # A full quota is refused before the name is looked at, also to a repeated request.
                if error.reason != "AlreadyExists" and not is_quota_exceeded(error):
                    raise client_error(error, action) from error
                refusal = error
            try:
                existing = await request_with_retries(
                    connection.requests,
                    "GET",
                    task_path(resolved, name),
                    patience_seconds=self._patience,
                )
            except ApiError as error:
                if error.status == 404 and is_quota_exceeded(refusal):
                    raise client_error(refusal, action) from refusal
                if error.status == 404:
                    continue  # deleted meanwhile: the name is free
                raise client_error(error, action) from error
            fields = differences(wanted, existing["spec"])
            if fields:
                raise TaskConflict(
                    f"Task {resolved}/{name} exists and differs in {', '.join(fields)}: give this "
                    "one another name",
                    fields=fields,
                )
            return self._handle(connection, existing)
        raise TaskGone(f"cannot {action}: others keep creating and deleting Tasks with this name")

    async def get(self, name: str, *, namespace: str | None = None) -> AsyncTaskHandle:
        """Return an existing Task.

        Raises:
            ValueError: no Task can have this name.
            TaskGone: no Task has this name.
            Refused: the API server refused the request.
            Unavailable: the API server did not answer.
        """
        if not name or "/" in name:  # the API server would read another path, even quoted
            raise ValueError(f"no Task can be called {name!r}")
        connection = await self._open()
        resolved = self._resolve_namespace(connection, namespace)
        raw = await self._get_task(connection, resolved, name)
        return self._handle(connection, raw)

    async def history(
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
        connection = await self._open()
        resolved = self._resolve_namespace(connection, namespace)
        wanted = HistoryFilter(namespace=resolved, queue=queue, **conditions)
        if archive is None:
            if queue is None:
                raise ValueError("name a queue, or give archive=, the address of the database")
            archive = await self._history.find_address(connection.requests, resolved, queue)
        return await self._history.read(archive, wanted, page=page, limit=limit)

    async def wait_all(
        self,
        tasks: Iterable[AsyncTaskHandle],
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> list[TaskResult]:
        """Wait for Tasks and return their results in the same order; failures are not raised.

        It watches only a few at a time, so it may be used for thousands.

        Args:
            tasks: to wait for.
            timeout: for all together, in seconds; None: no limit.

        Raises:
            WaitTimeout: one has not ended in time.
            TaskGone: one was deleted.
            Refused: the API server refused the request.
        """
        slots = asyncio.Semaphore(_WATCHED_AT_ONCE)
        loop = asyncio.get_running_loop()
        deadline = None if timeout is None else loop.time() + timeout

        async def one(task: AsyncTaskHandle) -> TaskResult:
            async with slots:
                left = None if deadline is None else max(deadline - loop.time(), 0)
                return result_of(await task._wait_for_end(left, timeout=timeout))

        waiting = [asyncio.ensure_future(one(task)) for task in tasks]
        try:
            return await asyncio.gather(*waiting)
        finally:
            for each in waiting:
                each.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    async def _open(self) -> ApiConnection:
        async with self._connecting:
            if self._closed:
                raise RuntimeError("this client is closed: make another")
            loop = asyncio.get_running_loop()
            if self._connection is None:
                self._connection, self._loop = await self._connect(), loop
            elif self._loop is not loop:
                raise RuntimeError("this client was used in another event loop: make one in each")
            return self._connection

    def _resolve_namespace(self, connection: ApiConnection, namespace: str | None) -> str:
        return namespace or self._namespace or connection.namespace

    def _handle(self, connection: ApiConnection, raw: Mapping[str, Any]) -> AsyncTaskHandle:
        metadata = raw["metadata"]
        task = TaskRef(metadata["namespace"], metadata["name"], metadata["uid"])
        return AsyncTaskHandle(self, connection, task)

    async def _get_task(
        self, connection: ApiConnection, namespace: str, name: str
    ) -> dict[str, Any]:
        try:
            return await request_with_retries(
                connection.requests,
                "GET",
                task_path(namespace, name),
                patience_seconds=self._patience,
            )
        except ApiError as error:
            if error.status == 404:
                raise TaskGone(f"Task {namespace}/{name} does not exist") from None
            raise client_error(error, f"get Task {namespace}/{name}") from error

    async def _request_cancel(self, connection: ApiConnection, task: TaskRef) -> None:
        # The uid is a precondition: the API server refuses the patch for another Task of this name.
        body = {"metadata": {"uid": task.uid}, "spec": {"cancel": True}}
        try:
            await request_with_retries(
                connection.requests,
                "PATCH",
                task.path,
                patience_seconds=self._patience,
                body=body,
                content_type=MERGE_PATCH,
                params={"fieldManager": _FIELD_MANAGER},
            )
        except ApiError as error:
            if error.status not in (404, 409, 422):
                raise client_error(error, f"cancel {task}") from error
            existing = await self._get_task(connection, task.namespace, task.name)
            if existing["metadata"]["uid"] != task.uid:
                raise replaced(task) from None
            if not status_of(existing).finished:
                raise client_error(error, f"cancel {task}") from error
