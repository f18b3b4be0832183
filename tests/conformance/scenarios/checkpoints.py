"""Point C: what a handler saves reaches the operator, and comes back to the next start."""

from __future__ import annotations

from taskqueue.contract.outcome import EventKind
from tests.conformance.points import expect
from tests.conformance.scenario import Scenario


async def saved_and_given_back(scenario: Scenario) -> None:
    worker = await scenario.ready(slots=1)
    inbox = scenario.broker_env.inbox
    async with scenario.check("checkpoints are reported in order, the last one before the end"):
        token = await scenario.publish("steps", payload={"steps": 3, "seconds": 0.2})
        event = await scenario.ends_with(token, EventKind.SUCCEEDED)
        expect(event.result == {"first": 1}, f"it began with {event.result}")
        saved = [one.event.checkpoint or {} for one in inbox.events(token, EventKind.CHECKPOINT)]
        steps = [int(one.get("step", 0)) for one in saved]  # the next may take the place of one
        expect(steps[-1:] == [3] and steps == sorted(set(steps)), f"reported are {saved}")
        kinds = [one.event.kind for one in inbox.events(token)]
        expect(kinds[-1] is EventKind.SUCCEEDED, f"the order is {kinds}")
    async with scenario.check("a message brings the last checkpoint to the handler"):
        checkpoint = {"checkpoint": b'{"step":2}', "checkpointed": True}
        token = await scenario.publish("steps", payload={"steps": 3}, **checkpoint)
        event = await scenario.ends_with(token, EventKind.SUCCEEDED)
        expect(event.result == {"first": 3}, f"it began with {event.result}")
    async with scenario.check("of an operator that keeps none, nothing is reported"):
        token = await scenario.publish("steps", payload={"steps": 2}, checkpointed=None)
        await scenario.ends_with(token, EventKind.SUCCEEDED)
        expect(not inbox.events(token, EventKind.CHECKPOINT), "checkpoints are reported")
    await scenario.wait_settled()
    # Without a key it would be given back at once.
    unknown = await scenario.publish("steps", payload={"steps": 1, "seconds": 60}, fence=7)
    async with scenario.check("kill -9: the message is delivered again"):
        await inbox.event(unknown, EventKind.STARTED)
        await worker.kill()
        await scenario.broker_env.wait_for_ready(scenario.queue, 1)
    worker = await scenario.ready(slots=1)
    async with scenario.check("a handler that asks for its checkpoint then is given back"):
        event = await scenario.ends_with(unknown, EventKind.RELEASED)
        expect(event.deliveries == 1, f"deliveries is {event.deliveries}")
        await scenario.wait_settled()
    trace = scenario.trace("known")
    known = await scenario.publish(
        "sleep", trace, payload={"seconds": 60}, checkpointed=True, checkpoint=b'{"step":2}'
    )
    async with scenario.check("with tq-checkpointed it is given back at once, without a run"):
        await trace.until(begun=1)
        await worker.kill()
        await scenario.broker_env.wait_for_ready(scenario.queue, 1)
        await scenario.ready(slots=1)
        event = await scenario.ends_with(known, EventKind.RELEASED)
        expect(event.deliveries == 1, f"deliveries is {event.deliveries}")
        expect(len(trace.begun) == 1, f"it ran {len(trace.begun)} times")
        await scenario.wait_settled()
