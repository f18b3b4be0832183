"""Point 8: a closed connection, a closed channel and a cancelled consumer are one case."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable

from pika.spec import Exchange, Queue

from taskqueue.contract.heartbeat import Heartbeat
from taskqueue.contract.names import HEARTBEATS_EXCHANGE, OUTCOMES_EXCHANGE
from taskqueue.contract.outcome import EventKind
from tests.conformance.points import expect
from tests.conformance.scenario import Scenario


async def connections_closed(scenario: Scenario) -> None:
    await _survives(
        scenario,
        "connections that the broker closes",
        lambda: scenario.broker_env.close_connections(scenario.broker.username),
    )


async def credentials_changed(scenario: Scenario) -> None:
    directory = scenario.folder / f"{scenario.name}-broker"
    directory.mkdir()
    file, user, password = directory / "password", scenario.broker.username, uuid.uuid4().hex
    file.write_text(scenario.broker.password)
    variables = {"TASKQUEUE_BROKER_DIRECTORY": str(directory), "TASKQUEUE_BROKER_PASSWORD": "old"}
    async with scenario.check("a file in the broker's directory counts before its variable"):
        await scenario.ready(slots=2, **variables)
    trace, proxy = scenario.trace(), scenario.proxy
    token = await scenario.publish("sleep", trace, payload={"seconds": 2.5})
    await trace.until(begun=1)
    links, before = len(proxy.links), proxy.consumed
    await scenario.broker_env.set_password(user, password)
    await scenario.broker_env.close_connections(user)
    async with scenario.check("a login that is refused is tried again"):
        await proxy.until(lambda: len(proxy.links) >= links + 4)
    file.write_text(password)
    async with scenario.check("the directory is read again for each connection"):
        await proxy.until(lambda: proxy.consumed > before)
    async with scenario.check("what ran goes on meanwhile, and ends once"):
        await scenario.ends_with(token, EventKind.SUCCEEDED)
        expect(len(trace.begun) == 1, f"it ran {len(trace.begun)} times")
        await scenario.wait_settled()


async def channel_closed(scenario: Scenario) -> None:
    async def spoil() -> None:
        scenario.proxy.break_channel()

    await _survives(scenario, "a channel that the broker closes (406)", spoil)


async def queue_deleted(scenario: Scenario) -> None:
    async def delete() -> None:
        await scenario.broker_env.channel.delete_queue(scenario.queue)
        await scenario.broker_env.add_queue(scenario.name)

    await _survives(scenario, "a queue that is deleted and declared again (basic.cancel)", delete)


async def exchanges_deleted(scenario: Scenario) -> None:
    await scenario.ready(slots=2)
    trace, env = scenario.trace(), scenario.broker_env
    token = await scenario.publish("sleep", trace, payload={"seconds": 2.5})
    await trace.until(begun=1)
    links = len(scenario.proxy.links)
    await env.delete_exchange(OUTCOMES_EXCHANGE)
    async with scenario.check("an exchange for outcomes that is deleted: heartbeats go on"):
        await trace.until(ended=1)
        before = len(env.heartbeats.matching(scenario.name, _any))
        # The first may have left before the outcome did.
        await env.heartbeats.wait(scenario.name, _any, number=before + 2)
        expect(len(scenario.proxy.links) == links, "it has closed a connection over it")
    async with scenario.check("the outcome is published when the exchange is back"):
        await env.declare_again(scenario.name)
        await scenario.ends_with(token, EventKind.SUCCEEDED)
        await scenario.wait_settled()
    async with scenario.check("heartbeats begin again when their exchange is back"):
        await env.delete_exchange(HEARTBEATS_EXCHANGE)
        again = scenario.trace("again")
        await scenario.publish("sleep", again, payload={"seconds": 3})
        await again.until(ended=1)
        await env.declare_again(scenario.name)
        before = len(env.heartbeats.matching(scenario.name, _any))
        await env.heartbeats.wait(scenario.name, _any, number=before + 1)


def _any(heartbeat: Heartbeat) -> bool:
    return True


async def _survives(scenario: Scenario, what: str, happens: Callable[[], Awaitable[None]]) -> None:
    await scenario.ready(slots=2)
    trace = scenario.trace()
    token = await scenario.publish("sleep", trace, payload={"seconds": 2.5})
    await trace.until(begun=1)
    before = scenario.proxy.consumed
    await happens()
    async with scenario.check(f"{what}: it consumes again"):
        await scenario.proxy.until(lambda: scenario.proxy.consumed > before)
    async with scenario.check(f"{what}: what ran goes on, and ends once"):
        await scenario.ends_with(token, EventKind.SUCCEEDED)
        expect(len(trace.begun) == 1, f"it ran {len(trace.begun)} times")
        await scenario.wait_settled()
    async with scenario.check(f"{what}: it works on"):
        await scenario.assert_works()


async def too_early(scenario: Scenario) -> None:
    worker = await scenario.start()
    async with scenario.check("a worker that is early waits for queue and stream"):
        await scenario.proxy.until(
            lambda: any(link.sent_methods(Queue.Declare) for link in scenario.proxy.links)
        )
        await scenario.broker_env.open()
        await scenario.broker_env.add_queue(scenario.name)
        ended = asyncio.ensure_future(worker.exit_code())
        works = asyncio.ensure_future(scenario.assert_works())
        await asyncio.wait({ended, works}, return_when=asyncio.FIRST_COMPLETED)
        works.cancel()
        ended.cancel()
        expect(not worker.has_exited, "it ended")
        await works
    async with scenario.check("it declares nothing"):
        declared = [one for one in scenario.proxy.sent(Queue.Declare) if not one.passive]
        declared += [one for one in scenario.proxy.sent(Exchange.Declare) if not one.passive]
        expect(not declared, f"it declares {declared[:1]}")
