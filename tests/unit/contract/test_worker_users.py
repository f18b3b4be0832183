"""The broker users of workers: names that say whose they are, and permissions of the contract."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from taskqueue.contract.names import (
    CONTROL_STREAM,
    DEAD_EXCHANGE,
    DIRECT_EXCHANGE,
    EVENTS_EXCHANGE,
    HEARTBEATS_EXCHANGE,
    OUTCOMES_EXCHANGE,
    WORK_EXCHANGE,
    dead_queue,
    inbox_queue,
    work_queue,
)
from taskqueue.contract.worker_users import (
    owner_of_user,
    permissions,
    topic_permissions,
    user_prefix,
    worker_users,
)

LABELS = st.from_regex(r"[a-z0-9]([-a-z0-9]{0,10}[a-z0-9])?", fullmatch=True)


def test_permissions_are_those_of_the_contract() -> None:
    assert permissions("shop", "images") == {
        "configure": "^$",
        "write": r"^taskqueue\.(outcomes|dead|heartbeats)$",
        "read": r"^taskqueue\.(shop\.images|control)$",
    }
    assert topic_permissions("shop", "images") == {
        OUTCOMES_EXCHANGE: r"^shop\.images\.",
        HEARTBEATS_EXCHANGE: r"^shop\.images\.",
        DEAD_EXCHANGE: r"^shop\.images$",
    }


@given(own=st.tuples(LABELS, LABELS), other=st.tuples(LABELS, LABELS))
def test_no_worker_reads_or_reports_for_another_queue(
    own: tuple[str, str], other: tuple[str, str]
) -> None:
    held, topics = permissions(*own), topic_permissions(*own)
    assert re.search(held["read"], work_queue(*own))
    assert re.search(held["read"], CONTROL_STREAM)
    for name in (OUTCOMES_EXCHANGE, DEAD_EXCHANGE, HEARTBEATS_EXCHANGE):
        assert re.search(held["write"], name)
    refused = [WORK_EXCHANGE, DIRECT_EXCHANGE, EVENTS_EXCHANGE, "amq.default", inbox_queue("a")]
    for name in [*refused, dead_queue(*own), dead_queue(*other)]:
        assert not any(re.search(pattern, name) for pattern in held.values())
    if own != other:
        assert not re.search(held["read"], work_queue(*other))
        assert not re.search(topics[OUTCOMES_EXCHANGE], f"{other[0]}.{other[1]}.task.succeeded")
        assert not re.search(topics[DEAD_EXCHANGE], f"{other[0]}.{other[1]}")


@given(
    owner=st.tuples(LABELS, LABELS),
    installations=st.tuples(LABELS, LABELS),
    hosts=st.tuples(st.text(max_size=20), st.text(max_size=20)),
)
def test_a_name_says_whose_user_it_is(
    owner: tuple[str, str], installations: tuple[str, str], hosts: tuple[str, str]
) -> None:
    names = worker_users(installations[0], hosts[0], *owner)
    assert len(set(names)) == 2
    for name in names:
        assert len(name.encode()) <= 255
        assert owner_of_user(name, user_prefix(installations[0], hosts[0])) == owner
        if (installations[0], hosts[0]) != (installations[1], hosts[1]):
            assert owner_of_user(name, user_prefix(installations[1], hosts[1])) is None


def test_names_that_no_operator_gave_have_no_owner() -> None:
    prefix = user_prefix("default", "/")
    for name in ("", prefix, f"{prefix}shop.images", f"{prefix}shop.images.c", f"{prefix}a.b.a.a"):
        assert owner_of_user(name, prefix) is None
