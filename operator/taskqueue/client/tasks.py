"""Tasks for programs without an event loop: `taskqueue.client.async_tasks`, run in a thread."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Unpack

from taskqueue.client.access import Connect
from taskqueue.client.async_tasks import AsyncTaskClient, AsyncTaskHandle
from taskqueue.client.spec import TaskOptions
from taskqueue.client.status import TaskResult, TaskStatus
from taskqueue.loop_thread import LoopThread


class TaskClient:
    """Submits Tasks and follows them, over the Kubernetes API; usable from any thread.

    In a pod it acts as the pod's service account, elsewhere as the current user of a kubeconfig.
    It connects when it is first used; use it with ``with``, or `close` it. It cannot be taken
    through a fork: a worker's handlers make theirs in a function marked with ``@on_start``.

    Arguments are those of `taskqueue.client.AsyncTaskClient`.
    """

    def __init__(
        self,
        *,
        namespace: str | None = None,
        kubeconfig: str | None = None,
        patience_seconds: float = 10.0,
        connect: Connect | None = None,
    ) -> None:
        self._thread = LoopThread("TaskClient")
        self._client = AsyncTaskClient(
            namespace=namespace,
            kubeconfig=kubeconfig,
            patience_seconds=patience_seconds,
            connect=connect,
        )

    def __enter__(self) -> TaskClient:
        return self

    def __exit__(self, *problem: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections; what is under way in other threads fails. Idempotent."""
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
        """Return a Task that exists.

        Raises:
            ValueError: no Task can have this name.
            TaskGone: there is none of this name.
            Refused: the API server refused.
            Unavailable: the API server could not be asked.
        """
        return TaskHandle(
            self._thread, self._thread.run(self._client.get(name, namespace=namespace))
        )

    def wait_all(
        self, tasks: Iterable[TaskHandle], timeout: float | None = None
    ) -> list[TaskResult]:
        """Return how Tasks ended, in their order, once all have; no failure is raised.

        Raises:
            WaitTimeout: one has not ended; timeout is in seconds, for all together.
            TaskGone: one was deleted.
            Refused: the API server refused.
        """
        handles = [task._handle for task in tasks]
        return self._thread.run(self._client.wait_all(handles, timeout))


class TaskHandle:
    """A Task that was submitted; made by `TaskClient`.

    Attributes:
        namespace: of the Task.
        name: of the Task.
        uid: tells it from others that bear the same name at other times.
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
        """Return its status as it is now.

        Raises:
            TaskGone: it was deleted.
            Refused: the API server refused.
            Unavailable: the API server could not be asked.
        """
        return self._thread.run(self._handle.status())

    def wait(self, timeout: float | None = None) -> TaskResult:
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
        return self._thread.run(self._handle.wait(timeout))

    def stream(self) -> Iterator[TaskStatus]:
        """Yield its status now, then every change that is seen, its end the last.

        What lasts less than some seconds may not be seen. Outages are waited out.

        Raises:
            TaskGone: it was deleted.
            Refused: the API server refused.
        """
        yield from self._thread.iterate(self._handle.stream())

    def cancel(self) -> None:
        """Cancel it; harmless when it has ended. It has ended when `wait` says so.

        Raises:
            TaskGone: it was deleted.
            Refused: the API server refused.
            Unavailable: the API server could not be asked.
        """
        self._thread.run(self._handle.cancel())
