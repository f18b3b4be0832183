"""Operations on TaskQueues."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from pydantic import ValidationError

from taskqueue.api.common import TASKQUEUE_PLURAL
from taskqueue.api.taskqueue import TaskQueueResource
from taskqueue.gateway.models import NewMessage, ScalingView, Sent, TaskQueuePage
from taskqueue.gateway.operation import (
    Caller,
    Continue,
    LabelSelector,
    Limit,
    Namespace,
    QueueName,
    Using,
    answer,
    invalid,
    json_answer,
    objects_path,
    operation,
    page_of,
    patch,
    read_body,
)
from taskqueue.gateway.problems import Problem
from taskqueue.gateway.reviews import Right, require

router = APIRouter(prefix="/v1/namespaces/{namespace}/taskqueues", tags=["TaskQueues"])

_GET, _LIST = Right("get", TASKQUEUE_PLURAL), Right("list", TASKQUEUE_PLURAL)
_PATCH = Right("patch", TASKQUEUE_PLURAL)
_SEND = Right("create", f"{TASKQUEUE_PLURAL}/messages")


@router.get("", **operation("listTaskQueues", _LIST, ok=TaskQueuePage, problems=(410,)))
async def list_queues(
    namespace: Namespace,
    caller: Caller,
    label_selector: LabelSelector = "",
    limit: Limit = 100,
    after: Continue = "",
) -> Response:
    """List TaskQueues."""
    path = objects_path(namespace, TASKQUEUE_PLURAL)
    return json_answer(
        await page_of(caller, path, limit=limit, after=after, labelSelector=label_selector)
    )


@router.get("/{queue}", **operation("getTaskQueue", _GET, ok=TaskQueueResource))
async def get_queue(namespace: Namespace, queue: QueueName, caller: Caller) -> Response:
    """Return a TaskQueue."""
    return answer(await caller.requests.get(objects_path(namespace, TASKQUEUE_PLURAL, queue)))


@router.get("/{queue}/scaling", **operation("explainScaling", _GET, ok=ScalingView))
async def explain_scaling(namespace: Namespace, queue: QueueName, caller: Caller) -> Response:
    """Say why a TaskQueue has as many workers as it has."""
    found = await caller.requests.get(objects_path(namespace, TASKQUEUE_PLURAL, queue))
    spec, status = found["spec"], found.get("status") or {}
    view = {
        "explanation": status.get("scaling", ""),
        "stopPolicy": spec.get("stopPolicy", "None"),
        "scaling": spec.get("scaling") or {},
        "status": status,
    }
    return json_answer(view)


@router.post(
    "/{queue}/hold",
    **operation("holdTaskQueue", _PATCH, ok=TaskQueueResource, problems=(409,)),
)
async def hold_queue(
    namespace: Namespace,
    queue: QueueName,
    caller: Caller,
    drain: Annotated[bool, Query(description="Remove the workers, too, as work ends.")] = False,
) -> Response:
    """Dispatch nothing new; what is dispatched continues."""
    path = objects_path(namespace, TASKQUEUE_PLURAL, queue)
    return answer(await patch(caller, path, {"stopPolicy": "HoldAndDrain" if drain else "Hold"}))


@router.post(
    "/{queue}/resume",
    **operation("resumeTaskQueue", _PATCH, ok=TaskQueueResource, problems=(409,)),
)
async def resume_queue(namespace: Namespace, queue: QueueName, caller: Caller) -> Response:
    """Dispatch again."""
    path = objects_path(namespace, TASKQUEUE_PLURAL, queue)
    return answer(await patch(caller, path, {"stopPolicy": "None"}))


@router.post(
    "/{queue}/messages",
    **operation("sendMessage", _SEND, body="NewMessage", status=202, ok=Sent),
)
async def send_message(
    request: Request, namespace: Namespace, queue: QueueName, caller: Caller, using: Using
) -> Response:
    """Send a direct message: work without a Task. When this answers, it is in the queue."""
    await require(caller, _SEND, namespace, queue)
    try:
        message = NewMessage.model_validate(await read_body(request))
    except ValidationError as error:
        raise invalid(error, "the message") from None
    producer = await using.producers.producer(using.credentials.own, (namespace, queue))
    try:
        await producer.send(
            namespace,
            queue,
            message.payload,
            handler=message.handler,
            correlation_id=message.correlation_id,
        )
    except ValueError as error:
        raise Problem(422, "Invalid", f"the message cannot be sent: {error}") from None
    return json_answer({"queue": f"{namespace}/{queue}"}, 202)
