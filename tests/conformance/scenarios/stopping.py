"""Point 6: SIGTERM."""

from __future__ import annotations

from taskqueue.contract.outcome import EventKind
from tests.conformance.points import expect
from tests.conformance.scenario import Scene


async def lets_end(scene: Scene) -> None:
    worker, trace = await scene.ready(slots=2), scene.trace()
    token = await scene.publish("sleep", trace, payload={"seconds": 2})
    async with scene.check("what runs may end within the grace period"):
        await trace.until(begun=1)
        worker.terminate()
        await scene.ends_with(token, EventKind.SUCCEEDED)
    async with scene.check("then it leaves with code 0, and all is acknowledged"):
        left = await scene.publish("echo")
        code = await worker.exit_code()
        expect(code == 0, f"exit code {code}")
        expect(not scene.house.inbox.told(left), "it took work after SIGTERM")
        await scene.house.until_ready(scene.queue, 1)


async def releases(scene: Scene) -> None:
    worker = await scene.ready(slots=2, TASKQUEUE_GRACE_SECONDS="0.5")
    task, direct = scene.trace("task"), scene.trace("direct")
    token = await scene.publish("sleep", task, payload={"seconds": 60})
    await scene.publish_direct("sleep", direct, payload={"seconds": 60})
    async with scene.check("what runs on is told task.released, and acknowledged"):
        await task.until(begun=1)
        await direct.until(begun=1)
        worker.terminate()
        await scene.ends_with(token, EventKind.RELEASED)
        code = await worker.exit_code()
        expect(code == 0, f"exit code {code}")
    async with scene.check("a direct message goes back to the queue"):
        await scene.house.until_ready(scene.queue, 1)


async def idle(scene: Scene) -> None:
    worker = await scene.ready()
    async with scene.check("an idle worker leaves at once, with code 0"):
        worker.terminate()
        code = await worker.exit_code()
        expect(code == 0, f"exit code {code}")
