"""What an unsuccessful answer of the API server means: decided in one place, for all requests."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskqueue.kubernetes.client import ApiError, ErrorKind, _error, kind_of, parse

UNAVAILABLE, THROTTLED = ErrorKind.UNAVAILABLE, ErrorKind.THROTTLED
TRANSIENT, FINAL = ErrorKind.TRANSIENT, ErrorKind.FINAL

#: What API servers, their webhooks and proxies have answered to a write.
ANSWERS = [
    (0, "API server at https://10.0.0.1: TimeoutError() on PATCH /x", UNAVAILABLE),
    (0, "response to PATCH /x is not JSON: message larger than max", UNAVAILABLE),
    (400, "the server rejected our request for an unknown reason", FINAL),
    (401, "Unauthorized", UNAVAILABLE),
    (403, 'User "system:serviceaccount:a:b" cannot patch resource "tasks/status"', TRANSIENT),
    (403, 'admission webhook "w.example.com" denied the request: no', TRANSIENT),
    (404, "tasks.taskqueue.dev not found", FINAL),
    (405, "the server does not allow this method on the requested resource", FINAL),
    (408, "the server timed out", UNAVAILABLE),
    (409, "Operation cannot be fulfilled: the object has been modified", TRANSIENT),
    (413, "Request entity too large: limit is 3145728", FINAL),
    (418, "a joke of a proxy", TRANSIENT),
    (422, "status: Invalid value: the phase of a finished Task never changes", FINAL),
    (429, "Too many requests, please try again later.", THROTTLED),
    (500, "Internal error occurred: failed calling webhook: context deadline exceeded", TRANSIENT),
    (500, "etcdserver: mvcc: database space exceeded", TRANSIENT),
    (500, "etcdserver: request timed out", TRANSIENT),
    (500, "etcdserver: request is too large", FINAL),
    (400, "rpc error: code = InvalidArgument desc = etcdserver: request is too large", FINAL),
    (
        500,
        "rpc error: code = ResourceExhausted desc = trying to send message larger than max "
        "(2097279 vs. 2097152)",
        FINAL,
    ),
    (501, "Not Implemented", TRANSIENT),
    (502, "<html>Bad Gateway</html>", UNAVAILABLE),
    (503, "the server is currently unable to handle the request", UNAVAILABLE),
    (504, "Timeout: request did not complete within the allotted timeout", UNAVAILABLE),
    (522, "connection timed out, says a proxy", UNAVAILABLE),
]


@pytest.mark.parametrize(("status", "message", "kind"), ANSWERS)
def test_an_answer_means_the_same_to_all_who_ask(
    status: int, message: str, kind: ErrorKind
) -> None:
    error = ApiError(status, "Reason", message)
    assert kind_of(status, message) is error.kind is kind
    assert error.transient is (kind is not FINAL)


@given(status=st.integers(0, 999), message=st.text())
def test_only_what_is_known_to_be_refused_is_not_tried_again(status: int, message: str) -> None:
    if kind_of(status, message) is FINAL:
        assert 400 <= status < 500 or "too large" in message or "larger than" in message


BODIES = st.one_of(
    st.binary(max_size=50),
    st.sampled_from([b"", b"null", b"[1]", b'"text"', b"7", b"{}", b'{"message": 5}', b"\xff"]),
)


@given(
    status=st.integers(400, 599),
    raw=BODIES,
    after=st.sampled_from(["", "1", "0", "9" * 400, "-1", "1.5", "\u00b2", "\u0665", "soon"]),
)
def test_whatever_stands_in_an_answer_an_api_error_comes_of_it(
    status: int, raw: bytes, after: str
) -> None:
    answer = SimpleNamespace(status=status, reason="Reason", headers={"Retry-After": after})
    error = _error(cast(aiohttp.ClientResponse, answer), raw)
    assert error.status == status
    assert error.message
    assert error.retry_after is None or error.retry_after >= 0


@given(raw=BODIES)
def test_a_response_is_an_object_or_unreadable(raw: bytes) -> None:
    kind = None
    try:
        assert isinstance(parse(raw, "GET /x"), dict)
    except ApiError as error:
        kind = error.kind
    assert kind in (None, UNAVAILABLE)
