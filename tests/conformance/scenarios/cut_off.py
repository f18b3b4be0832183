"""Point 7: two attempts of one key never run at once, whatever the network does."""

from __future__ import annotations

import asyncio

from taskqueue.contract.outcome import EventKind
from tests.conformance.broker_env import LOOK_SECONDS
from tests.conformance.points import expect
from tests.conformance.scenario import Scene, Trace, is_alive

#: From the last sign of the broker until it delivers again, and some time to see it.
_SILENCE_SECONDS = 20.0


async def a_cut_connection(scene: Scene) -> None:
    await scene.ready(slots=2)
    keyed, plain = scene.trace("keyed"), scene.trace("plain")
    first = await scene.publish("sleep", keyed, payload={"seconds": 3}, fence=7)
    second = await scene.publish("sleep", plain, payload={"seconds": 3})
    await keyed.until(begun=1)
    await plain.until(begun=1)
    scene.tap.cut()
    async with scene.check("a keyed run ends when the connection is lost, and runs again"):
        await keyed.until(begun=2)
        await scene.ends_with(first, EventKind.SUCCEEDED)
        expect(keyed.most_at_once == 1, "it ran twice at once")
    async with scene.check("nothing is told of the run that was cut off"):
        await scene.empty()
        told = [one.event.kind.value for one in scene.house.inbox.told(first)]
        expect(len([word for word in told if word != "task.started"]) == 1, f"told: {told}")
    async with scene.check("what has no key runs on, and is told"):
        await scene.ends_with(second, EventKind.SUCCEEDED)
        expect(len(plain.begun) == 1, f"it ran {len(plain.begun)} times")


async def a_silent_broker(scene: Scene) -> None:
    await scene.ready(slots=1)
    trace = scene.trace()
    await scene.publish("sleep", trace, payload={"seconds": 60}, fence=7)
    await trace.until(begun=1)
    scene.tap.freeze()
    async with scene.check(
        "keyed work ends before a silent broker can deliver it again", seconds=_SILENCE_SECONDS
    ):
        await trace.until(ended=1)
        expect(await scene.house.ready(scene.queue) == 0, "the broker had given it up already")


async def a_deaf_execution(scene: Scene) -> None:
    await scene.ready(slots=1)
    trace = scene.trace()
    await scene.publish("deaf", trace, payload={"seconds": 60}, fence=7)
    await trace.until(begun=1)
    scene.tap.freeze()
    async with scene.check(
        "silence: a keyed execution that does not end is ended with its process",
        seconds=_SILENCE_SECONDS,
    ):
        await _dead(trace)
        expect(await scene.house.ready(scene.queue) == 0, "the broker had given it up already")


async def a_deaf_execution_times_out(scene: Scene) -> None:
    worker = await scene.ready(slots=1)
    trace = scene.trace()
    payload = {"seconds": 60}
    token = await scene.publish("deaf", trace, payload=payload, fence=7, timeout_seconds=1)
    await trace.until(begun=1)
    async with scene.check("time-out: likewise, and it is told only then"):
        while is_alive(trace.begun[0]):
            told = [one.event.kind.value for one in scene.house.inbox.told(token)]
            expect(set(told) <= {"task.started"}, f"while it runs, {told} is told")
            await asyncio.sleep(LOOK_SECONDS)
        if not worker.gone and trace.begun[0] != worker.process.pid:
            await scene.ends_with(token, EventKind.FAILED, "Timeout")


async def _dead(trace: Trace) -> None:
    while is_alive(trace.begun[0]):  # noqa: ASYNC110 - nothing tells of another's process
        await asyncio.sleep(LOOK_SECONDS)
