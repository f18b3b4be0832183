"""Messages that are no attempt of a Task: anybody's, and broken ones."""

from __future__ import annotations

from typing import Any

from taskqueue.contract.outcome import EventKind
from tests.conformance.broker_env import NAMESPACE
from tests.conformance.points import expect
from tests.conformance.scenario import DIRECT_DELIVERIES, Scene


async def direct(scene: Scene) -> None:
    await scene.ready()
    async with scene.check("a body that is a JSON object is the payload"):
        word = await scene.publish_direct("echo", payload={"word": "hello"})
        event = await scene.ends_with(word, EventKind.SUCCEEDED)
        expect(event.result == {"word": "hello"}, f"the payload is {event.result}")
    async with scene.check("its end is told with its ids, and no token"):
        told = scene.house.inbox.told(word)[0]
        expect(told.envelope["id"] == f"m-{word}", f"id is {told.envelope['id']}")
        wanted = {"uid": "", "token": "", "attempt": 1, "epoch": 0, "correlationId": word}
        found = {name: told.envelope["data"].get(name) for name in wanted}
        expect(found == wanted, f"data is {found}")
        subject = told.envelope["subject"]
        expect(subject == f"{NAMESPACE}/{scene.name}", f"subject is {subject}")
    for body in (b"just text", b"[1, 2]", b'"quoted"', b""):
        async with scene.check(f"a body of {body!r} arrives as text, at the default handler"):
            event = await scene.ends_with(
                await scene.publish_direct(None, body=body), EventKind.SUCCEEDED
            )
            expect(event.result == {"text": body.decode()}, f"the payload is {event.result}")
    async with scene.check("a failure puts it back, the last one ends it"):
        trace = scene.trace("fail")
        word = await scene.publish_direct("fail", trace)
        event = await scene.ends_with(word, EventKind.FAILED)
        expect(event.attempt == DIRECT_DELIVERIES, f"attempt is {event.attempt}")
        expect(len(trace.begun) == DIRECT_DELIVERIES, f"it ran {len(trace.begun)} times")
        await _buried(scene, "broken")
    async with scene.check("a failure for good ends it at once"):
        trace = scene.trace("fail-for-good")
        await scene.ends_with(await scene.publish_direct("fail-for-good", trace), EventKind.FAILED)
        expect(len(trace.begun) == 1, f"it ran {len(trace.begun)} times")
        await _buried(scene, "broken")
    async with scene.check("nothing is left in the queue"):
        await scene.empty()


async def malformed(scene: Scene) -> None:
    await scene.ready()
    broken: dict[str, dict[str, Any]] = {
        "tq-attempt": {"tq-attempt": None},
        "tq-epoch": {"tq-epoch": "0"},
        "tq-version": {"tq-version": 2},
    }
    trace = scene.trace()
    for name, headers in broken.items():
        async with scene.check(f"a Task's message with a bad {name} is buried, with the reason"):
            token = await scene.publish("echo", trace, headers=headers)
            await _buried(scene, name)
            expect(not scene.house.inbox.told(token), "an outcome is told of it")
    async with scene.check("none is run, all are acknowledged"):
        await scene.empty()
        expect(not trace.begun, f"{len(trace.begun)} ran")
        expect(set(scene.tap.settled) == {"ack"}, f"settled by {set(scene.tap.settled)}")


async def _buried(scene: Scene, word: str) -> None:
    letter = await scene.house.dead_letter(scene.name)
    headers = letter.properties.headers or {}
    reason = headers.get("tq-error")
    expect(isinstance(reason, str) and word in reason, f"tq-error is {reason!r}")
    expect("x-delivery-count" not in headers, "it keeps the broker's x-delivery-count")
