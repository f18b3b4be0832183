"""Point 5: the outcome is with the broker before the message is acknowledged."""

from __future__ import annotations

from pika.spec import Basic, Confirm

from taskqueue.contract.names import OUTCOMES_EXCHANGE
from taskqueue.contract.outcome import EventKind
from tests.conformance.points import expect
from tests.conformance.scenario import Scene


async def held_confirms(scene: Scene) -> None:
    await scene.ready(slots=2)
    scene.tap.hold_confirms()
    async with scene.check("nothing is acknowledged while its outcome is not confirmed"):
        # When the second is told, the worker has long gone on from telling the first.
        await scene.end(await scene.publish("echo"))
        await scene.end(await scene.publish("echo"))
        expect(not scene.tap.settled, f"settled without a confirm: {scene.tap.settled}")
    scene.tap.release_confirms()
    async with scene.check("once it is confirmed, it is"):
        await scene.tap.until(lambda: len(scene.tap.settled) == 2)
        expect(set(scene.tap.settled) == {"ack"}, f"settled by {set(scene.tap.settled)}")
        await scene.empty()
    async with scene.check("outcomes are published mandatory, in confirm mode"):
        published = [
            one for one in scene.tap.sent(Basic.Publish) if one.exchange == OUTCOMES_EXCHANGE
        ]
        expect(all(one.mandatory for one in published), "basic.publish is not mandatory")
        expect(scene.tap.publishing.sent_methods(Confirm.Select), "there was no confirm.select")
    async with scene.check("the result is told"):
        token = await scene.publish("echo", payload={"word": "héllo", "list": [1, None]})
        event = await scene.ends_with(token, EventKind.SUCCEEDED)
        expect(event.result == {"word": "héllo", "list": [1, None]}, f"it is {event.result}")


async def killed_between(scene: Scene) -> None:
    worker = await scene.ready(slots=1)
    scene.tap.hold_confirms()
    token = await scene.publish("echo")
    async with scene.check("killed between outcome and confirm: the message is delivered again"):
        await scene.end(token)
        await worker.kill()
        await scene.house.until_ready(scene.queue, 1)
    scene.tap.release_confirms()
    await scene.ready(slots=1)
    async with scene.check("and ends"):
        await scene.end(token, number=2)
        await scene.empty()


async def refused_and_lost(scene: Scene) -> None:
    await scene.ready(slots=1)
    async with scene.check("an outcome that the broker refuses is published again"):
        scene.tap.refuse_next()
        token = await scene.publish("echo")
        await scene.end(token, number=2)
        await scene.empty()
    async with scene.check("an outcome whose confirm is lost with the connection likewise"):
        scene.tap.hold_confirms()
        token = await scene.publish("echo")
        await scene.end(token)
        scene.tap.cut(scene.tap.publishing)
        scene.tap.release_confirms()
        await scene.end(token, number=2)
        await scene.empty()


async def returned(scene: Scene) -> None:
    await scene.ready(slots=1)
    async with scene.check("an outcome that comes back is published again until it is taken"):
        await scene.house.hide_inbox()
        token = await scene.publish("echo")
        await scene.tap.until(lambda: scene.tap.returned >= 2)
        expect(not scene.tap.settled, f"settled without a confirm: {scene.tap.settled}")
        await scene.house.show_inbox()
        await scene.ends_with(token, EventKind.SUCCEEDED)
        await scene.empty()
