"""A worker that has read a newer operator's announcement, when an older operator has taken over."""

from __future__ import annotations

import orjson
import pytest

from taskqueue.contract.command import FIRST_COMMAND
from taskqueue.contract.work import DirectMessage, parse_work
from taskqueue.model.command import CommandKind
from taskqueue.worker.outcome import failure
from tests.unit.skew.older_messages import WORK
from tests.unit.skew.test_older_messages import work as older_work
from tests.unit.worker.fakes import turn, work
from tests.unit.worker.harness import RuntimeHarness

pytestmark = pytest.mark.looptime


async def error_type(harness: RuntimeHarness) -> str:
    """Return the type of a failure that the worker itself has found, as it is published."""
    harness.executor.started[-1].done(failure("ChildDied", "it was killed", 0.0))
    await turn()
    (event,) = harness.publisher.settle()
    await turn()
    kind: str = orjson.loads(event.body)["data"]["error"]["type"]
    return kind


@pytest.mark.parametrize("name", WORK)
async def test_the_first_attempt_that_it_publishes_ends_what_was_announced(name: str) -> None:
    harness = RuntimeHarness(queue="images")
    harness.runtime.on_command(FIRST_COMMAND)
    harness.deliver(*older_work(name))
    message = parse_work(*older_work(name), exchange="taskqueue.work")
    # Whoever publishes a direct message is no operator.
    announced = isinstance(message, DirectMessage)
    assert harness.outbox.batches == announced
    if not announced:
        assert await error_type(harness) == "ChildDied"
        harness.deliver(work("k.2", queue="images", checkpointed=False))
        assert await error_type(harness) == "ChildDied"


async def test_an_attempt_that_is_answered_without_a_run_says_so_too() -> None:
    harness = RuntimeHarness()
    harness.command(CommandKind.CANCEL, "k.1")
    harness.runtime.on_command(FIRST_COMMAND)
    harness.deliver(work("k.1", checkpointed=None))
    assert not harness.executor.started
    assert not harness.outbox.batches


async def test_the_next_announcement_counts_again() -> None:
    harness = RuntimeHarness()
    harness.deliver(work("k.1", checkpointed=None))
    harness.runtime.on_command(FIRST_COMMAND)
    assert harness.outbox.batches
    assert await error_type(harness) == "taskqueue.ChildDied"
