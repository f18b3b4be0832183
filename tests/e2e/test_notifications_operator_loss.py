"""The operator is killed while it publishes what became of Tasks."""

import pytest

from tests.e2e.harness import Harness
from tests.e2e.test_notifications import Subscriber, queue, subscriber, user

__all__ = ["queue", "subscriber", "user"]

pytestmark = [pytest.mark.cluster, pytest.mark.broker]

#: More than are finished by the time the operator is dead.
STREAM = 120


def test_nothing_is_lost_when_the_operator_is_killed(
    harness: Harness,
    subscriber: Subscriber,
) -> None:
    names = harness.batch("stream", STREAM, "nap", payload={"seconds": 0.1})
    harness.finished(names[STREAM // 4])
    harness.kill_operator()
    harness.all_finished(names, seconds=120)
    for name in names:
        assert "Succeeded" in subscriber.line(name)
