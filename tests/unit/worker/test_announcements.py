"""A worker writes what the operator of its own installation has last said that it reads."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskqueue.contract.command import BATCHES, RESERVED_TYPES, WorkerCommand, decode, encode
from taskqueue.model.command import CommandKind
from tests.unit.worker.harness import RuntimeHarness

ANNOUNCEMENTS = st.builds(
    WorkerCommand,
    kind=st.just(CommandKind.CANCEL),
    token=st.just("none"),
    understands=st.frozensets(st.sampled_from([BATCHES, RESERVED_TYPES, "what-comes-later"])),
    installation=st.sampled_from(["default", "team-a", "team-b", ""]),
)


@given(installation=st.sampled_from(["default", "team-a"]), said=st.lists(ANNOUNCEMENTS))
def test_the_last_word_of_the_own_installation_counts(
    installation: str, said: list[WorkerCommand]
) -> None:
    async def run() -> None:
        harness = RuntimeHarness(installation=installation)
        for each in said:
            harness.runtime.on_command(decode(encode(each)))
        own = [each.understands for each in said if each.installation == installation]
        understood = own[-1] if own else frozenset()
        assert harness.outbox.batches == (BATCHES in understood)
        assert harness.runtime._reporter._prefixed == (RESERVED_TYPES in understood)

    asyncio.run(run())


@pytest.mark.parametrize(("installation", "heeded"), [("default", True), ("team-a", False)])
async def test_an_older_operators_word_counts_for_the_default_installation_only(
    installation: str, heeded: bool
) -> None:
    older = b'{"order": "cancel", "token": "none", "uid": "none", "understands": ["batches"]}'
    harness = RuntimeHarness(installation=installation)
    harness.runtime.on_command(decode(older))
    assert harness.outbox.batches is heeded
