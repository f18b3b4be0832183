"""Point 9: one connection to consume, one to publish."""

from __future__ import annotations

from pika.spec import Connection

from tests.conformance.points import expect
from tests.conformance.scenario import Scene

#: The contract's heartbeat interval, in seconds.
_HEARTBEAT_SECONDS = 5


async def two(scene: Scene) -> None:
    await scene.ready()
    await scene.works()
    async with scene.check("the connection that consumes does not publish"):
        both = [link for link in scene.tap.living if link.publishes and link.consumes(scene.queue)]
        expect(not both, "outcomes leave by the connection that work comes in by")
        expect(len(scene.tap.living) >= 2, f"{len(scene.tap.living)} connections")
    async with scene.check("both ask for heartbeats every 5 s or more often"):
        asked = [one.heartbeat for one in scene.tap.sent(Connection.TuneOk)]
        expect(all(0 < one <= _HEARTBEAT_SECONDS for one in asked), f"asked for {asked} s")
