"""Point 1: acknowledged by hand, and no more in hand than can run."""

from __future__ import annotations

from pika.spec import Basic

from taskqueue.contract.outcome import EventKind
from tests.conformance.points import expect
from tests.conformance.scenario import Scene

_SLOTS = 2


async def long_runs(scene: Scene) -> None:
    await scene.ready(slots=_SLOTS)
    trace = scene.trace()
    tokens = [await scene.publish("sleep", trace, payload={"seconds": 0.6}) for _ in range(6)]
    async with scene.check("all messages end"):
        for token in tokens:
            await scene.ends_with(token, EventKind.SUCCEEDED)
        await scene.empty()
    async with scene.check("as many run at once as there are slots"):
        most = trace.most_at_once
        expect(most == _SLOTS, f"with {_SLOTS} slots, {most} ran at once")
    async with scene.check("it holds no more unacknowledged than it has slots"):
        most = scene.tap.most_in_hand
        expect(most <= _SLOTS, f"with {_SLOTS} slots, it had {most} in hand")
    async with scene.check("it consumes with acknowledgements"):
        consumes = [one for one in scene.tap.sent(Basic.Consume) if one.queue == scene.queue]
        expect(consumes, "it does not consume")
        expect(not any(one.no_ack for one in consumes), "basic.consume says no-ack")
    async with scene.check("it sets a prefetch for each consumer, not for the channel"):
        qos = scene.tap.sent(Basic.Qos)
        expect(any(one.prefetch_count == _SLOTS for one in qos), f"basic.qos never says {_SLOTS}")
        expect(not any(one.global_qos for one in qos), "basic.qos says global")


async def long_after_short(scene: Scene) -> None:
    await scene.ready(slots=_SLOTS)
    for token in [await scene.publish("echo") for _ in range(120)]:
        await scene.end(token)
    trace = scene.trace()
    # One by one: some are on their way when the worker learns that they are long.
    tokens = [await scene.publish("sleep", trace, payload={"seconds": 60}) for _ in range(8)]
    async with scene.check("after short runs it leaves long ones to others"):
        await trace.until(begun=_SLOTS)
        # Known for long ones by now; some may have been given back instead.
        inbox = scene.house.inbox
        await inbox.until(
            lambda: sum(bool(inbox.told(token, EventKind.STARTED)) for token in tokens) >= _SLOTS
        )
        await scene.tap.until(lambda: scene.tap.in_hand <= _SLOTS)
        begun = len(trace.begun)
        expect(begun == _SLOTS, f"with {_SLOTS} slots, {begun} run")
