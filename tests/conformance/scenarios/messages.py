"""Messages that are not attempts of a Task: direct and malformed ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from taskqueue.contract.names import DIRECT_EXCHANGE, WORK_EXCHANGE
from taskqueue.contract.outcome import EventKind
from tests.conformance.broker_env import NAMESPACE
from tests.conformance.points import expect
from tests.conformance.scenario import DIRECT_DELIVERIES, Scenario


async def direct(scenario: Scenario) -> None:
    await scenario.ready()
    async with scenario.check("a body that is a JSON object is the payload"):
        correlation_id = await scenario.publish_direct("echo", payload={"word": "hello"})
        event = await scenario.ends_with(correlation_id, EventKind.SUCCEEDED)
        expect(event.result == {"word": "hello"}, f"the payload is {event.result}")
    async with scenario.check("its end is reported with its ids, and without a token"):
        received = scenario.broker_env.inbox.events(correlation_id)[0]
        expect(received.envelope["id"] == f"m-{correlation_id}", f"id is {received.envelope['id']}")
        wanted = {"uid": "", "token": "", "attempt": 1, "epoch": 0, "correlationId": correlation_id}
        found = {name: received.envelope["data"].get(name) for name in wanted}
        expect(found == wanted, f"data is {found}")
        subject = received.envelope["subject"]
        expect(subject == f"{NAMESPACE}/{scenario.name}", f"subject is {subject}")
    for body in (b"just text", b"[1, 2]", b'"quoted"', b""):
        async with scenario.check(f"a body of {body!r} arrives as text, at the default handler"):
            event = await scenario.ends_with(
                await scenario.publish_direct(None, body=body), EventKind.SUCCEEDED
            )
            expect(event.result == {"text": body.decode()}, f"the payload is {event.result}")
    async with scenario.check("a failure requeues it, the last one ends it"):
        trace = scenario.trace("fail")
        correlation_id = await scenario.publish_direct("fail", trace)
        event = await scenario.ends_with(correlation_id, EventKind.FAILED)
        expect(event.attempt == DIRECT_DELIVERIES, f"attempt is {event.attempt}")
        expect(len(trace.begun) == DIRECT_DELIVERIES, f"it ran {len(trace.begun)} times")
        await _expect_dead_letter(scenario, "broken")
    async with scenario.check("a failure for good ends it at once"):
        trace = scenario.trace("fail-for-good")
        await scenario.ends_with(
            await scenario.publish_direct("fail-for-good", trace), EventKind.FAILED
        )
        expect(len(trace.begun) == 1, f"it ran {len(trace.begun)} times")
        await _expect_dead_letter(scenario, "broken")
    async with scenario.check("nothing is left in the queue"):
        await scenario.wait_settled()


async def forged(scenario: Scenario) -> None:
    await scenario.ready()
    token = "k1.forged"
    headers = {
        "tq-version": 1,
        "tq-namespace": NAMESPACE,
        "tq-queue": scenario.name,
        "tq-task": "victim",
        "tq-attempt": 1,
        "tq-max-attempts": 1,
        "tq-epoch": 0,
        "tq-token": token,
        "tq-max-deliveries": 1,
        "tq-timeout-seconds": 60,
        "tq-fence": 2**62,
    }
    events = scenario.broker_env.inbox.events
    async with scenario.check(
        "what comes by taskqueue.direct has no Task, whatever its headers say"
    ):
        correlation_id = await scenario.publish_direct("echo", payload={"a": 1}, headers=headers)
        event = await scenario.ends_with(correlation_id, EventKind.SUCCEEDED)
        expect((event.uid, event.token) == ("", ""), f"its end is of {event.uid}, {event.token}")
        expect(not events(token), "its end has the token")
    async with scenario.check("and what breaks the contract for Tasks there runs"):
        broken = {**headers, "tq-version": 2, "tq-attempt": "many"}
        await scenario.ends_with(
            await scenario.publish_direct("echo", payload={"a": 1}, headers=broken),
            EventKind.SUCCEEDED,
        )
    async with scenario.check("its dead letter names the exchange it came by"):
        trace = scenario.trace("fail-for-good")
        await scenario.ends_with(
            await scenario.publish_direct("fail-for-good", trace, headers=headers),
            EventKind.FAILED,
        )
        found = (await _expect_dead_letter(scenario, "broken")).get("tq-exchange")
        expect(found == DIRECT_EXCHANGE, f"tq-exchange is {found!r}")
    async with scenario.check("without a token it may also come by taskqueue.work"):
        await scenario.ends_with(
            await scenario.publish_direct("echo", payload={"a": 1}, exchange=WORK_EXCHANGE),
            EventKind.SUCCEEDED,
        )
    async with scenario.check("nothing is left in the queue"):
        await scenario.wait_settled()


async def malformed(scenario: Scenario) -> None:
    await scenario.ready()
    broken: dict[str, dict[str, Any]] = {
        "tq-attempt": {"tq-attempt": None},
        "tq-epoch": {"tq-epoch": "0"},
        "tq-version": {"tq-version": 2},
        "tq-token": {"tq-token": ""},
        "tq-queue": {"tq-queue": "another"},
    }
    trace = scenario.trace()
    for name, headers in broken.items():
        async with scenario.check(
            f"a Task's message with a bad {name} is dead-lettered, with the reason"
        ):
            token = await scenario.publish("echo", trace, headers=headers)
            await _expect_dead_letter(scenario, name)
            expect(not scenario.broker_env.inbox.events(token), "an outcome is reported for it")
    async with scenario.check("none is run, all are acknowledged"):
        await scenario.wait_settled()
        expect(not trace.begun, f"{len(trace.begun)} ran")
        expect(set(scenario.proxy.settled) == {"ack"}, f"settled by {set(scenario.proxy.settled)}")


async def hostile_headers(scenario: Scenario) -> None:
    """Headers that are legal, and too much for a library or for the copy of a message."""
    await scenario.ready()
    async with scenario.check("a message without headers of its own runs"):
        await scenario.ends_with(await scenario.publish("echo"), EventKind.SUCCEEDED)
    connections = len(scenario.proxy.links)
    nested: dict[str, Any] = {}
    for _ in range(300):
        nested = {"a": nested}
    async with scenario.check("a message whose headers no library reads is dead-lettered whole"):
        await scenario.publish_direct("echo", payload={"a": 1}, headers={"deep": nested})
        await scenario.publish("echo", headers={"deep": nested})
        for _ in range(2):
            delivery = await scenario.broker_env.dead_letter(scenario.name)
            headers = delivery.properties.headers or {}
            expect("cannot be read" in str(headers.get("tq-error")), f"its headers are {headers}")
            expect("deep" not in headers, "it keeps what cannot be read")
            expect(delivery.body in (b'{"a": 1}', b"{}"), f"its body is {delivery.body!r}")
    async with scenario.check("headers that fill a frame are cut in a dead letter, and named"):
        await scenario.publish_direct("fail-for-good", headers={"big": "x" * 130_000, "small": 1})
        headers = dict(await _expect_dead_letter(scenario, "broken"))
        found = (headers.get("tq-cut"), headers.get("big"), headers.get("small"))
        expect(found == ("big", None, 1), f"tq-cut is {headers.get('tq-cut')!r}")
    async with scenario.check("neither closes a connection, and others are run"):
        await scenario.ends_with(await scenario.publish("echo"), EventKind.SUCCEEDED)
        await scenario.wait_settled()
        expect(len(scenario.proxy.links) == connections, "it has connected again")


async def _expect_dead_letter(scenario: Scenario, reason_part: str) -> Mapping[str, Any]:
    delivery = await scenario.broker_env.dead_letter(scenario.name)
    headers = delivery.properties.headers or {}
    reason = headers.get("tq-error")
    expect(isinstance(reason, str) and reason_part in reason, f"tq-error is {reason!r}")
    expect("x-delivery-count" not in headers, "it keeps the broker's x-delivery-count")
    return headers
