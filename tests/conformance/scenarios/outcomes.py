"""Point 5: the broker confirms the outcome before the message is acknowledged."""

from __future__ import annotations

from pika.spec import Basic, Confirm

from taskqueue.contract.names import OUTCOMES_EXCHANGE
from taskqueue.contract.outcome import EventKind
from tests.conformance.points import expect
from tests.conformance.scenario import Scenario


async def held_confirms(scenario: Scenario) -> None:
    await scenario.ready(slots=2)
    scenario.proxy.hold_confirms()
    async with scenario.check("nothing is acknowledged while its outcome is not confirmed"):
        # When the second is reported, the worker has long finished with the first.
        await scenario.end(await scenario.publish("echo"))
        await scenario.end(await scenario.publish("echo"))
        expect(not scenario.proxy.settled, f"settled without a confirm: {scenario.proxy.settled}")
    scenario.proxy.release_confirms()
    async with scenario.check("once it is confirmed, it is"):
        await scenario.proxy.until(lambda: len(scenario.proxy.settled) == 2)
        expect(set(scenario.proxy.settled) == {"ack"}, f"settled by {set(scenario.proxy.settled)}")
        await scenario.wait_settled()
    async with scenario.check("outcomes are published mandatory, in confirm mode"):
        published = [
            one for one in scenario.proxy.sent(Basic.Publish) if one.exchange == OUTCOMES_EXCHANGE
        ]
        expect(all(one.mandatory for one in published), "basic.publish is not mandatory")
        expect(
            scenario.proxy.publishing.sent_methods(Confirm.Select), "there was no confirm.select"
        )
    async with scenario.check("the result is reported"):
        token = await scenario.publish("echo", payload={"word": "héllo", "list": [1, None]})
        event = await scenario.ends_with(token, EventKind.SUCCEEDED)
        expect(event.result == {"word": "héllo", "list": [1, None]}, f"it is {event.result}")


async def killed_between(scenario: Scenario) -> None:
    worker = await scenario.ready(slots=1)
    scenario.proxy.hold_confirms()
    token = await scenario.publish("echo")
    async with scenario.check("killed between outcome and confirm: the message is delivered again"):
        await scenario.end(token)
        await worker.kill()
        await scenario.broker_env.wait_for_ready(scenario.queue, 1)
    scenario.proxy.release_confirms()
    await scenario.ready(slots=1)
    async with scenario.check("and ends"):
        await scenario.end(token, number=2)
        await scenario.wait_settled()


async def refused_and_lost(scenario: Scenario) -> None:
    await scenario.ready(slots=1)
    async with scenario.check("an outcome that the broker refuses is published again"):
        scenario.proxy.refuse_next()
        token = await scenario.publish("echo")
        await scenario.end(token, number=2)
        await scenario.wait_settled()
    async with scenario.check("an outcome whose confirm is lost with the connection likewise"):
        scenario.proxy.hold_confirms()
        token = await scenario.publish("echo")
        await scenario.end(token)
        scenario.proxy.cut(scenario.proxy.publishing)
        scenario.proxy.release_confirms()
        await scenario.end(token, number=2)
        await scenario.wait_settled()


async def returned(scenario: Scenario) -> None:
    await scenario.ready(slots=1)
    async with scenario.check("a returned outcome is published again until it is routed"):
        await scenario.broker_env.unbind_inbox(scenario.name)
        token = await scenario.publish("echo")
        await scenario.proxy.until(lambda: scenario.proxy.returned >= 2)
        expect(not scenario.proxy.settled, f"settled without a confirm: {scenario.proxy.settled}")
        await scenario.broker_env.bind_inbox(scenario.name)
        await scenario.ends_with(token, EventKind.SUCCEEDED)
        await scenario.wait_settled()
