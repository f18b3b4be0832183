"""Creates, cancels and deletes the Tasks of schedules; every request has a time-out."""

from __future__ import annotations

from enum import Enum, auto

from taskqueue.controller.schedules.decisions import RunRequest
from taskqueue.controller.schedules.report import Problem
from taskqueue.kubernetes.client import JSON_PATCH, METADATA, ApiClient, ApiError, ErrorKind
from taskqueue.kubernetes.ownership import FIELD_MANAGER
from taskqueue.kubernetes.schedule_codec import (
    cancel_patch,
    owner_of,
    schedule_path,
    task_of,
    tasks_path,
    template_of,
)
from taskqueue.kubernetes.task_codec import task_path
from taskqueue.logs import EventLog
from taskqueue.model.schedule import Schedule, ScheduledRun

log = EventLog(__name__)

_NOT_FOUND, _CONFLICT, _INVALID = 404, 409, 422


class Gone(Enum):
    """The TaskSchedule is deleted, or another one has its name."""

    GONE = auto()


class RunCreator:
    """Does with Tasks what was decided.

    Args:
        client: for the API server.
    """

    def __init__(self, client: ApiClient) -> None:
        self._client = client

    async def create(
        self, schedule: Schedule, request: RunRequest, template: bytes | None
    ) -> ScheduledRun | Problem | Gone:
        """Create the Task of a run.

        A Task that this schedule has made already, be it through another operator, is its run.

        Args:
            schedule: the object.
            request: the run.
            template: of the Task, as JSON; None: it is read.

        Returns:
            The run, or why it can never be created.

        Raises:
            ApiError: it may be created later.
        """
        if template is None:
            found = await self._read_template(schedule)
            if found is None:
                return Gone.GONE
            template = found
        body = task_of(schedule, template, request.minute)
        try:
            made = await self._client.request(
                "POST",
                tasks_path(schedule.namespace),
                params={"fieldManager": FIELD_MANAGER},
                body=body,
                accept=METADATA,
                levels=2,
            )
        except ApiError as error:
            if error.status == _CONFLICT:
                return await self._existing(schedule, request)
            if error.kind is ErrorKind.FINAL and error.status != _NOT_FOUND:
                return Problem("Refused", f"the API server refuses its Task: {error.message}")
            raise
        name, uid = schedule.run_name(request.minute), str(made["metadata"]["uid"])
        return ScheduledRun(name, uid, request.minute)

    async def cancel(self, schedule: Schedule, run: ScheduledRun) -> None:
        """Cancel a run that has not ended.

        Raises:
            ApiError: it may be cancelled later.
        """
        path = task_path(schedule.namespace, run.name)
        try:
            await self._client.send(
                "PATCH", path, body=cancel_patch(run), content_type=JSON_PATCH, accept=METADATA
            )
        except ApiError as error:
            if error.status not in (_NOT_FOUND, _INVALID):  # deleted, or it has ended meanwhile
                raise

    async def delete(self, schedule: Schedule, run: ScheduledRun) -> None:
        """Delete a run that has ended.

        Raises:
            ApiError: it may be deleted later.
        """
        options = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "preconditions": {"uid": run.uid},
            "propagationPolicy": "Background",
        }
        path = task_path(schedule.namespace, run.name)
        try:
            await self._client.send("DELETE", path, body=options)
        except ApiError as error:
            if error.status not in (_NOT_FOUND, _CONFLICT):  # deleted, or another one by now
                raise

    async def _read_template(self, schedule: Schedule) -> bytes | None:
        try:
            raw = await self._client.get(schedule_path(schedule.namespace, schedule.name))
        except ApiError as error:
            if error.status == _NOT_FOUND:
                return None
            raise
        return template_of(raw) if raw["metadata"]["uid"] == schedule.uid else None

    async def _existing(self, schedule: Schedule, request: RunRequest) -> ScheduledRun | Problem:
        name = schedule.run_name(request.minute)
        raw = await self._client.request(
            "GET", task_path(schedule.namespace, name), accept=METADATA
        )
        if owner_of(raw) == schedule.uid:
            return ScheduledRun(name, raw["metadata"]["uid"], request.minute)
        return Problem(
            "NameTaken",
            f"there is a Task {name} that is not of this schedule: delete it, or rename the "
            "schedule",
        )
