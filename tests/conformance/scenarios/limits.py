"""Point L: limits, and the words of the contract apart from those of applications."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from taskqueue.contract.command import FIRST_COMMAND, WorkerCommand
from taskqueue.contract.outcome import EventKind
from taskqueue.limits import ERROR_MESSAGE_BYTES
from tests.conformance.points import expect
from tests.conformance.scenario import Scenario

_BARE, _RESERVED = "UnknownHandler", "taskqueue.UnknownHandler"
_INSTALLATION = "team-a"


async def reserved_types(scenario: Scenario) -> None:
    await scenario.ready()
    async with scenario.check("what the worker finds has a reserved type"):
        found = await _error(scenario, await scenario.publish("no-such-handler"))
        expect(found.get("type") == "taskqueue.UnknownHandler", f"the error is {found}")
        expect("application" not in found, f"the error is {found}")
    for name in ("UnknownHandler", "taskqueue.Timeout"):
        async with scenario.check(f"an application's error {name} is not reserved"):
            payload = {"type": name, "message": "as asked"}
            found = await _error(scenario, await scenario.publish("fail-as", payload=payload))
            expect(found.get("application") is True, f"the error is {found}")
            expect(not str(found.get("type")).startswith("taskqueue."), f"the error is {found}")
    async with scenario.check("once an older operator publishes, it has the bare type"):
        token = await scenario.publish("no-such-handler", checkpointed=None)
        found = await _error(scenario, token)
        expect(found.get("type") == "UnknownHandler", f"the error is {found}")
    await scenario.wait_settled()


async def announcements(scenario: Scenario) -> None:
    """Two installations share the virtual host; each worker reads what was announced before it."""
    nothing = replace(FIRST_COMMAND, understands=frozenset())
    for text, command, kind in (
        ("what another installation's operator reads does not count", FIRST_COMMAND, _BARE),
        ("what that of the own installation reads counts", _own(FIRST_COMMAND), _RESERVED),
        ("another one that reads less does not count", nothing, _RESERVED),
        ("the own one that reads less counts", _own(nothing), _BARE),
    ):
        async with scenario.check(text):
            await scenario.broker_env.send_commands(command)
            worker = await scenario.ready(TASKQUEUE_INSTALLATION=_INSTALLATION)
            found = await _error(scenario, await scenario.publish("no-such-handler"))
            expect(found.get("type") == kind, f"the error is {found}")
            await scenario.wait_settled()
            await worker.kill()


def _own(announcement: WorkerCommand) -> WorkerCommand:
    return replace(announcement, installation=_INSTALLATION)


async def error_messages(scenario: Scenario) -> None:
    await scenario.ready()
    async with scenario.check("a long error message is cut after a whole character"):
        payload = {"type": "Long", "message": "é" * 100_000}
        found = await _error(scenario, await scenario.publish("fail-as", payload=payload))
        message = str(found.get("message"))
        size = len(message.encode())
        expect(0 < size <= ERROR_MESSAGE_BYTES, f"it has {size} bytes")
        expect("\ufffd" not in message, "half a character is left")
    await scenario.wait_settled()


async def _error(scenario: Scenario, token: str) -> dict[str, Any]:
    """Return the error of the end of a token as it was sent."""
    await scenario.ends_with(token, EventKind.FAILED)
    received = scenario.broker_env.inbox.events(token, EventKind.FAILED)[0]
    error: dict[str, Any] = received.envelope["data"]["error"]
    return error
