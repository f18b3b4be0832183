"""Operations on TaskSchedules."""

from __future__ import annotations

from fastapi import APIRouter, Response

from taskqueue.api.common import TASKSCHEDULE_PLURAL
from taskqueue.api.taskschedule import TaskScheduleResource
from taskqueue.gateway.models import TaskSchedulePage
from taskqueue.gateway.operation import (
    Caller,
    Continue,
    LabelSelector,
    Limit,
    Namespace,
    ObjectName,
    answer,
    json_answer,
    objects_path,
    operation,
    page_of,
    patch,
)
from taskqueue.gateway.reviews import Right

router = APIRouter(prefix="/v1/namespaces/{namespace}/taskschedules", tags=["TaskSchedules"])

_GET, _LIST = Right("get", TASKSCHEDULE_PLURAL), Right("list", TASKSCHEDULE_PLURAL)
_PATCH = Right("patch", TASKSCHEDULE_PLURAL)


@router.get("", **operation("listTaskSchedules", _LIST, ok=TaskSchedulePage, problems=(410,)))
async def list_schedules(
    namespace: Namespace,
    caller: Caller,
    label_selector: LabelSelector = "",
    limit: Limit = 100,
    after: Continue = "",
) -> Response:
    """List TaskSchedules."""
    path = objects_path(namespace, TASKSCHEDULE_PLURAL)
    return json_answer(
        await page_of(caller, path, limit=limit, after=after, labelSelector=label_selector)
    )


@router.get("/{name}", **operation("getTaskSchedule", _GET, ok=TaskScheduleResource))
async def get_schedule(namespace: Namespace, name: ObjectName, caller: Caller) -> Response:
    """Return a TaskSchedule."""
    return answer(await caller.requests.get(objects_path(namespace, TASKSCHEDULE_PLURAL, name)))


async def _suspend(caller: Caller, namespace: str, name: str, *, suspend: bool) -> Response:
    path = objects_path(namespace, TASKSCHEDULE_PLURAL, name)
    return answer(await patch(caller, path, {"suspend": suspend}))


@router.post(
    "/{name}/pause",
    **operation("pauseTaskSchedule", _PATCH, ok=TaskScheduleResource, problems=(409,)),
)
async def pause_schedule(namespace: Namespace, name: ObjectName, caller: Caller) -> Response:
    """Create no Tasks until it is resumed."""
    return await _suspend(caller, namespace, name, suspend=True)


@router.post(
    "/{name}/resume",
    **operation("resumeTaskSchedule", _PATCH, ok=TaskScheduleResource, problems=(409,)),
)
async def resume_schedule(namespace: Namespace, name: ObjectName, caller: Caller) -> Response:
    """Create Tasks again."""
    return await _suspend(caller, namespace, name, suspend=False)
