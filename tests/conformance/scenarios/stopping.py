"""Point 6: SIGTERM."""

from __future__ import annotations

from taskqueue.contract.outcome import EventKind
from tests.conformance.points import expect
from tests.conformance.scenario import Scenario


async def lets_end(scenario: Scenario) -> None:
    worker, trace = await scenario.ready(slots=2), scenario.trace()
    token = await scenario.publish("sleep", trace, payload={"seconds": 2})
    async with scenario.check("what runs may end within the grace period"):
        await trace.until(begun=1)
        worker.terminate()
        await scenario.ends_with(token, EventKind.SUCCEEDED)
    async with scenario.check("then it exits with code 0, and all is acknowledged"):
        left = await scenario.publish("echo")
        code = await worker.exit_code()
        expect(code == 0, f"exit code {code}")
        expect(not scenario.broker_env.inbox.events(left), "it consumed work after SIGTERM")
        await scenario.broker_env.wait_for_ready(scenario.queue, 1)


async def releases(scenario: Scenario) -> None:
    worker = await scenario.ready(slots=2, TASKQUEUE_GRACE_SECONDS="0.5")
    task, direct = scenario.trace("task"), scenario.trace("direct")
    token = await scenario.publish("sleep", task, payload={"seconds": 60})
    await scenario.publish_direct("sleep", direct, payload={"seconds": 60})
    async with scenario.check("what runs on is reported as task.released, and acknowledged"):
        await task.until(begun=1)
        await direct.until(begun=1)
        worker.terminate()
        await scenario.ends_with(token, EventKind.RELEASED)
        code = await worker.exit_code()
        expect(code == 0, f"exit code {code}")
    async with scenario.check("a direct message goes back to the queue"):
        await scenario.broker_env.wait_for_ready(scenario.queue, 1)


async def idle(scenario: Scenario) -> None:
    worker = await scenario.ready()
    async with scenario.check("an idle worker exits at once, with code 0"):
        worker.terminate()
        code = await worker.exit_code()
        expect(code == 0, f"exit code {code}")
