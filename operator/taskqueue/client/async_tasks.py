"""Tasks for programs that run an event loop; `taskqueue.client.tasks` is the same without one."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import aclosing
from typing import Any, Unpack

from taskqueue.client.access import ApiConnection, Connect, connecting
from taskqueue.client.errors import (
    TaskCancelled,
    TaskConflict,
    TaskFailed,
    TaskGone,
    WaitTimeout,
)
from taskqueue.client.requests import ask, refusal
from taskqueue.client.spec import TaskOptions, differences, manifest, task_spec
from taskqueue.client.status import TaskResult, TaskStatus, result_of, status_of
from taskqueue.client.task_watch import LastSeen, TaskRef, follow, task_path, tasks_path
from taskqueue.kubernetes.client import MERGE_PATCH, ApiError

#: Shown in metadata.managedFields of the Tasks it creates.
_FIELD_MANAGER = "taskqueue-client"

#: Tasks that `AsyncTaskClient.wait_all` watches at a time.
_WATCHED_AT_ONCE = 8

#: A name that is taken and free again while we look: somebody deletes it all the time.
_SUBMIT_ROUNDS = 5


class AsyncTaskClient:
    """Submits Tasks and follows them, over the Kubernetes API.

    In a pod it acts as the pod's service account, elsewhere as the current user of a kubeconfig.
    It connects when it is first used; use it with ``async with``, or `close` it. Requests are asked
    again through short outages: none of them does harm twice.

    Args:
        namespace: of Tasks for which none is given; default: the service account's, or that of the
            kubeconfig's current context.
        kubeconfig: path of the file to use, instead of looking.
        patience_seconds: how long a request is asked again while the API server is away.
        connect: how to reach the API server, instead of all that.
    """

    def __init__(
        self,
        *,
        namespace: str | None = None,
        kubeconfig: str | None = None,
        patience_seconds: float = 10.0,
        connect: Connect | None = None,
    ) -> None:
        self._namespace = namespace
        self._patience = patience_seconds
        self._connect = connect or connecting(kubeconfig)
        self._connected: ApiConnection | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False
        self._connecting = asyncio.Lock()

    async def __aenter__(self) -> AsyncTaskClient:
        return self

    async def __aexit__(self, *problem: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections; what is under way fails. Idempotent."""
        self._closed = True
        connected, self._connected = self._connected, None
        if connected is not None:
            await connected.close()

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
        """Create a Task, or find that it exists already.

        A Task of the same name and spec is the same Task: submitting again is harmless, whatever
        became of it. The TaskQueue need not exist yet: the Task then waits, Blocked with reason
        QueueNotFound.

        Args:
            queue: name of the TaskQueue.
            handler: name of the handler.
            payload: a dict, a pydantic model or a dataclass; None: an empty object.
            name: of the Task; default: ``generate_name`` and a random end.
            generate_name: what a generated name begins with; default: the queue's name and "-".
            namespace: of the TaskQueue and the Task; default: the client's.
            labels: of the Task.
            annotations: of the Task.
            spec: the other fields of a Task's spec in snake_case, such as ``priority``,
                ``concurrency_key``, ``depends_on``, ``start_after``, ``retry``,
                ``attempt_timeout_seconds``, ``ttl_seconds_after_finished``.

        Raises:
            TypeError: an unknown argument, or a payload that is no JSON object.
            ValueError: a value that no Task can have.
            TaskConflict: another Task has this name.
            Refused: the API server refused it.
            Unavailable: the API server could not be asked.
        """
        wanted = task_spec(queue, handler, payload, spec)
        if name is None:
            # Made here, not by the API server: a request whose answer was lost can be repeated.
            name = f"{generate_name or f'{queue}-'}{uuid.uuid4().hex[:10]}"
        connected = await self._open()
        home = self._home(connected, namespace)
        what = f"submit Task {home}/{name}"
        body = manifest(wanted, name, labels=labels, annotations=annotations)
        for _ in range(_SUBMIT_ROUNDS):
            try:
                created = await ask(
                    connected.requests,
                    "POST",
                    tasks_path(home),
                    patience_seconds=self._patience,
                    body=body,
                    params={"fieldManager": _FIELD_MANAGER},
                )
                return self._handle(connected, created)
            except ApiError as problem:
                if problem.reason != "AlreadyExists":
                    raise refusal(problem, what) from problem
            try:
                there = await ask(
                    connected.requests,
                    "GET",
                    task_path(home, name),
                    patience_seconds=self._patience,
                )
            except ApiError as problem:
                if problem.status == 404:
                    continue  # deleted meanwhile: the name is free
                raise refusal(problem, what) from problem
            fields = differences(wanted, there["spec"])
            if fields:
                raise TaskConflict(
                    f"Task {home}/{name} exists, and differs in {', '.join(fields)}: give this one "
                    "another name",
                    fields=fields,
                )
            return self._handle(connected, there)
        raise TaskGone(f"cannot {what}: others create and delete Tasks of this name all the time")

    async def get(self, name: str, *, namespace: str | None = None) -> AsyncTaskHandle:
        """Return a Task that exists.

        Raises:
            ValueError: no Task can have this name.
            TaskGone: there is none of this name.
            Refused: the API server refused.
            Unavailable: the API server could not be asked.
        """
        if not name or "/" in name:  # the API server would see another path, however it is quoted
            raise ValueError(f"no Task can be called {name!r}")
        connected = await self._open()
        home = self._home(connected, namespace)
        raw = await self._look(connected, home, name)
        return self._handle(connected, raw)

    async def wait_all(
        self,
        tasks: Iterable[AsyncTaskHandle],
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> list[TaskResult]:
        """Return how Tasks ended, in their order, once all have; no failure is raised.

        Only a few are watched at a time: right for thousands.

        Raises:
            WaitTimeout: one has not ended; timeout is in seconds, for all together.
            TaskGone: one was deleted.
            Refused: the API server refused.
        """
        places = asyncio.Semaphore(_WATCHED_AT_ONCE)
        loop = asyncio.get_running_loop()
        deadline = None if timeout is None else loop.time() + timeout

        async def one(task: AsyncTaskHandle) -> TaskResult:
            async with places:
                left = None if deadline is None else max(deadline - loop.time(), 0)
                return result_of(await task._end(left, told=timeout))

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
            if self._connected is None:
                self._connected, self._loop = await self._connect(), loop
            elif self._loop is not loop:
                raise RuntimeError("this client was used in another event loop: make one in each")
            return self._connected

    def _home(self, connected: ApiConnection, namespace: str | None) -> str:
        return namespace or self._namespace or connected.namespace

    def _handle(self, connected: ApiConnection, raw: Mapping[str, Any]) -> AsyncTaskHandle:
        metadata = raw["metadata"]
        task = TaskRef(metadata["namespace"], metadata["name"], metadata["uid"])
        return AsyncTaskHandle(self, connected, task)

    async def _look(self, connected: ApiConnection, namespace: str, name: str) -> dict[str, Any]:
        try:
            return await ask(
                connected.requests,
                "GET",
                task_path(namespace, name),
                patience_seconds=self._patience,
            )
        except ApiError as problem:
            if problem.status == 404:
                raise TaskGone(f"Task {namespace}/{name} does not exist") from None
            raise refusal(problem, f"look at Task {namespace}/{name}") from problem

    async def _order_cancel(self, connected: ApiConnection, task: TaskRef) -> None:
        # The uid makes the API server refuse the order for another Task of the same name.
        body = {"metadata": {"uid": task.uid}, "spec": {"cancel": True}}
        try:
            await ask(
                connected.requests,
                "PATCH",
                task.path,
                patience_seconds=self._patience,
                body=body,
                content_type=MERGE_PATCH,
                params={"fieldManager": _FIELD_MANAGER},
            )
        except ApiError as problem:
            if problem.status not in (404, 409, 422):
                raise refusal(problem, f"cancel {task}") from problem
            there = await self._look(connected, task.namespace, task.name)
            if there["metadata"]["uid"] != task.uid:
                raise TaskGone(f"{task} was deleted, and another was made under its name") from None
            if not status_of(there).finished:
                raise refusal(problem, f"cancel {task}") from problem


class AsyncTaskHandle:
    """A Task that was submitted; made by `AsyncTaskClient`.

    Attributes:
        namespace: of the Task.
        name: of the Task.
        uid: tells it from others that bear the same name at other times.
    """

    def __init__(self, client: AsyncTaskClient, connected: ApiConnection, task: TaskRef) -> None:
        self._client = client
        self._connected = connected
        self._task = task
        self.namespace = task.namespace
        self.name = task.name
        self.uid = task.uid

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.namespace}/{self.name}>"

    async def status(self) -> TaskStatus:
        """Return its status as it is now.

        Raises:
            TaskGone: it was deleted.
            Refused: the API server refused.
            Unavailable: the API server could not be asked.
        """
        raw = await self._client._look(self._connected, self.namespace, self.name)
        if raw["metadata"]["uid"] != self.uid:
            raise TaskGone(f"{self._task} was deleted, and another was made under its name")
        return status_of(raw)

    async def wait(self, timeout: float | None = None) -> TaskResult:  # noqa: ASYNC109
        """Return its result once it has succeeded.

        Args:
            timeout: seconds; None: for ever, through outages of the API server.

        Raises:
            TaskFailed: it has failed.
            TaskCancelled: it was cancelled.
            WaitTimeout: it has not ended in time.
            TaskGone: it was deleted.
            Refused: the API server refused.
        """
        status = await self._end(timeout)
        if status.phase == "Failed":
            raise TaskFailed(
                f"{self._task} has failed after {status.attempts} attempts: {status}", status=status
            )
        if status.phase == "Cancelled":
            raise TaskCancelled(f"{self._task} was cancelled", status=status)
        return result_of(status)

    async def stream(self) -> AsyncGenerator[TaskStatus, None]:
        """Yield its status now, then every change that is seen, its end the last.

        What lasts less than some seconds may not be seen. Outages are waited out.

        Raises:
            TaskGone: it was deleted.
            Refused: the API server refused.
        """
        async with aclosing(follow(self._task, self._connected, LastSeen())) as statuses:
            async for status in statuses:
                yield status

    async def cancel(self) -> None:
        """Cancel it; harmless when it has ended. It has ended when `wait` says so.

        Raises:
            TaskGone: it was deleted.
            Refused: the API server refused.
            Unavailable: the API server could not be asked.
        """
        await self._client._order_cancel(self._connected, self._task)

    async def _end(self, seconds: float | None, *, told: float | None = None) -> TaskStatus:
        """Return the status it ended with; the caller's time may have begun earlier."""
        seen = LastSeen()
        try:
            async with asyncio.timeout(seconds):
                async with aclosing(follow(self._task, self._connected, seen)) as statuses:
                    async for status in statuses:
                        if status.finished:
                            return status
                raise AssertionError("it is followed until it has ended")
        except TimeoutError:
            known = f"it is {seen.status}" if seen.status else "nothing is known of it"
            trouble = f"; the API server cannot be asked: {seen.trouble}" if seen.trouble else ""
            raise WaitTimeout(
                f"{self._task} has not ended within {told or seconds:g} s: {known}{trouble}",
                status=seen.status,
            ) from None
