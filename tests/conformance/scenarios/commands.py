"""Point 3: commands, whenever they come."""

from __future__ import annotations

import asyncio
import uuid

from taskqueue.contract.command import WorkerCommand
from taskqueue.contract.outcome import EventKind
from taskqueue.model.command import CommandKind
from taskqueue.model.worker import WorkerState
from tests.conformance.broker_env import NAMESPACE
from tests.conformance.points import expect
from tests.conformance.scenario import Scenario

#: More than a worker prefetches from the stream.
_MANY = 700

_LONG = {"seconds": 60}

_STOPPED = WorkerState.STOPPED


async def before(scenario: Scenario) -> None:
    trace = scenario.trace()
    cancelled = await scenario.publish("sleep", trace, payload=_LONG)
    released = await scenario.publish("sleep", trace, payload=_LONG)
    early = f"k1.{uuid.uuid4().hex}"
    await scenario.send_command("cancel", cancelled, early)
    await scenario.send_command("release", released)
    await scenario.broker_env.send_raw_command(b"not a command")
    await scenario.broker_env.send_raw_command(b'{"order": "dance", "token": "k1.x"}')
    await scenario.send_command("cancel", *(f"k1.{uuid.uuid4().hex}" for _ in range(_MANY)))
    await scenario.ready()
    async with scenario.check("what was cancelled before it came is reported as task.cancelled"):
        await scenario.ends_with(cancelled, EventKind.CANCELLED)
    async with scenario.check("what was released before it came is reported as task.released"):
        await scenario.ends_with(released, EventKind.RELEASED)
    async with scenario.check("a command applies to a message that comes after it"):
        await scenario.publish("sleep", trace, payload=_LONG, token=early)
        await scenario.ends_with(early, EventKind.CANCELLED)
    async with scenario.check("none of them is run, and all are acknowledged"):
        await scenario.wait_settled()
        expect(not trace.begun, f"{len(trace.begun)} ran")
        expect(set(scenario.proxy.settled) == {"ack"}, f"settled by {set(scenario.proxy.settled)}")
    async with scenario.check("a malformed command is ignored"):
        await scenario.assert_works()


async def while_running(scenario: Scenario) -> None:
    await scenario.ready()
    for command, kind in (("cancel", EventKind.CANCELLED), ("release", EventKind.RELEASED)):
        async with scenario.check(f"{command}: what runs is stopped and reported as {kind.value}"):
            trace = scenario.trace(command)
            token = await scenario.publish("sleep", trace, payload=_LONG)
            await trace.until(begun=1)
            await scenario.send_command(command, token)
            await scenario.ends_with(token, kind)
            await trace.until(ended=1)
            await scenario.wait_settled()
    async with scenario.check(
        "keyed: the stop is reported when the execution has ended, not before"
    ):
        trace = scenario.trace("keyed")
        payload = {**_LONG, "linger": 0.7}
        token = await scenario.publish("sleep", trace, payload=payload, fence=7)
        await trace.until(begun=1)
        await scenario.send_command("cancel", token)
        await scenario.ends_with(token, EventKind.CANCELLED)
        expect(trace.ended, "task.cancelled is reported while it runs")
    async with scenario.check("the slots are free again"):
        await scenario.assert_works()


async def drain(scenario: Scenario) -> None:
    worker = await scenario.ready()
    async with scenario.check("a command to drain that names another pod is ignored"):
        for pod, namespace in (("other", NAMESPACE), (scenario.pod, "other")):
            await scenario.broker_env.send_commands(
                WorkerCommand(CommandKind.DRAIN, pod=pod, namespace=namespace)
            )
        await scenario.assert_works()
    short, long = scenario.trace("short"), scenario.trace("long")
    ending = await scenario.publish("sleep", short, payload={"seconds": 2})
    endless = await scenario.publish("sleep", long, payload=_LONG)
    async with scenario.check("drain: it reports draining, and what runs may end"):
        await short.until(begun=1)
        await long.until(begun=1)
        await scenario.drain()
        await scenario.wait_for_state(WorkerState.DRAINING)
        await scenario.ends_with(ending, EventKind.SUCCEEDED)
    async with scenario.check("it consumes nothing more, and still obeys commands"):
        left = await scenario.publish("echo")
        await scenario.send_command("cancel", endless)
        scenario.proxy.hold_confirms()
        await long.until(ended=1)
        await scenario.ends_with(endless, EventKind.CANCELLED)
        expect(not scenario.broker_env.inbox.events(left), "it consumed work after the command")
    async with scenario.check("it reports stopped when every outcome is confirmed, and not before"):
        stopped = scenario.broker_env.heartbeats.matching(
            scenario.name, lambda heartbeat: heartbeat.state is _STOPPED
        )
        expect(not stopped, "an outcome is not confirmed")
        scenario.proxy.release_confirms()
        await scenario.wait_for_state(_STOPPED)
        await scenario.broker_env.wait_for_ready(scenario.queue, 1)
        expect(not scenario.proxy.unsettled, f"{scenario.proxy.unsettled} unsettled")
    async with scenario.check("then it stays, and repeats that, until SIGTERM; with code 0"):
        repeated = asyncio.ensure_future(scenario.wait_for_state(_STOPPED, number=2))
        ended = asyncio.ensure_future(worker.exit_code())
        await asyncio.wait({repeated, ended}, return_when=asyncio.FIRST_COMPLETED)
        for each in (repeated, ended):
            each.cancel()
        expect(not worker.has_exited, "it ended: its container would be started again")
        worker.terminate()
        code = await worker.exit_code()
        expect(code == 0, f"exit code {code}")
        expect(not scenario.broker_env.inbox.events(left), "it consumed work after the command")


async def drain_again(scenario: Scenario) -> None:
    worker = await scenario.ready(TASKQUEUE_DRAINED_SECONDS="1")
    async with scenario.check("a drained worker that gets no SIGTERM ends by itself, with code 0"):
        await scenario.drain()
        code = await worker.exit_code()
        expect(code == 0, f"exit code {code}")
    async with scenario.check("an old command to drain does not apply to another process"):
        worker = await scenario.ready(TASKQUEUE_DRAINED_SECONDS="1")
        await scenario.assert_works()
    async with scenario.check("nor when the connection is lost and the stream read again"):
        before = scenario.proxy.consumed
        scenario.proxy.cut()
        await scenario.proxy.until(lambda: scenario.proxy.consumed > before)
        await scenario.assert_works()
        expect(not worker.has_exited, "it ended")
    async with scenario.check("a command sent while the connection is lost does"):
        scenario.proxy.cut()
        await scenario.drain()
        code = await worker.exit_code()
        expect(code == 0, f"exit code {code}")
