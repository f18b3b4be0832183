"""A queue that is out of service is not a queue that is missing."""

from __future__ import annotations

from typing import cast

import pytest

from taskqueue.amqp.channel import Channel, ChannelRefused
from taskqueue.contract.topology import ready_messages


class Refusing:
    """A channel whose broker refuses to look at a queue."""

    def __init__(self, code: int, text: str) -> None:
        self._refusal = ChannelRefused(code, text)

    async def declare_queue(self, name: str, *, passive: bool) -> int:
        assert passive
        raise self._refusal


async def ask(code: int, text: str) -> int | None:
    return await ready_messages(cast(Channel, Refusing(code, text)), "q")


async def test_a_missing_queue_is_none() -> None:
    assert await ask(404, "NOT_FOUND - no queue 'q' in vhost '/'") is None


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (404, "NOT_FOUND - queue 'q' in vhost '/' process is stopped by supervisor"),
        (404, "NOT_FOUND - home node 'mq' of durable queue 'q' in vhost '/' is down"),
        (405, "RESOURCE_LOCKED - cannot obtain exclusive access to locked queue 'q'"),
        (403, "ACCESS_REFUSED - operation not permitted"),
    ],
    ids=["stopped", "node down", "locked", "not allowed"],
)
async def test_anything_else_is_not_taken_for_missing(code: int, text: str) -> None:
    with pytest.raises(ChannelRefused) as refused:
        await ask(code, text)
    assert (refused.value.code, refused.value.text) == (code, text)
