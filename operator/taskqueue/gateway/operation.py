"""What the operations of the gateway have in common: parameters, the caller, answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any
from urllib.parse import quote

import orjson
from fastapi import Depends, Path, Query, Request, Response
from pydantic import ValidationError

from taskqueue.api.common import (
    API_VERSION,
    DNS_LABEL_PATTERN,
    DNS_SUBDOMAIN_PATTERN,
    QUEUE_NAME_MAX_LENGTH,
)
from taskqueue.client.access import ApiConnection
from taskqueue.exact_json import decode
from taskqueue.gateway.problems import Problem, responses
from taskqueue.gateway.reviews import Right
from taskqueue.gateway.services import Services
from taskqueue.kubernetes.client import MERGE_PATCH
from taskqueue.limits import LABEL_LENGTH, OBJECT_NAME_LENGTH

#: Shown in metadata.managedFields of what the gateway writes for callers.
FIELD_MANAGER = "taskqueue-gateway"

#: Where the OpenAPI document says what a caller must be allowed to do.
ACCESS = "x-kubernetes-access"

Namespace = Annotated[
    str,
    Path(description="A namespace.", pattern=DNS_LABEL_PATTERN, max_length=LABEL_LENGTH),
]
ObjectName = Annotated[
    str,
    Path(
        description="The name of the object.",
        pattern=DNS_SUBDOMAIN_PATTERN,
        max_length=OBJECT_NAME_LENGTH,
    ),
]
QueueName = Annotated[
    str,
    Path(
        description="The name of a TaskQueue.",
        pattern=DNS_LABEL_PATTERN,
        max_length=QUEUE_NAME_MAX_LENGTH,
    ),
]
Limit = Annotated[int, Query(ge=1, le=500, description="Objects of a page, at most.")]
Continue = Annotated[
    str,
    Query(
        alias="continue",
        max_length=4096,
        description="Where the page begins: continue of the page before.",
    ),
]
LabelSelector = Annotated[
    str, Query(alias="labelSelector", max_length=1024, description="Labels, as for kubectl.")
]


def services_of(request: Request) -> Services:
    """Return what the application works with."""
    found: Services = request.app.state.services
    return found


def caller_of(request: Request) -> ApiConnection:
    """Return a connection to the API server with the credential of a request.

    Raises:
        Problem: 401, it has none.
    """
    return services_of(request).credentials.connection(request.headers.get("authorization"))


Caller = Annotated[ApiConnection, Depends(caller_of)]
Using = Annotated[Services, Depends(services_of)]


def operation(
    name: str,
    *rights: Right,
    body: str = "",
    problems: tuple[int, ...] = (),
    status: int = 200,
    **answers: Any,
) -> dict[str, Any]:
    """Return arguments of a route.

    Args:
        name: of the operation.
        rights: that the caller must have.
        body: the schema of the request's body; "": it has none.
        problems: statuses of its own, besides those of all operations.
        status: of success.
        answers: of success by status, such as ``ok=Model`` for ``status``.
    """
    extra: dict[str, Any] = {ACCESS: [right.extension() for right in rights]}
    if body:
        schema = {"$ref": f"#/components/schemas/{body}"}
        extra["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": schema}},
        }
        problems += (408, 413, 415)
    found: dict[int | str, dict[str, Any]] = responses(*problems)
    if "ok" in answers:
        found[status] = {"model": answers.pop("ok"), "description": "Done."}
    return {
        "operation_id": name,
        "openapi_extra": extra,
        "responses": found,
        "response_model": None,
        "status_code": status,
        **answers,
    }


def objects_path(namespace: str, plural: str, name: str = "") -> str:
    """Return the path of objects of taskqueue.dev, or of one of them."""
    path = f"/apis/{API_VERSION}/namespaces/{quote(namespace, safe='')}/{plural}"
    return f"{path}/{quote(name, safe='')}" if name else path


async def read_body(request: Request) -> Any:
    """Return the body as JSON.

    Raises:
        Problem: 400, it is none.
    """
    raw = await request.body()
    try:
        return decode(raw, "body")
    except ValueError as error:
        raise Problem(400, "NotJson", f"the body is not JSON: {error}") from None


def invalid(error: ValidationError, what: str) -> Problem:
    """Return the problem of a body that does not follow its schema."""
    found = "; ".join(
        f"{'.'.join(map(str, one['loc'])) or 'body'}: {one['msg']}"
        for one in error.errors(include_url=False, include_context=False, include_input=False)[:20]
    )
    return Problem(422, "Invalid", f"{what} is not valid: {found}")


def answer(raw: Mapping[str, Any], status: int = 200, **headers: str) -> Response:
    """Return an object as the API server has it, without its managedFields."""
    metadata = {key: value for key, value in raw["metadata"].items() if key != "managedFields"}
    return json_answer({**raw, "metadata": metadata}, status, **headers)


def json_answer(value: Any, status: int = 200, **headers: str) -> Response:
    """Return a value as JSON."""
    named = {name.replace("_", "-"): text for name, text in headers.items()}
    return Response(
        orjson.dumps(value), status_code=status, media_type="application/json", headers=named
    )


async def page_of(
    caller: ApiConnection, path: str, *, limit: int, after: str, **selectors: str
) -> dict[str, Any]:
    """Return a page of objects: items, and where the next page begins if there is one."""
    params = {name: text for name, text in selectors.items() if text}
    params |= {"limit": str(limit), **({"continue": after} if after else {})}
    found = await caller.requests.get(path, **params)
    items = found.get("items") or []
    for each in items:
        each["metadata"].pop("managedFields", None)
    following = (found.get("metadata") or {}).get("continue", "")
    return {"items": items, **({"continue": following} if following else {})}


async def patch(caller: ApiConnection, path: str, spec: Mapping[str, Any]) -> dict[str, Any]:
    """Change fields of an object's spec."""
    return await caller.requests.request(
        "PATCH",
        path,
        params={"fieldManager": FIELD_MANAGER},
        body={"spec": spec},
        content_type=MERGE_PATCH,
    )
