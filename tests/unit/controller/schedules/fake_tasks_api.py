"""An API server of Tasks and TaskSchedules that honours its contract, and operators beside it."""

from __future__ import annotations

import asyncio
import copy
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from typing import Any, cast

import orjson

from taskqueue.controller.schedules.schedule_controller import ScheduleController
from taskqueue.kubernetes.client import JSON_PATCH, METADATA, ApiClient, ApiError
from taskqueue.kubernetes.schedule_codec import owner_of
from taskqueue.kubernetes.status_updater import OnResult, StatusUpdater, WriteRefused, Written
from taskqueue.model.schedule import Schedule
from taskqueue.timestamps import from_rfc3339, to_rfc3339
from tests.unit.controller.fakes import now

PREFIX = "/apis/taskqueue.dev/v1alpha1/namespaces/shop"
#: How long an answer, and an event of a watch, take.
LATENCY = 0.002

Body = dict[str, Any]


def first_minute() -> int:
    """Return the first whole minute after the loop's start."""
    return int(now() // 60) + 1


class FakeCluster:
    """Keeps objects, answers requests, and shows changes to the operators that watch."""

    def __init__(self) -> None:
        self.schedules: dict[str, Body] = {}
        self.tasks: dict[str, Body] = {}
        #: How often each name was created.
        self.creations: Counter[str] = Counter()
        self.created_at: dict[str, float] = {}
        self.cancelled: list[str] = []
        self.deleted: list[str] = []
        self.requests: Counter[str] = Counter()
        #: Called with (method, path) before each request; may raise or wait.
        self.on_request: Callable[[str, str], Any] = lambda method, path: None
        self.status_problems: dict[str, list[int]] = defaultdict(list)
        self.operators: list[FakeOperator] = []
        self._uids = 0

    # What a person does.

    def apply(self, name: str = "s", *, annotations: Mapping[str, str] = {}, **spec: Any) -> Body:
        """Create or change a TaskSchedule."""
        template = {"spec": {"queue": "q", "handler": "h", "payload": {"a": 1}}}
        body = {"schedules": ["* * * * *"], "taskTemplate": template} | spec
        found = self.schedules.get(name)
        if found is None:
            self._uids += 1
            found = self.schedules[name] = {
                "metadata": {
                    "name": name,
                    "namespace": "shop",
                    "uid": f"uid-{name}-{self._uids}",
                    "generation": 0,
                    "creationTimestamp": to_rfc3339(now()),
                },
                "status": {"observedGeneration": -1},
            }
        if found.get("spec") != body:
            found["metadata"]["generation"] += 1
        found["spec"] = body
        found["metadata"]["annotations"] = dict(annotations)
        self._show_schedule(found)
        return found

    def delete_schedule(self, name: str) -> None:
        raw = self.schedules.pop(name)
        for operator in self.operators:
            operator.controller.on_deleted(("shop", name), raw["metadata"]["uid"])
        for task in [
            one for one, body in self.tasks.items() if owner_of(body) == raw["metadata"]["uid"]
        ]:
            self.remove_task(task)

    def end(self, task: str, phase: str = "Succeeded") -> None:
        """Have a Task end."""
        self.tasks[task]["status"] = {"phase": phase, "completionTime": to_rfc3339(now())}
        self._show_task(self.tasks[task])

    def remove_task(self, name: str) -> None:
        raw = self.tasks.pop(name)
        for operator in self.operators:
            self._soon(operator.controller.runs.on_deleted, ("shop", name), raw["metadata"]["uid"])

    def status(self, name: str = "s") -> Body:
        found: Body = self.schedules[name]["status"]
        return found

    def condition(self, kind: str, name: str = "s") -> tuple[str, str, str]:
        """Return status, reason and message of a condition."""
        (one,) = (one for one in self.status(name)["conditions"] if one["type"] == kind)
        return one["status"], one["reason"], one["message"]

    # What a client asks.

    async def request(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        body: Any = None,
        accept: str = "",
        levels: int | None = None,
    ) -> Body:
        await self._arrive(method, path)
        assert accept == METADATA
        if method == "POST":
            assert path == f"{PREFIX}/tasks"
            return {"metadata": self._create(body)["metadata"]}
        assert method == "GET"
        return {"metadata": self._task(path)["metadata"]}

    async def get(self, path: str, **params: str) -> Body:
        await self._arrive("GET", path)
        name = path.rpartition("/")[2]
        if name not in self.schedules:
            raise ApiError(404, "NotFound", f"{name} not found")
        return copy.deepcopy(self.schedules[name])

    async def send(
        self, method: str, path: str, *, body: Any, content_type: str = "", accept: str = ""
    ) -> bytes:
        await self._arrive(method, path)
        task = self._task(path)
        name, uid = task["metadata"]["name"], task["metadata"]["uid"]
        if method == "PATCH":
            assert content_type == JSON_PATCH
            same, change = orjson.loads(body)
            if same["value"] != uid or "completionTime" in task.get("status", {}):
                raise ApiError(422, "Invalid", "the spec of a finished Task is frozen")
            assert change == {"op": "add", "path": "/spec/cancel", "value": True}
            task["spec"]["cancel"] = True
            self.cancelled.append(name)
            self._show_task(task)
        else:
            assert method == "DELETE"
            if body["preconditions"] != {"uid": uid}:
                raise ApiError(409, "Conflict", "the uid is another one")
            self.deleted.append(name)
            self.remove_task(name)
        return b"{}"

    async def _arrive(self, method: str, path: str) -> None:
        self.requests[method] += 1
        waiting = self.on_request(method, path)
        if waiting is not None:
            await waiting
        await asyncio.sleep(LATENCY)

    def _task(self, path: str) -> Body:
        name = path.rpartition("/")[2]
        if name not in self.tasks:
            raise ApiError(404, "NotFound", f"{name} not found")
        return self.tasks[name]

    def _create(self, body: Body) -> Body:
        name = body["metadata"]["name"]
        if name in self.tasks:
            raise ApiError(409, "AlreadyExists", f"{name} exists")
        self._uids += 1
        body["metadata"]["uid"] = f"uid-{name}-{self._uids}"
        self.tasks[name] = body
        self.creations[name] += 1
        self.created_at[name] = now()
        self._show_task(body)
        return body

    # What is watched.

    def write_status(self, path: str, body: bytes, on_result: OnResult) -> None:
        """Replace a status as the status updater does; the CEL rule holds."""
        name = path.split("/")[-2]
        same, change = orjson.loads(body)
        found = self.schedules.get(name)
        if found is None or found["metadata"]["uid"] != same["value"]:
            on_result(WriteRefused(404, "not found"))
            return
        before = found["status"].get("decidedTime", "1970-01-01T00:00:00Z")
        after = change["value"].get("decidedTime", "1970-01-01T00:00:00Z")
        if from_rfc3339(after) < from_rfc3339(before):
            on_result(WriteRefused(422, "decidedTime never decreases"))
            return
        found["status"] = change["value"]
        on_result(Written(1, 1))
        self._show_schedule(found)

    def _show_schedule(self, raw: Body) -> None:
        for operator in self.operators:
            self._soon(operator.controller.on_upserted, copy.deepcopy(raw))

    def _show_task(self, raw: Body) -> None:
        for operator in self.operators:
            self._soon(operator.controller.runs.on_upserted, copy.deepcopy(raw))

    @staticmethod
    def _soon(show: Callable[..., None], *args: Any) -> None:
        asyncio.get_running_loop().call_later(LATENCY, show, *args)


class FakeUpdater:
    """Writes statuses after a moment, unless it is dead."""

    def __init__(self, cluster: FakeCluster) -> None:
        self._cluster = cluster
        self.dead = False

    def put(self, path: str, body: bytes, on_result: OnResult, *, urgent: bool = False) -> None:
        def write() -> None:
            if not self.dead:
                self._cluster.write_status(path, body, on_result)

        asyncio.get_running_loop().call_later(LATENCY, write)


class FakeOperator:
    """An operator that leads: it lists, then watches, and serves schedules."""

    def __init__(self, cluster: FakeCluster) -> None:
        self._cluster = cluster
        self.updater = FakeUpdater(cluster)
        self.skipped: list[tuple[str, str, str]] = []
        self.controller = ScheduleController(
            cast(ApiClient, cluster),
            cast(StatusUpdater, self.updater),
            clock=now,
            on_skipped=self._on_skipped,
        )
        for raw in cluster.schedules.values():
            self.controller.on_upserted(copy.deepcopy(raw))
        for raw in cluster.tasks.values():
            self.controller.runs.on_upserted(copy.deepcopy(raw))
        cluster.operators.append(self)
        self._task = asyncio.create_task(self.controller.run())

    async def kill(self) -> None:
        """End it as SIGKILL does: what it has not written is lost."""
        self._cluster.operators.remove(self)
        self.updater.dead = True
        self._task.cancel()
        await asyncio.wait({self._task})

    def _on_skipped(self, schedule: Schedule, reason: str, message: str) -> None:
        self.skipped.append((schedule.name, reason, message))
