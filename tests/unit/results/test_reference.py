from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from taskqueue.model.result import queue_prefix, result_key
from taskqueue.results.reference import (
    ResultDamagedError,
    StoredResult,
    check_result,
    reference_to,
)

NAME = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,10}[a-z0-9])?", fullmatch=True)
NUMBER = st.integers(0, 1000)
ATTEMPT = st.tuples(NAME, NAME, st.uuids().map(str), NUMBER, NUMBER)


def key(attempt: tuple[str, str, str, int, int]) -> str:
    namespace, queue, uid, number, epoch = attempt
    return result_key(namespace=namespace, queue=queue, uid=uid, attempt=number, epoch=epoch)


@given(ATTEMPT, ATTEMPT)
def test_no_two_attempts_have_one_key(one: tuple, other: tuple) -> None:  # type: ignore[type-arg]
    assert (key(one) == key(other)) == (one == other)


@given(ATTEMPT, NAME, NAME)
def test_only_the_keys_of_a_queue_begin_with_its_prefix(
    attempt: tuple,  # type: ignore[type-arg]
    namespace: str,
    queue: str,
) -> None:
    assert key(attempt).startswith(queue_prefix(*attempt[:2]))
    assume((namespace, queue) != attempt[:2])
    assert not key(attempt).startswith(queue_prefix(namespace, queue))


@given(st.binary(max_size=50), st.binary(max_size=50))
def test_other_bytes_than_those_written_are_noticed(written: bytes, found: bytes) -> None:
    reference = reference_to("k", StoredResult(written, "text/plain"))
    if found == written:
        check_result(reference, StoredResult(found, "text/plain"))
    else:
        with pytest.raises(ResultDamagedError, match="somebody else"):
            check_result(reference, StoredResult(found, "text/plain"))
