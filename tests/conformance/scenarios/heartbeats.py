"""Point H: what a worker says of itself."""

from __future__ import annotations

from taskqueue.contract.heartbeat import Heartbeat
from taskqueue.model.worker import WorkerState
from tests.conformance.points import expect
from tests.conformance.scenario import Scene


async def turns(scene: Scene) -> None:
    worker, task, direct = await scene.ready(), scene.trace("task"), scene.trace("direct")
    beats = scene.house.beats
    async with scene.check("it says that it is there when it takes work"):
        ready = await scene.says(WorkerState.READY)
        expect(ready.slots == 2, f"it tells of {ready.slots} slots")
        expect(not ready.busy, f"it runs nothing and tells of {ready.busy}")
    async with scene.check("it says soon that it has become busy: with a direct message too"):
        await scene.publish_direct("sleep", direct, payload={"seconds": 4})
        await direct.until(begun=1)
        one = await beats.wait(scene.name, lambda beat: beat.busy == 1)
        expect(not one.running, "a direct message is no attempt of a Task")
    async with scene.check("and that it is idle again"):
        await direct.until(ended=1)
        idle = len(beats.told(scene.name, _idle))
        await beats.wait(scene.name, _idle, number=idle + 1)
    async with scene.check("an attempt of a Task is told by its token as well"):
        token = await scene.publish("sleep", task, payload={"seconds": 6})
        await task.until(begun=1)
        told = await beats.wait(scene.name, lambda beat: len(beat.running) == 1)
        expect(told.running[0].token == token, f"the token told is {told.running[0].token}")
        expect(told.busy == 1, f"busy is {told.busy}")
    async with scene.check("at SIGTERM it says draining, and stopped last"):
        worker.terminate()
        await scene.says(WorkerState.DRAINING)
        stopped = await scene.says(WorkerState.STOPPED)
        expect(not stopped.running, f"{len(stopped.running)} run on")
        await worker.exit_code()


def _idle(beat: Heartbeat) -> bool:
    return beat.busy == 0
