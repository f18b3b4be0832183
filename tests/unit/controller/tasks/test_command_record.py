"""Commands that wait for a broker survive a restart of the operator."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskqueue.contract.command import WorkerCommand
from taskqueue.controller.tasks import command_record
from taskqueue.controller.tasks.command_record import CommandRecord, Owed
from taskqueue.kubernetes.client import ApiClient, ApiError
from taskqueue.model.command import CommandKind
from taskqueue.model.queue import QueueKey
from tests.unit.controller.fakes import KEY, TaskHarness, turn

pytestmark = pytest.mark.looptime

PATH = "/api/v1/namespaces/operators/configmaps/taskqueue-commands"


class FakeConfigMaps:
    """The ConfigMaps of the API server, by path."""

    def __init__(self) -> None:
        self.objects: dict[str, dict[str, Any]] = {}
        self.writes = 0
        self.refusals: list[ApiError] = []

    async def get(self, path: str) -> dict[str, Any]:
        await self._answer()
        if path not in self.objects:
            raise ApiError(404, "NotFound", "no")
        return self.objects[path]

    async def apply(self, path: str, body: dict[str, Any], *, manager: str) -> dict[str, Any]:
        await self._answer()
        self.writes += 1
        self.objects[path] = body
        return body

    async def _answer(self) -> None:
        await asyncio.sleep(0.01)
        if self.refusals:
            raise self.refusals.pop()


def nothing(key: QueueKey, commands: list[WorkerCommand]) -> None:
    raise AssertionError(f"{key} never owed {commands}")


def record(
    api: FakeConfigMaps,
    owed: Callable[[], Owed],
    restore: Callable[[QueueKey, list[WorkerCommand]], None] = nothing,
) -> CommandRecord:
    return CommandRecord(
        cast(ApiClient, api),
        namespace="operators",
        installation="default",
        owed=owed,
        restore=restore,
    )


@asynccontextmanager
async def operator(api: FakeConfigMaps) -> AsyncIterator[TaskHarness]:
    """An operator process; it is killed at the end of the context."""
    harness = TaskHarness()
    kept = record(
        api,
        harness.tasks.owed_commands,
        lambda key, commands: harness.tasks.dispatcher(key).commands.restore(commands),
    )
    harness.on_owed = kept.request_write
    running = asyncio.create_task(kept.run())
    await asyncio.sleep(0.1)
    yield harness
    running.cancel()


@pytest.mark.parametrize("how", ["cancel", "suspend", "delete"])
async def test_command_that_waits_for_its_broker_is_sent_by_the_next_leader(how: str) -> None:
    api = FakeConfigMaps()
    async with operator(api) as first:
        entry = await first.published()
        token = first.token(entry)
        first.dispatcher.close()
        if how == "delete":
            await first.delete(entry)
        else:
            first.add("t", **{how: True})
            first.writer.writes.pop().succeed(generation=2)
        await asyncio.sleep(0.1)
        assert not first.publisher.commands
    async with operator(api) as second:
        second.open()
        kind = CommandKind.RELEASE if how == "suspend" else CommandKind.CANCEL
        assert second.publisher.commands == [WorkerCommand(kind, token=token, uid="uid-t")]
        await asyncio.sleep(0.1)
        assert second.dispatcher.is_empty
    async with operator(api) as third:
        third.open()
        assert not third.publisher.commands


async def test_nothing_is_written_while_the_broker_is_there() -> None:
    api = FakeConfigMaps()
    async with operator(api) as harness:
        for name in "abc":
            entry = await harness.published(name)
            harness.add(name, cancel=True)
            await turn()
            assert harness.publisher.commands[-1].uid == entry.uid
    assert api.writes == 0


async def test_record_waits_until_it_was_read_and_is_written_when_the_api_server_is_back(
    caplog: pytest.LogCaptureFixture,
) -> None:
    api = FakeConfigMaps()
    api.objects[PATH] = {"data": {"commands": "shop/q cancel k.old uid-old\n"}}
    api.refusals = [ApiError(0, "Unreachable", "away")] * 3
    async with operator(api) as harness:
        entry = await harness.published()
        harness.dispatcher.close()
        harness.add("t", cancel=True)
        await asyncio.sleep(60)
        lines = api.objects[PATH]["data"]["commands"].splitlines()
    assert sorted(line.split()[-1] for line in lines) == ["uid-old", entry.uid]
    assert [one.getMessage() for one in caplog.records] == ["command.record_failed"]


words = st.text(
    st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="/"), min_size=1
)
commands = st.builds(
    WorkerCommand,
    st.sampled_from([CommandKind.CANCEL, CommandKind.RELEASE]),
    token=words,
    uid=words,
)
owed_by_queue = st.dictionaries(
    st.tuples(words, words), st.lists(commands, min_size=1, max_size=5, unique=True), max_size=4
)


@given(owed=owed_by_queue, foreign=st.lists(st.text(max_size=20), max_size=3))
def test_what_is_owed_is_read_as_it_was_written(
    owed: dict[QueueKey, list[WorkerCommand]], foreign: list[str]
) -> None:
    async def written_and_read() -> dict[QueueKey, list[WorkerCommand]]:
        api = FakeConfigMaps()
        first = record(api, lambda: owed)
        await first._read()
        await first.write()
        data = api.objects.get(PATH, {"data": {}})["data"]
        data["commands"] = "\n".join([data.get("commands", ""), *(f"{one} ?" for one in foreign)])
        api.objects[PATH] = {"data": data}
        found: dict[QueueKey, list[WorkerCommand]] = {}
        await record(api, lambda: {}, found.__setitem__)._read()
        return found

    assert asyncio.run(written_and_read()) == owed


async def test_process_that_ends_before_it_has_read_the_record_leaves_it() -> None:
    api = FakeConfigMaps()
    await record(api, lambda: {}).write()
    assert api.writes == 0
    api.objects[PATH] = {"data": {"commands": "shop/q cancel k.old uid-old\n"}}
    await record(api, lambda: {}).write()
    assert api.writes == 0


async def test_the_newest_commands_are_recorded_when_they_are_too_many(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(command_record, "RECORD_BYTES", 10 * len("shop/q cancel k.00 uid\n"))
    api = FakeConfigMaps()
    owed: list[WorkerCommand] = []
    kept = record(api, lambda: {KEY: owed})
    await kept._read()
    for number in range(13):
        owed.append(WorkerCommand(CommandKind.CANCEL, token=f"k.{number:02}", uid="uid"))
        await kept.write()
    lines = api.objects[PATH]["data"]["commands"].splitlines()
    assert [line.split()[2] for line in lines] == [f"k.{number:02}" for number in range(3, 13)]
    assert [one.getMessage() for one in caplog.records] == ["command.not_recorded"]


async def test_thousands_of_commands_cost_the_api_server_little() -> None:
    api = FakeConfigMaps()
    async with operator(api) as harness:
        harness.dispatcher.close()
        for number in range(4000):
            harness.dispatcher.send_command(CommandKind.CANCEL, f"k.{number:032}", f"uid-{number}")
            await asyncio.sleep(0.01)
        await asyncio.sleep(10)
        size = len(api.objects[PATH]["data"]["commands"])
        assert size > 200_000
        assert api.writes < 100
