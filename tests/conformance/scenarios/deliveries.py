"""Point 2: deliveries are counted, and what has ended is answered, not run."""

from __future__ import annotations

from taskqueue.contract.outcome import EventKind
from tests.conformance.points import expect
from tests.conformance.scenario import Scene


async def killed_until_the_limit(scene: Scene) -> None:
    trace = scene.trace()
    token = await scene.publish("sleep", trace, payload={"seconds": 60}, max_deliveries=2)
    for number in (1, 2):
        worker = await scene.start(slots=1)
        async with scene.check(f"kill -9: the message is delivered and runs, time {number}"):
            await trace.until(begun=number)
        await worker.kill()
    await scene.start(slots=1)
    async with scene.check("at tq-max-deliveries it is told WorkerLost, and not run"):
        await scene.ends_with(token, EventKind.FAILED, "WorkerLost")
        expect(len(trace.begun) == 2, f"it ran {len(trace.begun)} times")
        await scene.empty()


async def counted_and_remembered(scene: Scene) -> None:
    await scene.ready()
    async with scene.check("a publisher's own x-delivery-count is not believed"):
        token = await scene.publish("echo", headers={"x-delivery-count": 9})
        await scene.ends_with(token, EventKind.SUCCEEDED)

    async with scene.check("a failed attempt is told, then acknowledged, and not tried again here"):
        trace = scene.trace("failing")
        token = await scene.publish("fail", trace)
        event = await scene.ends_with(token, EventKind.FAILED)
        expect(event.error and event.error.retryable, "it is told as not retryable")
        await scene.empty()
        expect(len(trace.begun) == 1, f"it ran {len(trace.begun)} times")
        expect(set(scene.tap.settled) == {"ack"}, f"settled by {set(scene.tap.settled)}")

    async with scene.check("a failure for good is told as not retryable"):
        event = await scene.ends_with(await scene.publish("fail-for-good"), EventKind.FAILED)
        expect(event.error and not event.error.retryable, "it is told as retryable")

    async with scene.check("an unknown handler is told as UnknownHandler"):
        token = await scene.publish("no-such-handler")
        await scene.ends_with(token, EventKind.FAILED, "UnknownHandler")

    async with scene.check("a token that comes again gets the same outcome, without a run"):
        trace = scene.trace("again")
        token = await scene.publish("echo", trace, payload={"word": "first"})
        first = await scene.ends_with(token, EventKind.SUCCEEDED)
        await scene.empty()
        await scene.publish("echo", trace, payload={"word": "second"}, token=token)
        second = await scene.end(token, number=2)
        expect(len(trace.begun) == 1, f"it ran {len(trace.begun)} times")
        same = (second.kind, second.result) == (first.kind, first.result)
        expect(same, f"first {first.result}, then {second.kind.value} {second.result}")
        await scene.empty()
