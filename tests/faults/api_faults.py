"""What an API proxy can do to requests and watches, and the rules that select requests."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http import HTTPStatus

#: The machine-readable reasons of the API server.
_REASONS = {
    400: "BadRequest",
    401: "Unauthorized",
    403: "Forbidden",
    404: "NotFound",
    409: "Conflict",
    410: "Expired",
    422: "Invalid",
    429: "TooManyRequests",
    500: "InternalError",
    503: "ServiceUnavailable",
    504: "Timeout",
}


_NAME_SELECTOR = re.compile(r"(?:^|,)metadata\.name==?([^,]+)")


@dataclass(frozen=True, kw_only=True)
class ApiRequest:
    """A request that the proxy received.

    Attributes:
        method: HTTP method.
        path: without the query, such as ``/api/v1/namespaces/default/pods/a``.
        name: of the object: from the path, a field selector, or the body of a create; or "".
        page: of a list that is read in pages, from 1; 0 for other requests.
        is_watch: whether it opens a watch.
        labels: the label selector, or "".
    """

    method: str
    path: str
    name: str = ""
    page: int = 0
    is_watch: bool = False
    labels: str = ""


# Faults of requests.


@dataclass(frozen=True)
class Answer:
    """Answers with a Status object instead of the API server.

    Args:
        status: HTTP status.
        retry_after: seconds, for the header Retry-After; None: no header.
        message: for people.
    """

    status: int
    retry_after: int | None = None
    message: str = "answered by a test"

    @property
    def headers(self) -> dict[str, str]:
        """Headers of the answer."""
        return {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}

    @property
    def body(self) -> bytes:
        """The Status object, as JSON."""
        return _status_object(self.status, self.message)


@dataclass(frozen=True)
class Hang:
    """Never answers; when the rule ends, the connection is cut."""


@dataclass(frozen=True)
class Delay:
    """Passes the request on after a delay in seconds."""

    seconds: float


@dataclass(frozen=True)
class Cut:
    """Resets the connection, of a request or of a watch."""


# Faults of watches.


@dataclass(frozen=True)
class Silence:
    """Keeps the connection of a watch open and passes nothing more, ever."""


@dataclass(frozen=True)
class End:
    """Ends a watch as the API server does after ``timeoutSeconds``."""


@dataclass(frozen=True)
class ErrorEvent:
    """Sends an ERROR event and ends the watch; 410: its resource version has expired."""

    status: int = 410
    message: str = "too old resource version"

    @property
    def line(self) -> bytes:
        """The event as a line of the watch."""
        return b'{"type":"ERROR","object":' + _status_object(self.status, self.message) + b"}\n"


RequestFault = Answer | Hang | Delay | Cut
WatchFault = Silence | End | ErrorEvent | Cut
ApiFault = RequestFault | WatchFault


def _status_object(status: int, message: str) -> bytes:
    return json.dumps(
        {
            "kind": "Status",
            "apiVersion": "v1",
            "status": "Failure",
            "reason": _REASONS.get(status) or HTTPStatus(status).phrase.replace(" ", ""),
            "message": message,
            "code": status,
        }
    ).encode()


@dataclass(kw_only=True, eq=False)
class Rule:
    """Selects requests for a fault; whatever is not given matches everything.

    Attributes:
        fault: what happens to the requests.
        method: HTTP method.
        path: a regular expression that is searched for in the path.
        name: of the object.
        page: of a list, from 1.
        is_watch: True: only requests that open a watch; False: only others.
        labels: the label selector; "": only requests without one.
        skip: how many matching requests pass before the first is hit.
        times: how many are hit; None: no limit.
        seconds: how long the rule lasts; None: until its context ends.
        after_execution: the API server executes the request first, and its answer is lost.
        matched: requests that matched so far, hit or not.
        applied: requests that were hit so far.
    """

    fault: ApiFault
    method: str | None = None
    path: str = ""
    name: str | None = None
    page: int | None = None
    is_watch: bool | None = None
    labels: str | None = None
    skip: int = 0
    times: int | None = None
    seconds: float | None = None
    after_execution: bool = False
    matched: int = 0
    applied: int = 0
    _began: float = field(default_factory=time.monotonic)

    def matches(self, request: ApiRequest) -> bool:
        """Return whether the rule is about this request."""
        if isinstance(self.fault, Silence | End | ErrorEvent) and not request.is_watch:
            return False
        return (
            self.method in (None, request.method)
            and re.search(self.path, request.path) is not None
            and self.name in (None, request.name)
            and self.page in (None, request.page)
            and self.is_watch in (None, request.is_watch)
            and self.labels in (None, request.labels)
        )

    @property
    def has_ended(self) -> bool:
        """Whether its time is over."""
        return self.seconds is not None and time.monotonic() >= self._began + self.seconds

    @property
    def remaining_seconds(self) -> float | None:
        """Return how long it still lasts; None: until its context ends."""
        if self.seconds is None:
            return None
        return max(0.0, self._began + self.seconds - time.monotonic())

    def count_match(self) -> bool:
        """Count a matching request, and return whether it is hit."""
        if self.has_ended:
            return False
        self.matched += 1
        if self.matched <= self.skip or (self.times is not None and self.applied >= self.times):
            return False
        self.applied += 1
        return True


def describe_request(
    method: str, path: str, query: Mapping[str, str], body: bytes, page_of_token: Mapping[str, int]
) -> ApiRequest:
    """Return what a request is.

    Args:
        method: HTTP method.
        path: without the query.
        query: parameters.
        body: of the request.
        page_of_token: which page of a list each known token of ``continue`` leads to.
    """
    is_watch = query.get("watch") in ("1", "true")
    page = 0
    if not is_watch and "limit" in query:
        page = page_of_token.get(query["continue"], 0) if query.get("continue") else 1
    name = _name_in_path(path)
    if not name:
        selected = _NAME_SELECTOR.search(query.get("fieldSelector", ""))
        name = selected[1] if selected else _name_in_body(body)
    return ApiRequest(
        method=method,
        path=path,
        name=name,
        page=page,
        is_watch=is_watch,
        labels=query.get("labelSelector", ""),
    )


def _name_in_path(path: str) -> str:
    """Return the name in /api/V/[namespaces/NS/]RESOURCE/NAME or /apis/GROUP/V/...; "": none."""
    parts = path.strip("/").split("/")
    rest = parts[3:] if parts[0] == "apis" else parts[2:]
    if rest[:1] == ["namespaces"] and len(rest) > 2:
        rest = rest[2:]
    return rest[1] if len(rest) > 1 else ""


def _name_in_body(body: bytes) -> str:
    with suppress(ValueError, KeyError, TypeError, RecursionError):
        return str(json.loads(body)["metadata"]["name"])
    return ""
