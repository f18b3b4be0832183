"""A link goes on trying, whatever happens to it."""

import asyncio
from contextlib import suppress
from random import Random
from typing import Any

import pytest

from taskqueue.broker.connection import BrokerParameters, BrokerUnavailable
from taskqueue.engine import broker_link
from taskqueue.engine.broker_link import BrokerLink, Down, Markers

pytestmark = pytest.mark.looptime

PARAMETERS = BrokerParameters(host="rabbit", port=5672, username="u", password="p")


async def test_an_error_nobody_thought_of_is_told_and_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    failures = [ZeroDivisionError("odd"), BrokerUnavailable("refused")]

    async def connect(*_: Any, **__: Any) -> Any:
        raise failures.pop(0) if len(failures) > 1 else failures[0]

    monkeypatch.setattr(broker_link, "connect", connect)
    synced = asyncio.Event()
    synced.set()
    link = BrokerLink(PARAMETERS, feed_synced=synced, markers=Markers(), random=Random(0))
    reasons: list[str] = []

    def note() -> None:
        assert isinstance(link.state, Down)
        reasons.append(link.state.reason)

    link.subscribe(note)
    task = asyncio.create_task(link.run())
    await asyncio.sleep(30)
    assert reasons == ["Failed", "BrokerUnavailable"]
    assert not task.done()
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
