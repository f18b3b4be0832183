"""Refusals keep the API server's words, its code and its reason; nothing else becomes a 200."""

from __future__ import annotations

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskqueue.client.errors import NoArchive, ResultExpired, ResultUnavailable, Unavailable
from taskqueue.direct.errors import ClientError, NotConfirmed, Refused, Unroutable
from taskqueue.gateway.problems import problem_of
from taskqueue.gateway.settings import GatewaySettings
from taskqueue.kubernetes.client import ApiError


@given(
    st.sampled_from([400, 401, 403, 404, 409, 410, 413, 422, 429, 500, 503, 504]),
    st.text(min_size=1),
    st.text(min_size=1),
    st.none() | st.floats(0, 1000),
)
def test_the_api_servers_refusal_is_the_callers(
    status: int, reason: str, message: str, after: float | None
) -> None:
    problem = problem_of(ApiError(status, reason, message, retry_after=after))
    body = orjson.loads(problem.body("/p"))
    assert (body["status"], body["reason"], body["detail"]) == (status, reason, message)
    assert body["title"]
    assert ("Retry-After" in problem.headers) is (after is not None)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ApiError(0, "Unreachable", "m"), 503),
        (ApiError(0, "TooLarge", "m"), 502),
        (ApiError(0, "Unreadable", "m"), 502),
        (Unavailable("m"), 503),
        (Unroutable("m"), 404),
        (NotConfirmed("m", confirmed=0), 503),
        (Refused("m", status=403, reason="Forbidden"), 403),
        (Refused("m", status=403), 502),
        (ResultExpired("m", transient=False), 410),
        (ResultUnavailable("m", transient=False), 404),
        (ResultUnavailable("m", transient=True), 503),
        (NoArchive("m"), 404),
        (ClientError("m"), 503),
    ],
)
def test_every_error_has_a_status(error: Exception, status: int) -> None:
    problem = problem_of(error)
    assert problem.status == status
    assert problem.detail.startswith("m")


def test_a_fault_of_ours_says_nothing_of_its_inside() -> None:
    problem = problem_of(ValueError("amqp://user:secret@host"))
    assert problem.status == 500
    assert "secret" not in problem.detail


def test_settings_come_from_the_environment() -> None:
    found = GatewaySettings.from_environment(
        {"TASKQUEUE_GATEWAY_PORT": "9000", "TASKQUEUE_GATEWAY_DRAIN_SECONDS": "0.5"}
    )
    assert (found.port, found.drain_seconds) == (9000, 0.5)
    with pytest.raises(ValueError, match="TASKQUEUE_GATEWAY_PORT is 'x'"):
        GatewaySettings.from_environment({"TASKQUEUE_GATEWAY_PORT": "x"})
