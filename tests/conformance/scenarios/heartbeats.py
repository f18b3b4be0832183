"""Point H: what a worker reports about itself."""

from __future__ import annotations

from taskqueue.contract.heartbeat import Heartbeat
from taskqueue.model.worker import WorkerState
from tests.conformance.points import expect
from tests.conformance.scenario import Scenario


async def turns(scenario: Scenario) -> None:
    worker, task, direct = await scenario.ready(), scenario.trace("task"), scenario.trace("direct")
    heartbeats = scenario.broker_env.heartbeats
    async with scenario.check("it reports ready when it consumes"):
        ready = await scenario.wait_for_state(WorkerState.READY)
        expect(ready.slots == 2, f"it reports {ready.slots} slots")
        expect(not ready.busy, f"it runs nothing and reports busy {ready.busy}")
    async with scenario.check("it soon reports that it has become busy: with a direct message too"):
        await scenario.publish_direct("sleep", direct, payload={"seconds": 4})
        await direct.until(begun=1)
        one = await heartbeats.wait(scenario.name, lambda heartbeat: heartbeat.busy == 1)
        expect(not one.running, "a direct message is not an attempt of a Task")
    async with scenario.check("and that it has become idle"):
        await direct.until(ended=1)
        idle = len(heartbeats.matching(scenario.name, _idle))
        await heartbeats.wait(scenario.name, _idle, number=idle + 1)
    async with scenario.check("an attempt of a Task is reported with token, number and epoch"):
        token = await scenario.publish("sleep", task, payload={"seconds": 6}, attempt=2, epoch=7)
        await task.until(begun=1)
        busy = await heartbeats.wait(scenario.name, lambda heartbeat: len(heartbeat.running) == 1)
        (attempt,) = busy.running
        expect(attempt.token == token, f"the reported token is {attempt.token}")
        found = (attempt.attempt, attempt.epoch)
        expect(found == (2, 7), f"the reported attempt and epoch are {found}")
        expect(busy.busy == 1, f"busy is {busy.busy}")
    async with scenario.check("at SIGTERM it reports draining, and finally stopped"):
        worker.terminate()
        await scenario.wait_for_state(WorkerState.DRAINING)
        stopped = await scenario.wait_for_state(WorkerState.STOPPED)
        expect(not stopped.running, f"{len(stopped.running)} run on")
        await worker.exit_code()


def _idle(heartbeat: Heartbeat) -> bool:
    return heartbeat.busy == 0
