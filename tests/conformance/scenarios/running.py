"""Point 4: an attempt runs apart from what serves the connections."""

from __future__ import annotations

import asyncio

from taskqueue.contract.outcome import EventKind
from tests.conformance.points import expect
from tests.conformance.scenario import Scenario

#: An attempt that runs longer reports task.started; a little less, for the measurement.
_STARTED_SECONDS = 0.45


async def busy(scenario: Scenario) -> None:
    """One slot burns the CPU; everything else goes on."""
    await scenario.ready()
    burning, sleeping = scenario.trace("burn"), scenario.trace("sleep")
    burn = await scenario.publish("burn", burning, payload={"seconds": 9})
    await burning.until(begun=1)
    sleep = await scenario.publish("sleep", sleeping, payload={"seconds": 60}, timeout_seconds=1)
    async with scenario.check("a handler that keeps the CPU does not delay a time-out"):
        await scenario.ends_with(sleep, EventKind.FAILED, "Timeout")
        expect(not burning.ended, "the time-out was reported only when the other handler had ended")
        await scenario.proxy.until(lambda: scenario.proxy.unsettled == 1)
    async with scenario.check("nor the heartbeats of either connection"):
        # There is nothing else to send now; anything sent would do as a heartbeat.
        before = {link: link.frames for link in scenario.proxy.open_links}
        await scenario.proxy.until(lambda: all(link.frames > sent for link, sent in before.items()))
        expect(not burning.ended, "nothing was sent until the handler had ended")
        expect(not any(link.closed for link in before), "a connection was lost")
    async with scenario.check("and it ends as it should", seconds=60):
        await scenario.ends_with(burn, EventKind.SUCCEEDED)
        await scenario.wait_settled()


async def deaf_and_reported(scenario: Scenario) -> None:
    await scenario.ready()
    trace = scenario.trace()
    async with scenario.check("Timeout is reported on time for a handler that ignores it"):
        payload = {"seconds": 6}
        token = await scenario.publish("deaf", trace, payload=payload, timeout_seconds=1)
        event = await scenario.ends_with(token, EventKind.FAILED, "Timeout")
        expect(not trace.ended, "it was reported only when the handler had ended")
        expect(event.error and event.error.retryable, "it is reported as not retryable")
        await scenario.proxy.until(lambda: not scenario.proxy.unsettled)
    async with scenario.check(
        "an attempt that runs longer than 0.5 s reports task.started, others do not"
    ):
        short = await scenario.publish("echo")
        long = await scenario.publish("sleep", payload={"seconds": 1})
        quick, _ = await asyncio.gather(scenario.end(short), scenario.end(long))
        expect(
            scenario.broker_env.inbox.events(long, EventKind.STARTED),
            "task.started is missing for the long one",
        )
        started = bool(scenario.broker_env.inbox.events(short, EventKind.STARTED))
        seconds = quick.seconds or 0.0
        expect(
            not started or seconds >= _STARTED_SECONDS,
            f"one of {seconds:g} s reported task.started",
        )
