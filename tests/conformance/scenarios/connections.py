"""Point 9: one connection to consume, one to publish."""

from __future__ import annotations

from pika.spec import Connection

from tests.conformance.points import expect
from tests.conformance.scenario import Scenario

#: The contract's heartbeat interval, in seconds.
_HEARTBEAT_SECONDS = 5


async def two(scenario: Scenario) -> None:
    await scenario.ready()
    await scenario.assert_works()
    async with scenario.check("the connection that consumes does not publish"):
        both = [
            link
            for link in scenario.proxy.open_links
            if link.publishes and link.consumes(scenario.queue)
        ]
        expect(not both, "outcomes are published on the connection that consumes")
        expect(len(scenario.proxy.open_links) >= 2, f"{len(scenario.proxy.open_links)} connections")
    async with scenario.check("both ask for heartbeats every 5 s or more often"):
        asked = [one.heartbeat for one in scenario.proxy.sent(Connection.TuneOk)]
        expect(all(0 < one <= _HEARTBEAT_SECONDS for one in asked), f"asked for {asked} s")
