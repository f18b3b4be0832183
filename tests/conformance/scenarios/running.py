"""Point 4: an attempt runs apart from what serves the connections."""

from __future__ import annotations

import asyncio

from taskqueue.contract.outcome import EventKind
from tests.conformance.points import expect
from tests.conformance.scenario import Scene

#: An attempt that runs on after this is told task.started; a little less, for the measuring.
_STARTED_SECONDS = 0.45


async def busy(scene: Scene) -> None:
    """One slot burns the CPU; whatever else there is to do goes on."""
    await scene.ready()
    burning, sleeping = scene.trace("burn"), scene.trace("sleep")
    burn = await scene.publish("burn", burning, payload={"seconds": 9})
    await burning.until(begun=1)
    sleep = await scene.publish("sleep", sleeping, payload={"seconds": 60}, timeout_seconds=1)
    async with scene.check("a handler that keeps the CPU does not hold a time-out up"):
        await scene.ends_with(sleep, EventKind.FAILED, "Timeout")
        expect(not burning.ended, "the time-out was told only when the other handler had ended")
        await scene.tap.until(lambda: scene.tap.in_hand == 1)
    async with scene.check("nor the heartbeats of either connection"):
        # There is nothing else to send now, or it does for a heartbeat.
        before = {link: link.frames for link in scene.tap.living}
        await scene.tap.until(lambda: all(link.frames > sent for link, sent in before.items()))
        expect(not burning.ended, "nothing was sent until the handler had ended")
        expect(not any(link.closed for link in before), "a connection was lost")
    async with scene.check("and it ends as it should"):
        await scene.ends_with(burn, EventKind.SUCCEEDED)
        await scene.empty()


async def deaf_and_told(scene: Scene) -> None:
    await scene.ready()
    trace = scene.trace()
    async with scene.check("a handler that does not listen is told Timeout in time"):
        payload = {"seconds": 6}
        token = await scene.publish("deaf", trace, payload=payload, timeout_seconds=1)
        event = await scene.ends_with(token, EventKind.FAILED, "Timeout")
        expect(not trace.ended, "it was told only when the handler had ended")
        expect(event.error and event.error.retryable, "it is told as not retryable")
        await scene.tap.until(lambda: not scene.tap.in_hand)
    async with scene.check("an attempt that runs on after 0.5 s is told task.started, others not"):
        short = await scene.publish("echo")
        long = await scene.publish("sleep", payload={"seconds": 1})
        quick, _ = await asyncio.gather(scene.end(short), scene.end(long))
        expect(scene.house.inbox.told(long, EventKind.STARTED), "the long one was not told")
        told = bool(scene.house.inbox.told(short, EventKind.STARTED))
        seconds = quick.seconds or 0.0
        expect(not told or seconds >= _STARTED_SECONDS, f"one of {seconds:g} s was told")
