"""Answers that are no success: problem details of RFC 9457.

A refusal of the API server keeps its code and its words. ``reason`` is for programs: the API
server's, such as Forbidden, or one of ours, such as TooManyRequests.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

import orjson
from pydantic import BaseModel, Field

from taskqueue.client.errors import (
    NoArchive,
    ResultExpired,
    ResultUnavailable,
    TaskGone,
    Unavailable,
)
from taskqueue.direct.errors import ClientError, NotConfirmed, Refused, Unroutable
from taskqueue.kubernetes.client import TOO_LARGE, UNREADABLE, ApiError

MEDIA_TYPE = "application/problem+json"


class ProblemDetails(BaseModel):
    """What went wrong, and what to do about it (RFC 9457)."""

    type: str = Field(
        "about:blank", description="Always about:blank: reason distinguishes problems."
    )
    title: str = Field(description="The meaning of the status.")
    status: int = Field(description="The HTTP status.")
    detail: str = Field(description="What went wrong, and what to do about it.")
    reason: str = Field(description="For programs: one CamelCase word.")
    instance: str = Field("", description="The path of the request.")


@dataclass(slots=True)
class Problem(Exception):
    """Ends a request.

    Attributes:
        status: HTTP status, of 400 or more.
        reason: for programs.
        detail: for people: who, what, and what to do.
        headers: of the answer.
    """

    status: int
    reason: str
    detail: str
    headers: Mapping[str, str] = field(default_factory=dict)

    def body(self, path: str) -> bytes:
        """Return the answer to a request for this path."""
        details = ProblemDetails(
            type="about:blank",
            title=_title(self.status),
            status=self.status,
            detail=self.detail,
            reason=self.reason,
            instance=path,
        )
        return orjson.dumps(details.model_dump())


def _title(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Error"


def problem_of(error: Exception) -> Problem:
    """Return the problem that an error is for the caller."""
    match error:
        case Problem():
            return error
        case ApiError():
            return _of_api_error(error)
        case TaskGone():
            return Problem(404, "NotFound", str(error))
        case ResultExpired():
            return Problem(410, "ResultExpired", str(error))
        case ResultUnavailable(transient=False) | NoArchive():
            return Problem(404, type(error).__name__, str(error))
        case Unroutable():
            return Problem(404, "Unroutable", str(error))
        case Refused(status=status) if 400 <= status <= 499 and error.reason:
            return Problem(status, error.reason, str(error))
        case Refused():
            return Problem(502, "RefusedByBroker", str(error))
        case ResultUnavailable() | Unavailable() | NotConfirmed() | ClientError():
            return Problem(503, type(error).__name__, str(error), {"Retry-After": "1"})
        case _:
            return Problem(
                500, "InternalError", "the gateway has a fault: see its log for this request"
            )


@contextmanager
def gateways_own() -> Iterator[None]:
    """Do what the gateway does with its own rights: what it lacks is no refusal of the caller.

    Raises:
        Problem: 502 instead of 401 and 403.
    """
    try:
        yield
    except (ApiError, ClientError) as error:
        problem = problem_of(error)
        if problem.status not in (401, 403):
            raise
        raise Problem(
            502,
            "GatewayForbidden",
            f"the gateway itself may not do this: {problem.detail}: bind a role to its "
            "ServiceAccount (docs/guides/http.md)",
        ) from None


def _of_api_error(error: ApiError) -> Problem:
    """Keep what the API server says."""
    if error.status == 0 and error.reason == TOO_LARGE:
        return Problem(502, TOO_LARGE, f"{error.message}: ask for fewer with limit=")
    if error.status == 0 and error.reason == UNREADABLE:
        return Problem(502, UNREADABLE, error.message)
    if error.status == 0:
        detail = f"{error.message}: send the request again"
        return Problem(503, error.reason, detail, {"Retry-After": "1"})
    headers = {}
    if error.retry_after is not None:
        headers["Retry-After"] = f"{error.retry_after:g}"
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return Problem(error.status, error.reason or _title(error.status), error.message, headers)


def responses(*more: int) -> dict[int | str, dict[str, Any]]:
    """Return the problems of an operation, for the OpenAPI document: those of all, and more."""
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/ProblemDetails"}}}
    return {
        status: {"description": _title(status), "content": content}
        for status in sorted({400, 401, 403, 404, 405, 422, 429, 500, 502, 503, *more})
    }
