"""The operator is killed, with Tasks in every state of their life; nothing is lost.

What may be repeated is what was dispatched and not recorded: at most a window a loss. The
summary of the test run shows how much.
"""

from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from tests.chaos.load import WINDOW, Load
from tests.e2e.harness import Harness
from tests.faults.watcher import Watcher, watching

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(400)]


@pytest.fixture
def watcher(harness: Harness) -> Iterator[Watcher]:
    with watching(harness.api, harness.rabbitmq, harness.namespace) as watcher:
        yield watcher


def test_three_losses_in_every_phase(
    harness: Harness, load: Load, watcher: Watcher, summary_lines: list[str]
) -> None:
    load.start(short=100, long=120)
    losses: list[tuple[set[str], datetime]] = []
    while len(losses) < 3:
        # From the second on: in the midst of what the former left.
        load.wait_finished(len(load.finished()) + 20)
        losses.append((load.finished(), datetime.now(UTC)))
        with watcher.disturbance("the operator is killed"):
            harness.kill_operator()
        if len(losses) == 1:
            load.release()
    load.assert_nothing_was_lost()
    repeated = load.repeated()
    summary_lines.append(
        f"{sum(repeated.values())} of {len(load.attempts)} Tasks ran once more than recorded, "
        f"after {len(losses)} losses with a window of {WINDOW}"
    )
    assert sum(repeated.values()) <= len(losses) * WINDOW
    load.assert_not_run_after(*losses[0])
    load.assert_keys_were_kept()
    watcher.verdict().assert_clean()
