"""What the cluster says, as it says it: the TaskQueue, its Tasks and the pods of its workers.

Three `kubectl get --watch` push every change, so looking at the latest state costs the API server
nothing, however often the screen is drawn.
"""

import json
import subprocess
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from examples.thumbnails.work import NAMESPACE, QUEUE
from taskqueue.api.task import TaskResource
from taskqueue.api.taskqueue import TaskQueueResource


class WatchEnded(Exception):
    """A watch ended by itself: what is known is no longer current."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The latest state of everything, and the sizes that the pool has had."""

    queue: TaskQueueResource | None = None
    tasks: Mapping[str, TaskResource] = field(default_factory=dict)
    #: Pods of the pool, and how many of them are ready.
    workers: int = 0
    ready_workers: int = 0
    #: Every size the pool has had since the watch began, oldest first; it begins with 0 because
    #: the namespace was empty.
    pool_sizes: tuple[int, ...] = (0,)


class Watcher:
    """Follows the demo's namespace from `__enter__` to `__exit__`.

    Args:
        kubectl: the command, with the options it needs to reach the cluster.
    """

    def __init__(self, kubectl: Sequence[str]) -> None:
        self._kubectl = [*kubectl, f"--namespace={NAMESPACE}"]
        self._lock = threading.Lock()
        self._queue: TaskQueueResource | None = None
        self._tasks: dict[str, TaskResource] = {}
        self._pods: dict[str, bool] = {}
        self._sizes = [0]
        self._ended: list[str] = []
        self._processes: list[subprocess.Popen[str]] = []

    def __enter__(self) -> Self:
        follow = {
            ("taskqueues.taskqueue.dev",): self._on_queue,
            ("tasks.taskqueue.dev",): self._on_task,
            ("pods", f"--selector=taskqueue.dev/queue={QUEUE}"): self._on_pod,
        }
        for what, on_event in follow.items():
            process = subprocess.Popen(
                [*self._kubectl, "get", *what, "--watch", "--output-watch-events", "--output=json"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
            self._processes.append(process)
            threading.Thread(
                target=self._read, args=(what[0], process, on_event), daemon=True
            ).start()
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.wait()

    def snapshot(self) -> Snapshot:
        """Return what is known now.

        Raises:
            WatchEnded: a watch broke off.
        """
        with self._lock:
            if self._ended:
                raise WatchEnded(f"the watch of {self._ended[0]} broke off")
            return Snapshot(
                queue=self._queue,
                tasks=dict(self._tasks),
                workers=len(self._pods),
                ready_workers=sum(self._pods.values()),
                pool_sizes=tuple(self._sizes),
            )

    def _read(self, what: str, process: subprocess.Popen[str], on_event: Any) -> None:
        try:
            if process.stdout is not None:
                # With --output-watch-events, kubectl writes one object a line.
                for event in map(json.loads, process.stdout):
                    with self._lock:
                        on_event(event["type"], event["object"])
        finally:
            with self._lock:
                self._ended.append(what)

    def _on_queue(self, _: str, body: dict[str, Any]) -> None:
        self._queue = TaskQueueResource.model_validate(body)

    def _on_task(self, kind: str, body: dict[str, Any]) -> None:
        task = TaskResource.model_validate(body)
        if kind == "DELETED":
            self._tasks.pop(task.metadata.name, None)
        else:
            self._tasks[task.metadata.name] = task

    def _on_pod(self, kind: str, body: dict[str, Any]) -> None:
        name = body["metadata"]["name"]
        if kind == "DELETED":
            self._pods.pop(name, None)
        else:
            conditions = body.get("status", {}).get("conditions", ())
            self._pods[name] = any(
                each["type"] == "Ready" and each["status"] == "True" for each in conditions
            )
        if self._sizes[-1] != len(self._pods):
            self._sizes.append(len(self._pods))
