"""Operations on what stores and archives have: results, output, history.

None of it is in the API server. Each is served after a review of the caller's rights; the store is
reached by the Secret that the TaskQueue names, which the gateway reads itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Response
from pydantic.alias_generators import to_camel

from taskqueue.api.common import (
    DNS_LABEL_PATTERN,
    QUEUE_NAME_MAX_LENGTH,
    TASK_PLURAL,
    TASKQUEUE_PLURAL,
)
from taskqueue.archive.history import HistoryFilter
from taskqueue.client.access import ApiConnection
from taskqueue.client.history import HistoryPage
from taskqueue.client.status import reference_of, status_of
from taskqueue.gateway.models import HistoryPageView
from taskqueue.gateway.operation import (
    Caller,
    Continue,
    Namespace,
    ObjectName,
    Using,
    json_answer,
    objects_path,
    operation,
)
from taskqueue.gateway.problems import Problem, gateways_own
from taskqueue.gateway.reviews import Right, require
from taskqueue.gateway.services import Services
from taskqueue.model.result import ResultReference
from taskqueue.results.binary import BinaryResult

router = APIRouter(prefix="/v1/namespaces/{namespace}", tags=["Results and history"])

_GET = Right("get", TASK_PLURAL)
_RESULT = Right("get", f"{TASK_PLURAL}/results")
_OUTPUT = Right("get", f"{TASK_PLURAL}/output")
_HISTORY = Right("get", f"{TASKQUEUE_PLURAL}/history")

_Queue = Annotated[
    str,
    Query(
        pattern=DNS_LABEL_PATTERN,
        min_length=1,
        max_length=QUEUE_NAME_MAX_LENGTH,
        description="Name of the TaskQueue.",
    ),
]
_Time = Annotated[datetime | None, Query(description="In RFC 3339, with a time zone.")]
_Text = Annotated[str | None, Query(max_length=1024)]

_BYTES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The result: JSON, or bytes with the handler's content type.",
        "content": {"application/json": {}, "*/*": {}},
    }
}
_TEXT: dict[int | str, dict[str, Any]] = {
    200: {"description": "The end of what it printed.", "content": {"text/plain": {}}}
}


def _with(found: dict[str, Any], answers: dict[int | str, dict[str, Any]]) -> dict[str, Any]:
    found["responses"] |= answers
    return found


@router.get(
    "/tasks/{name}/result",
    **_with(operation("getTaskResult", _GET, _RESULT, problems=(409, 410)), _BYTES),
)
async def get_task_result(
    namespace: Namespace, name: ObjectName, caller: Caller, using: Using
) -> Response:
    """Return what the handler of a Task returned, wherever that is."""
    await require(caller, _RESULT, namespace, name)
    task = await caller.requests.get(objects_path(namespace, TASK_PLURAL, name))
    status = status_of(task)
    if status.phase != "Succeeded":
        raise Problem(
            409,
            "NotSucceeded",
            f"Task {namespace}/{name} is {status}: only a Task that succeeded has a result",
        )
    return await _result(using, namespace, status.result, status.result_ref)


@router.get(
    "/results/{uid}",
    **_with(operation("getResult", _HISTORY, _RESULT, problems=(409, 410)), _BYTES),
)
async def get_result(
    namespace: Namespace,
    uid: Annotated[str, Path(pattern=r"^[-0-9a-f]{1,64}$", description="uid of the Task.")],
    queue: _Queue,
    caller: Caller,
    using: Using,
) -> Response:
    """Return the result of a Task that may have been deleted, by the archive of its TaskQueue."""
    await require(caller, _RESULT, namespace)
    await require(caller, _HISTORY, namespace, queue)
    wanted = HistoryFilter(namespace=namespace, queue=queue, uid=uid)
    page = await _history(using, queue, wanted, page="", limit=1)
    if not page.tasks:
        raise Problem(
            404, "NotFound", f"the archive of TaskQueue {namespace}/{queue} has no Task {uid}"
        )
    task = page.tasks[0]
    if task.phase != "Succeeded":
        raise Problem(
            409,
            "NotSucceeded",
            f"Task {namespace}/{task.name} is {task.phase}: only a Task that succeeded has a "
            "result",
        )
    return await _result(using, namespace, task.result, reference_of(task.result_ref))


async def _result(
    using: Services,
    namespace: str,
    value: Mapping[str, Any] | None,
    reference: ResultReference | None,
) -> Response:
    found: Any = value
    if reference is not None:
        own = using.credentials.own
        with gateways_own():
            found = await using.results.read(own, namespace, reference)
    if not isinstance(found, BinaryResult):
        return json_answer(found)
    return Response(
        found.body,
        media_type=found.content_type,
        # A handler's HTML is no page of this site.
        headers={"Content-Disposition": "attachment", "X-Content-Type-Options": "nosniff"},
    )


@router.get(
    "/tasks/{name}/output",
    **_with(operation("getTaskOutput", _GET, _OUTPUT), _TEXT),
)
async def get_task_output(
    namespace: Namespace,
    name: ObjectName,
    caller: Caller,
    using: Using,
    attempt: Annotated[
        int | None, Query(ge=1, le=2**31, description="Its number. When absent, the last one.")
    ] = None,
) -> Response:
    """Return the end of what an attempt has printed, as spec.results.output keeps it."""
    await require(caller, _OUTPUT, namespace, name)
    task = await caller.requests.get(objects_path(namespace, TASK_PLURAL, name))
    number = attempt or (task.get("status") or {}).get("attempts") or 1
    with gateways_own():
        text = await using.results.read_output(using.credentials.own, task, number)
    if text is None:
        raise Problem(
            404,
            "NoOutput",
            f"nothing is kept of what attempt {number} of Task {namespace}/{name} printed: set "
            "spec.results.output of its TaskQueue",
        )
    return Response(text, media_type="text/plain", headers={"X-Content-Type-Options": "nosniff"})


@router.get("/history", **operation("searchHistory", _HISTORY, ok=HistoryPageView))
async def search_history(
    namespace: Namespace,
    queue: _Queue,
    caller: Caller,
    using: Using,
    handler: _Text = None,
    phase: Annotated[list[str] | None, Query(max_length=3)] = None,
    reason: _Text = None,
    since: _Time = None,
    until: _Time = None,
    error_text: Annotated[str | None, Query(alias="errorText", max_length=1024)] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    after: Continue = "",
) -> Response:
    """Search the archive of a TaskQueue for Tasks that have ended: the last that ended first."""
    await require(caller, _HISTORY, namespace, queue)
    try:
        wanted = HistoryFilter(
            namespace=namespace,
            queue=queue,
            handler=handler,
            phases=tuple(phase or ()),
            reason=reason,
            since=since,
            until=until,
            error_text=error_text,
        )
        page = await _history(using, queue, wanted, page=after, limit=limit)
    except ValueError as error:
        raise Problem(422, "Invalid", str(error)) from None
    items = [{to_camel(name): value for name, value in asdict(task).items()} for task in page.tasks]
    following = {"continue": page.next_page} if page.next_page else {}
    return json_answer({"items": items, **following})


async def _history(
    using: Services, queue: str, wanted: HistoryFilter, *, page: str, limit: int
) -> HistoryPage:
    own: ApiConnection = using.credentials.own
    with gateways_own():
        address = await using.history.find_address(own.requests, wanted.namespace, queue)
        return await using.history.read(address, wanted, page=page, limit=limit)
