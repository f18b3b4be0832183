"""Point 3: orders, whenever they come."""

from __future__ import annotations

import asyncio
import uuid

from taskqueue.contract.command import CommandKind, WorkerCommand
from taskqueue.contract.outcome import EventKind
from taskqueue.model.worker import WorkerState
from tests.conformance.broker_env import NAMESPACE
from tests.conformance.points import expect
from tests.conformance.scenario import Scene

#: More than a worker prefetches from the stream.
_MANY = 700

_LONG = {"seconds": 60}

_STOPPED = WorkerState.STOPPED


async def before(scene: Scene) -> None:
    trace = scene.trace()
    cancelled = await scene.publish("sleep", trace, payload=_LONG)
    released = await scene.publish("sleep", trace, payload=_LONG)
    early = f"k1.{uuid.uuid4().hex}"
    await scene.order("cancel", cancelled, early)
    await scene.order("release", released)
    await scene.house.say(b"this is no order")
    await scene.house.say(b'{"order": "dance", "token": "k1.x"}')
    await scene.order("cancel", *(f"k1.{uuid.uuid4().hex}" for _ in range(_MANY)))
    await scene.ready()
    async with scene.check("what was cancelled before it came is told task.cancelled"):
        await scene.ends_with(cancelled, EventKind.CANCELLED)
    async with scene.check("what was released before it came is told task.released"):
        await scene.ends_with(released, EventKind.RELEASED)
    async with scene.check("an order holds for a message that comes after it"):
        await scene.publish("sleep", trace, payload=_LONG, token=early)
        await scene.ends_with(early, EventKind.CANCELLED)
    async with scene.check("none of them is run, and all are acknowledged"):
        await scene.empty()
        expect(not trace.begun, f"{len(trace.begun)} ran")
        expect(set(scene.tap.settled) == {"ack"}, f"settled by {set(scene.tap.settled)}")
    async with scene.check("an order that cannot be read is passed over"):
        await scene.works()


async def while_running(scene: Scene) -> None:
    await scene.ready()
    for order, kind in (("cancel", EventKind.CANCELLED), ("release", EventKind.RELEASED)):
        async with scene.check(f"{order}: what runs is stopped and told {kind.value}"):
            trace = scene.trace(order)
            token = await scene.publish("sleep", trace, payload=_LONG)
            await trace.until(begun=1)
            await scene.order(order, token)
            await scene.ends_with(token, kind)
            await trace.until(ended=1)
            await scene.empty()
    async with scene.check("keyed: the stop is told when the execution has ended, not before"):
        trace = scene.trace("keyed")
        payload = {**_LONG, "linger": 0.7}
        token = await scene.publish("sleep", trace, payload=payload, fence=7)
        await trace.until(begun=1)
        await scene.order("cancel", token)
        await scene.ends_with(token, EventKind.CANCELLED)
        expect(trace.ended, "it is told task.cancelled while it runs")
    async with scene.check("the slots are free again"):
        await scene.works()


async def drain(scene: Scene) -> None:
    worker = await scene.ready()
    async with scene.check("an order to drain that names another pod is none"):
        for pod, namespace in (("other", NAMESPACE), (scene.pod, "other")):
            await scene.house.order(WorkerCommand(CommandKind.DRAIN, pod=pod, namespace=namespace))
        await scene.works()
    short, long = scene.trace("short"), scene.trace("long")
    ending = await scene.publish("sleep", short, payload={"seconds": 2})
    endless = await scene.publish("sleep", long, payload=_LONG)
    async with scene.check("drain: it says draining, and what runs may end"):
        await short.until(begun=1)
        await long.until(begun=1)
        await scene.drain()
        await scene.says(WorkerState.DRAINING)
        await scene.ends_with(ending, EventKind.SUCCEEDED)
    async with scene.check("it takes nothing more, and obeys orders all the while"):
        left = await scene.publish("echo")
        await scene.order("cancel", endless)
        scene.tap.hold_confirms()
        await long.until(ended=1)
        await scene.ends_with(endless, EventKind.CANCELLED)
        expect(not scene.house.inbox.told(left), "it took work after the order")
    async with scene.check("it says stopped when every outcome is confirmed, and not before"):
        stopped = scene.house.beats.told(scene.name, lambda beat: beat.state is _STOPPED)
        expect(not stopped, "an outcome is not confirmed")
        scene.tap.release_confirms()
        await scene.says(_STOPPED)
        await scene.house.until_ready(scene.queue, 1)
        expect(not scene.tap.in_hand, f"{scene.tap.in_hand} in hand")
    async with scene.check("then it stays, and says so again, until SIGTERM; with code 0"):
        again = asyncio.ensure_future(scene.says(_STOPPED, number=2))
        ended = asyncio.ensure_future(worker.exit_code())
        await asyncio.wait({again, ended}, return_when=asyncio.FIRST_COMPLETED)
        for each in (again, ended):
            each.cancel()
        expect(not worker.gone, "it ended: its container would be started again")
        worker.terminate()
        code = await worker.exit_code()
        expect(code == 0, f"exit code {code}")
        expect(not scene.house.inbox.told(left), "it took work after the order")


async def drain_again(scene: Scene) -> None:
    worker = await scene.ready(TASKQUEUE_DRAINED_SECONDS="1")
    async with scene.check("a drained worker that gets no SIGTERM ends by itself, with code 0"):
        await scene.drain()
        code = await worker.exit_code()
        expect(code == 0, f"exit code {code}")
    async with scene.check("an order to drain from before does not hold for another process"):
        worker = await scene.ready(TASKQUEUE_DRAINED_SECONDS="1")
        await scene.works()
    async with scene.check("nor when the connection is lost and the stream read again"):
        before = scene.tap.consumed
        scene.tap.cut()
        await scene.tap.until(lambda: scene.tap.consumed > before)
        await scene.works()
        expect(not worker.gone, "it left")
    async with scene.check("an order that is given while the connection is lost does"):
        scene.tap.cut()
        await scene.drain()
        code = await worker.exit_code()
        expect(code == 0, f"exit code {code}")
