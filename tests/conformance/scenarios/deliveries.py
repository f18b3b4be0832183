"""Point 2: deliveries are counted, and a finished attempt is answered, not run."""

from __future__ import annotations

from taskqueue.contract.outcome import EventKind
from tests.conformance.points import expect
from tests.conformance.scenario import Scenario


async def killed_until_the_limit(scenario: Scenario) -> None:
    trace = scenario.trace()
    older = {"max_deliveries": 2, "checkpointed": None}  # an operator that does not count
    token = await scenario.publish("sleep", trace, payload={"seconds": 60}, **older)
    for number in (1, 2):
        worker = await scenario.start(slots=1)
        async with scenario.check(f"kill -9: the message is delivered and runs, time {number}"):
            await trace.until(begun=number)
        await worker.kill()
    await scenario.start(slots=1)
    async with scenario.check("at tq-max-deliveries WorkerLost is reported, and it is not run"):
        await scenario.ends_with(token, EventKind.FAILED, "WorkerLost")
        expect(len(trace.begun) == 2, f"it ran {len(trace.begun)} times")
        await scenario.wait_settled()


async def given_back(scenario: Scenario) -> None:
    trace = scenario.trace()
    token = await scenario.publish("sleep", trace, payload={"seconds": 60}, max_deliveries=1)
    worker = await scenario.start(slots=1)
    await trace.until(begun=1)
    await worker.kill()
    await scenario.broker_env.wait_for_ready(scenario.queue, 1)
    await scenario.ready(slots=1)
    async with scenario.check("what another worker had is given back, and not run"):
        event = await scenario.ends_with(token, EventKind.RELEASED)
        expect(event.deliveries == 1, f"deliveries is {event.deliveries}")
        await scenario.wait_settled()
        expect(len(trace.begun) == 1, f"it ran {len(trace.begun)} times")
    async with scenario.check("published again it runs, though its token was given back"):
        await scenario.publish("sleep", trace, payload={"seconds": 0}, token=token)
        ends = [await scenario.end(token, number=2)]
        expect(ends[0].kind is EventKind.SUCCEEDED, f"the outcome is {ends[0].kind.value}")


async def counted_and_remembered(scenario: Scenario) -> None:
    await scenario.ready()
    async with scenario.check("a publisher's own x-delivery-count is ignored"):
        token = await scenario.publish("echo", headers={"x-delivery-count": 9})
        await scenario.ends_with(token, EventKind.SUCCEEDED)

    async with scenario.check(
        "a failed attempt is reported, then acknowledged, and not retried here"
    ):
        trace = scenario.trace("failing")
        token = await scenario.publish("fail", trace)
        event = await scenario.ends_with(token, EventKind.FAILED)
        expect(event.error and event.error.retryable, "it is reported as not retryable")
        await scenario.wait_settled()
        expect(len(trace.begun) == 1, f"it ran {len(trace.begun)} times")
        expect(set(scenario.proxy.settled) == {"ack"}, f"settled by {set(scenario.proxy.settled)}")

    async with scenario.check("a failure for good is reported as not retryable"):
        event = await scenario.ends_with(await scenario.publish("fail-for-good"), EventKind.FAILED)
        expect(event.error and not event.error.retryable, "it is reported as retryable")

    async with scenario.check("a snooze is reported with its seconds, then acknowledged"):
        trace = scenario.trace("snooze")
        token = await scenario.publish("snooze", trace, payload={"seconds": 90})
        event = await scenario.ends_with(token, EventKind.SNOOZED)
        expect(event.seconds == 90, f"seconds is {event.seconds}")
        await scenario.wait_settled()
    async with scenario.check("its token that comes again is answered likewise, without a run"):
        await scenario.publish("snooze", trace, payload={"seconds": 90}, token=token)
        event = await scenario.end(token, number=2)
        expect(event.kind is EventKind.SNOOZED, f"the outcome is {event.kind.value}")
        expect(len(trace.begun) == 1, f"it ran {len(trace.begun)} times")
        await scenario.wait_settled()

    async with scenario.check("an unknown handler is reported as UnknownHandler"):
        token = await scenario.publish("no-such-handler")
        await scenario.ends_with(token, EventKind.FAILED, "UnknownHandler")

    async with scenario.check("a token that comes again gets the same outcome, without a run"):
        trace = scenario.trace("again")
        token = await scenario.publish("echo", trace, payload={"word": "first"})
        first = await scenario.ends_with(token, EventKind.SUCCEEDED)
        await scenario.wait_settled()
        await scenario.publish("echo", trace, payload={"word": "second"}, token=token)
        second = await scenario.end(token, number=2)
        expect(len(trace.begun) == 1, f"it ran {len(trace.begun)} times")
        same = (second.kind, second.result) == (first.kind, first.result)
        expect(same, f"first {first.result}, then {second.kind.value} {second.result}")
        await scenario.wait_settled()
