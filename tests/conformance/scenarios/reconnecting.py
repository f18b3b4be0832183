"""Point 8: a closed connection, a closed channel and a cancelled consumer are one case."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from pika.spec import Exchange, Queue

from taskqueue.contract.outcome import EventKind
from tests.conformance.points import expect
from tests.conformance.scenario import Scene


async def connections_closed(scene: Scene) -> None:
    await _survives(
        scene,
        "connections that the broker closes",
        lambda: scene.house.close_connections(scene.broker.username),
    )


async def channel_closed(scene: Scene) -> None:
    async def spoil() -> None:
        scene.tap.spoil_channel()

    await _survives(scene, "a channel that the broker closes (406)", spoil)


async def queue_deleted(scene: Scene) -> None:
    async def delete() -> None:
        await scene.house.channel.delete_queue(scene.queue)
        await scene.house.add_queue(scene.name)

    await _survives(scene, "a queue that is deleted and declared again (basic.cancel)", delete)


async def _survives(scene: Scene, what: str, happens: Callable[[], Awaitable[None]]) -> None:
    await scene.ready(slots=2)
    trace = scene.trace()
    token = await scene.publish("sleep", trace, payload={"seconds": 2.5})
    await trace.until(begun=1)
    before = scene.tap.consumed
    await happens()
    async with scene.check(f"{what}: it consumes again"):
        await scene.tap.until(lambda: scene.tap.consumed > before)
    async with scene.check(f"{what}: what ran has gone on, and ends once"):
        await scene.ends_with(token, EventKind.SUCCEEDED)
        expect(len(trace.begun) == 1, f"it ran {len(trace.begun)} times")
        await scene.empty()
    async with scene.check(f"{what}: it works on"):
        await scene.works()


async def too_early(scene: Scene) -> None:
    worker = await scene.start()
    async with scene.check("a worker that is early waits for queue and stream"):
        await scene.tap.until(
            lambda: any(link.sent_methods(Queue.Declare) for link in scene.tap.links)
        )
        await scene.house.open()
        await scene.house.add_queue(scene.name)
        ended = asyncio.ensure_future(worker.exit_code())
        works = asyncio.ensure_future(scene.works())
        await asyncio.wait({ended, works}, return_when=asyncio.FIRST_COMPLETED)
        works.cancel()
        ended.cancel()
        expect(not worker.gone, "it ended")
        await works
    async with scene.check("it declares nothing"):
        declared = [one for one in scene.tap.sent(Queue.Declare) if not one.passive]
        declared += [one for one in scene.tap.sent(Exchange.Declare) if not one.passive]
        expect(not declared, f"it declares {declared[:1]}")
