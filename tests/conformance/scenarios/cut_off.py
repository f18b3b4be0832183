"""Point 7: two attempts of one key never run at once, whatever the network does."""

from __future__ import annotations

import asyncio

from taskqueue.contract.outcome import EventKind
from tests.conformance.broker_env import POLL_SECONDS
from tests.conformance.points import expect
from tests.conformance.scenario import Scenario, Trace, is_alive

#: From the broker's last frame until it delivers again, and some time to observe that.
_SILENCE_SECONDS = 20.0


async def a_cut_connection(scenario: Scenario) -> None:
    await scenario.ready(slots=2)
    keyed, plain = scenario.trace("keyed"), scenario.trace("plain")
    first = await scenario.publish("sleep", keyed, payload={"seconds": 3}, fence=7)
    second = await scenario.publish("sleep", plain, payload={"seconds": 3})
    await keyed.until(begun=1)
    await plain.until(begun=1)
    scenario.proxy.cut()
    async with scenario.check("a keyed run ends when the connection is lost, and runs again"):
        await keyed.until(begun=2)
        await scenario.ends_with(first, EventKind.SUCCEEDED)
        expect(keyed.most_at_once == 1, "it ran twice at once")
    async with scenario.check("no outcome is reported for the run that was cut off"):
        await scenario.wait_settled()
        reported = [one.event.kind.value for one in scenario.broker_env.inbox.events(first)]
        expect(
            len([word for word in reported if word != "task.started"]) == 1, f"reported: {reported}"
        )
    async with scenario.check("what has no key runs on, and is reported"):
        await scenario.ends_with(second, EventKind.SUCCEEDED)
        expect(len(plain.begun) == 1, f"it ran {len(plain.begun)} times")


async def a_silent_broker(scenario: Scenario) -> None:
    await scenario.ready(slots=1)
    trace = scenario.trace()
    await scenario.publish("sleep", trace, payload={"seconds": 60}, fence=7)
    await trace.until(begun=1)
    scenario.proxy.freeze()
    async with scenario.check(
        "keyed work ends before a silent broker can deliver it again", seconds=_SILENCE_SECONDS
    ):
        await trace.until(ended=1)
        expect(
            await scenario.broker_env.ready(scenario.queue) == 0,
            "the broker had already requeued it",
        )


async def a_deaf_execution(scenario: Scenario) -> None:
    await scenario.ready(slots=1)
    trace = scenario.trace()
    await scenario.publish("deaf", trace, payload={"seconds": 60}, fence=7)
    await trace.until(begun=1)
    scenario.proxy.freeze()
    async with scenario.check(
        "silence: a keyed execution that does not end is ended with its process",
        seconds=_SILENCE_SECONDS,
    ):
        await _dead(trace)
        expect(
            await scenario.broker_env.ready(scenario.queue) == 0,
            "the broker had already requeued it",
        )


async def a_deaf_execution_times_out(scenario: Scenario) -> None:
    worker = await scenario.ready(slots=1)
    trace = scenario.trace()
    payload = {"seconds": 60}
    token = await scenario.publish("deaf", trace, payload=payload, fence=7, timeout_seconds=1)
    await trace.until(begun=1)
    async with scenario.check("time-out: likewise, and it is reported only then"):
        while is_alive(trace.begun[0]):
            reported = [one.event.kind.value for one in scenario.broker_env.inbox.events(token)]
            expect(set(reported) <= {"task.started"}, f"while it runs, {reported} is reported")
            await asyncio.sleep(POLL_SECONDS)
        if not worker.has_exited and trace.begun[0] != worker.process.pid:
            await scenario.ends_with(token, EventKind.FAILED, "Timeout")


async def _dead(trace: Trace) -> None:
    while is_alive(trace.begun[0]):  # noqa: ASYNC110 - another's process: no event to wait for
        await asyncio.sleep(POLL_SECONDS)
