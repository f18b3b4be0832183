"""Point 1: manual acknowledgements, and no more unsettled messages than can run."""

from __future__ import annotations

import asyncio

from pika.spec import Basic

from taskqueue.contract.outcome import EventKind
from tests.conformance.points import expect
from tests.conformance.scenario import Scenario

_SLOTS = 2


async def long_runs(scenario: Scenario) -> None:
    await scenario.ready(slots=_SLOTS)
    trace = scenario.trace()
    tokens = [await scenario.publish("sleep", trace, payload={"seconds": 0.6}) for _ in range(6)]
    async with scenario.check("all messages end"):
        for token in tokens:
            await scenario.ends_with(token, EventKind.SUCCEEDED)
        await scenario.wait_settled()
    async with scenario.check("as many run at once as there are slots"):
        most = trace.most_at_once
        expect(most == _SLOTS, f"with {_SLOTS} slots, {most} ran at once")
    async with scenario.check("it holds no more unacknowledged than it has slots"):
        most = scenario.proxy.most_unsettled
        expect(most <= _SLOTS, f"with {_SLOTS} slots, it had {most} unsettled")
    async with scenario.check("it consumes with acknowledgements"):
        consumes = [
            one for one in scenario.proxy.sent(Basic.Consume) if one.queue == scenario.queue
        ]
        expect(consumes, "it does not consume")
        expect(not any(one.no_ack for one in consumes), "basic.consume says no-ack")
    async with scenario.check("it sets a prefetch for each consumer, not for the channel"):
        qos = scenario.proxy.sent(Basic.Qos)
        expect(any(one.prefetch_count == _SLOTS for one in qos), f"basic.qos never says {_SLOTS}")
        expect(not any(one.global_qos for one in qos), "basic.qos says global")


async def long_after_short(scenario: Scenario) -> None:
    await scenario.ready(slots=_SLOTS)
    for token in [await scenario.publish("echo") for _ in range(120)]:
        await scenario.end(token)
    trace = scenario.trace()
    # One by one: some are on their way when the worker learns that they are long.
    tokens = [await scenario.publish("sleep", trace, payload={"seconds": 60}) for _ in range(8)]
    inbox = scenario.broker_env.inbox
    async with scenario.check("after short runs it leaves long ones to others", seconds=60):
        await trace.until(begun=_SLOTS)
        # By now the worker knows that they are long; it may have requeued some instead.
        await inbox.until(
            lambda: sum(bool(inbox.events(token, EventKind.STARTED)) for token in tokens) >= _SLOTS
        )
        await scenario.proxy.until(lambda: scenario.proxy.unsettled <= _SLOTS)
        begun = len(trace.begun)
        expect(begun == _SLOTS, f"with {_SLOTS} slots, {begun} run")
    async with scenario.check("and it takes no more while they run"):
        await asyncio.sleep(1)  # the worker may be cancelling its consumers just now
        late = await scenario.publish("echo")
        await asyncio.sleep(1)
        expect(not inbox.events(late), "it took a message without a free slot and released it")
