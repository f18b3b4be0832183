"""Operations on Tasks."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.responses import StreamingResponse

from taskqueue.api.common import DNS_LABEL_PATTERN, QUEUE_NAME_MAX_LENGTH, TASK_PLURAL
from taskqueue.api.task import TaskResource
from taskqueue.api.task_status import Phase
from taskqueue.client.new_task import retry_of
from taskqueue.client.status import FINISHED
from taskqueue.gateway.models import TaskPage
from taskqueue.gateway.operation import (
    Caller,
    Continue,
    LabelSelector,
    Limit,
    Namespace,
    ObjectName,
    Using,
    answer,
    json_answer,
    objects_path,
    operation,
    page_of,
    patch,
    read_body,
)
from taskqueue.gateway.problems import Problem
from taskqueue.gateway.reviews import Right
from taskqueue.gateway.submit import IdempotencyKey, create, read_new_task, with_key
from taskqueue.gateway.task_events import (
    check_same,
    event_id,
    event_stream,
    is_finished,
    wait_for_end,
)
from taskqueue.limits import HANDLER_NAME_LENGTH, STATUS_REASON_LENGTH

router = APIRouter(prefix="/v1/namespaces/{namespace}/tasks", tags=["Tasks"])

_GET, _LIST = Right("get", TASK_PLURAL), Right("list", TASK_PLURAL)
_CREATE, _PATCH = Right("create", TASK_PLURAL), Right("patch", TASK_PLURAL)
_WATCH, _DELETE = Right("watch", TASK_PLURAL), Right("delete", TASK_PLURAL)

#: Every phase, for a selector of those that are not wanted.
_PHASES: tuple[str, ...] = (
    *("Pending", "Blocked", "Scheduled", "Suspended", "Running", "Retrying"),
    *FINISHED,
)

Wait = Annotated[
    str | None,
    Query(
        pattern=r"^(0|[1-9][0-9]?|[12][0-9]{2}|300)s$",
        description="Answer when the Task has ended, or after so long, such as 30s: 300s at most.",
    ),
]


@router.post("", **operation("createTask", _CREATE, body="NewTask", problems=(409,), status=201))
async def create_task(
    request: Request,
    namespace: Namespace,
    caller: Caller,
    using: Using,
    wait: Wait = None,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Create a Task, and wait for its end if that is asked for.

    A Task of the same name and spec is the same Task: the answer is 200 then, not 201.
    """
    body = await read_body(request)
    task = read_new_task(body)
    if idempotency_key is not None:
        if (body.get("metadata") or {}).get("name"):
            raise Problem(
                422,
                "Invalid",
                "a Task with metadata.name needs no Idempotency-Key: leave one of both out",
            )
        task = with_key(task, idempotency_key, body)
    found, created = await create(caller, namespace, task, key=idempotency_key)
    if wait is not None and not is_finished(found):
        seconds = float(wait.removesuffix("s"))
        found = await wait_for_end(caller, found, seconds, using.draining)
    return _created(found, created=created)


def _created(task: dict[str, Any], *, created: bool) -> Response:
    metadata = task["metadata"]
    location = f"/v1/namespaces/{metadata['namespace']}/tasks/{metadata['name']}"
    more = {} if created else {"Idempotency_Replayed": "true"}
    return answer(task, 201 if created else 200, Location=location, **more)


@router.get("", **operation("listTasks", _LIST, ok=TaskPage, problems=(410,)))
async def list_tasks(
    namespace: Namespace,
    caller: Caller,
    queue: Annotated[
        str | None,
        Query(
            pattern=DNS_LABEL_PATTERN,
            max_length=QUEUE_NAME_MAX_LENGTH,
            description="Of this TaskQueue.",
        ),
    ] = None,
    phase: Annotated[list[Phase] | None, Query(description="In one of these phases.")] = None,
    handler: Annotated[
        str | None, Query(max_length=HANDLER_NAME_LENGTH, description="For this handler.")
    ] = None,
    reason: Annotated[
        str | None, Query(max_length=STATUS_REASON_LENGTH, description="With this status.reason.")
    ] = None,
    label_selector: LabelSelector = "",
    limit: Limit = 100,
    after: Continue = "",
) -> Response:
    """List Tasks. With handler or reason a page may be shorter than its limit, and empty."""
    fields = [f"spec.queue={queue}"] if queue else []
    if phase:
        fields += [f"status.phase!={each}" for each in _PHASES if each not in phase]
    page = await page_of(
        caller,
        objects_path(namespace, TASK_PLURAL),
        limit=limit,
        after=after,
        fieldSelector=",".join(fields),
        labelSelector=label_selector,
    )
    page["items"] = [
        task
        for task in page["items"]
        if handler in (None, task["spec"]["handler"])
        and reason in (None, (task.get("status") or {}).get("reason", ""))
    ]
    return json_answer(page)


@router.get("/{name}", **operation("getTask", _GET, ok=TaskResource))
async def get_task(
    namespace: Namespace, name: ObjectName, caller: Caller, using: Using, wait: Wait = None
) -> Response:
    """Return a Task, or wait for its end first."""
    found = await caller.requests.get(objects_path(namespace, TASK_PLURAL, name))
    if wait is not None and not is_finished(found):
        seconds = float(wait.removesuffix("s"))
        found = await wait_for_end(caller, found, seconds, using.draining)
    return answer(found)


@router.delete("/{name}", **operation("deleteTask", _DELETE, status=204, problems=(409,)))
async def delete_task(namespace: Namespace, name: ObjectName, caller: Caller) -> Response:
    """Delete a Task; if it runs, it is stopped."""
    await caller.requests.request("DELETE", objects_path(namespace, TASK_PLURAL, name))
    return Response(status_code=204)


@router.post("/{name}/cancel", **operation("cancelTask", _PATCH, ok=TaskResource, problems=(409,)))
async def cancel_task(namespace: Namespace, name: ObjectName, caller: Caller) -> Response:
    """Request that a Task is cancelled. One that has ended stays as it is (422)."""
    path = objects_path(namespace, TASK_PLURAL, name)
    return answer(await patch(caller, path, {"cancel": True}))


@router.post(
    "/{name}/retry",
    **operation("retryTask", _GET, _CREATE, status=201, problems=(409,)),
)
async def retry_task(
    namespace: Namespace,
    name: ObjectName,
    caller: Caller,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Run a Task that has ended again: as a new Task, whose label retry-of names this one."""
    found = await caller.requests.get(objects_path(namespace, TASK_PLURAL, name))
    if not is_finished(found):
        raise Problem(
            409,
            "NotFinished",
            f"Task {namespace}/{name} has not ended: wait for its end, or cancel it first",
        )
    task = retry_of(found)
    if idempotency_key is not None:
        asked = {"retryOf": found["metadata"]["uid"]}
        task = with_key(task, idempotency_key, asked)
    found, created = await create(caller, namespace, task, key=idempotency_key)
    return _created(found, created=created)


_EVENTS = operation("followTask", _GET, _WATCH, problems=(410,))
_EVENTS["responses"][200] = {
    "description": "Events: status, progress, result, gone, problem.",
    "content": {"text/event-stream": {"schema": {"type": "string"}}},
}
_EVENTS["responses"][204] = {"description": "The client has had the last event."}


@router.get("/{name}/events", **_EVENTS)
async def follow_task(
    namespace: Namespace,
    name: ObjectName,
    caller: Caller,
    using: Using,
    last_event_id: Annotated[
        str, Header(max_length=255, pattern=r"^[!-~]*$", description="id of the last event.")
    ] = "",
) -> Response:
    """Follow a Task as server-sent events until it has ended."""
    found = await caller.requests.get(objects_path(namespace, TASK_PLURAL, name))
    check_same(found, last_event_id)
    if is_finished(found) and event_id(found) == last_event_id:
        return Response(status_code=204)
    return StreamingResponse(
        event_stream(caller, found, last_event_id, using.draining),
        media_type="text/event-stream",
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )


for _created_by in ("createTask", "retryTask"):
    for _route in router.routes:
        if getattr(_route, "operation_id", "") == _created_by:
            _route.responses |= {  # type: ignore[attr-defined]
                200: {"model": TaskResource, "description": "It was there already."},
                201: {"model": TaskResource, "description": "Created."},
            }
