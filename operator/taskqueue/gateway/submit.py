"""Creates Tasks for callers, also under an idempotency key.

Contract of a key, which the gateway keeps nothing for:

* The name of the Task follows from the key. The same key in the same namespace is the same Task, as
  long as that exists, whichever replica answers.
* An annotation has a digest of the request. Another request under the same key is refused (422).
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Mapping
from typing import Annotated, Any

import orjson
from fastapi import Header
from pydantic import ValidationError

from taskqueue.api.common import API_VERSION, GROUP, TASK_KIND, TASK_PLURAL
from taskqueue.api.task import TaskResourceSpec
from taskqueue.client.access import ApiConnection
from taskqueue.client.requests import is_quota_exceeded
from taskqueue.client.spec import differences
from taskqueue.gateway.models import NewTask
from taskqueue.gateway.operation import FIELD_MANAGER, invalid, objects_path
from taskqueue.gateway.problems import Problem
from taskqueue.kubernetes.client import ApiError

#: Of a Task that was created under a key: what the request was.
DIGEST = f"{GROUP}/request-digest"

IdempotencyKey = Annotated[
    str | None,
    Header(
        min_length=1,
        max_length=255,
        pattern=r"^[!-~]+$",
        description="The same key is the same Task: a request may be sent again safely.",
    ),
]


def read_new_task(raw: Any) -> dict[str, Any]:
    """Return the object to create from the body of a request.

    Raises:
        Problem: 422; the text names the field.
    """
    try:
        # No unknown field anywhere: the models of the API server's objects ignore them.
        manifest = NewTask.model_validate(raw, extra="forbid", by_name=False)
    except ValidationError as error:
        raise invalid(error, "the Task") from None
    given, spec = manifest.metadata, manifest.spec
    name = given.name or f"{given.generate_name or f'{spec.queue}-'}{uuid.uuid4().hex[:10]}"
    metadata: dict[str, Any] = {"name": name}
    metadata |= {"labels": given.labels} if given.labels else {}
    metadata |= {"annotations": given.annotations} if given.annotations else {}
    return {
        "apiVersion": API_VERSION,
        "kind": TASK_KIND,
        "metadata": metadata,
        "spec": raw["spec"],  # as it came: the API server sees every value as it was written
    }


def with_key(task: Mapping[str, Any], key: str, request: Any) -> dict[str, Any]:
    """Return a Task to create under a key.

    Args:
        task: to create.
        key: of the request.
        request: what was asked for: JSON.
    """
    text = orjson.dumps(request, option=orjson.OPT_SORT_KEYS)
    metadata = {name: value for name, value in task["metadata"].items() if name != "generateName"}
    annotations = {**metadata.get("annotations", {}), DIGEST: hashlib.sha256(text).hexdigest()}
    name = f"idem-{hashlib.sha256(key.encode()).hexdigest()[:40]}"
    return {**task, "metadata": {**metadata, "name": name, "annotations": annotations}}


async def create(
    caller: ApiConnection, namespace: str, task: Mapping[str, Any], *, key: str | None
) -> tuple[dict[str, Any], bool]:
    """Create a Task, or find it where its name says that it is the same.

    Returns:
        the object, and whether it was created now.

    Raises:
        Problem: 422, the key stands for another request; 409, the name for another Task.
        ApiError: the API server refused it, or did not answer.
    """
    path = objects_path(namespace, TASK_PLURAL)
    params = {"fieldManager": FIELD_MANAGER, "fieldValidation": "Strict"}
    try:
        return await caller.requests.request("POST", path, params=params, body=task), True
    except ApiError as error:
        # A full quota is refused before the name is looked at.
        if error.reason != "AlreadyExists" and not is_quota_exceeded(error):
            raise
        if "name" not in task["metadata"]:
            raise
        refusal = error
    try:
        found = await caller.requests.get(f"{path}/{task['metadata']['name']}")
    except ApiError as error:
        raise (refusal if error.status == 404 else error) from None
    _check_same(found, task, key)
    return found, False


def _check_same(found: Mapping[str, Any], task: Mapping[str, Any], key: str | None) -> None:
    metadata = found["metadata"]
    where = f"Task {metadata['namespace']}/{metadata['name']}"
    if key is not None:
        there = (metadata.get("annotations") or {}).get(DIGEST)
        if there != task["metadata"]["annotations"][DIGEST]:
            raise Problem(
                422,
                "IdempotencyKeyReused",
                f"{where} was created under this Idempotency-Key by another request: give each "
                "request a key of its own",
            )
        return
    fields = differences(TaskResourceSpec.model_validate(task["spec"]), found["spec"])
    if fields:
        raise Problem(
            409,
            "AlreadyExists",
            f"{where} exists and differs in {', '.join(fields)}: give this one another name",
        )
