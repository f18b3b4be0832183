"""Pods are looked at soon after a change, at once after a worker stopped, rarely otherwise."""

from taskqueue.controller.pool.poll_backoff import (
    FIRST_PAUSE_SECONDS,
    LONGEST_PAUSE_SECONDS,
    PollBackoff,
)

NOBODY: frozenset[str] = frozenset()


def times(backoff: PollBackoff, begin: float, seconds: float) -> list[float]:
    """Ask every 0.1 s, and return when a look was due, from the beginning on."""
    moments = [round(begin + number / 10, 1) for number in range(int(seconds * 10))]
    return [now - begin for now in moments if backoff.pop_due("same", NOBODY, now)]


def test_while_nothing_changes_the_pause_doubles() -> None:
    found = [round(time, 1) for time in times(PollBackoff(), 0.0, 20)]
    assert found == [0, 0.5, 1.5, 3.5, 7.5, 12.5, 17.5]


def test_change_makes_a_poll_due_soon_and_resets_the_pause() -> None:
    backoff = PollBackoff()
    times(backoff, 0.0, 20)
    assert not backoff.pop_due("other", NOBODY, 17.6)
    assert backoff.pop_due("other", NOBODY, 17.5 + FIRST_PAUSE_SECONDS)
    assert backoff.pop_due("other", NOBODY, 18.6)


def test_stopped_worker_makes_a_poll_due_at_once() -> None:
    backoff = PollBackoff()
    times(backoff, 0.0, 20)
    assert backoff.pop_due("same", frozenset({"a"}), 17.7)
    assert not backoff.pop_due("same", frozenset({"a"}), 17.8)
    assert backoff.pop_due("same", frozenset({"a", "b"}), 17.8)


def test_removed_worker_makes_no_poll_due() -> None:
    backoff = PollBackoff()
    assert backoff.pop_due("same", frozenset({"a", "b"}), 0.0)
    assert not backoff.pop_due("same", frozenset({"a"}), 0.2)


def test_a_longer_pause_can_be_asked_for() -> None:
    backoff, now = PollBackoff(), 0.0
    assert backoff.pop_due("settled", NOBODY, now)
    pauses = []
    for _ in range(8):
        before = now
        while not backoff.pop_due("settled", NOBODY, now, longest=10.0):
            now += 0.5
        pauses.append(now - before)
    assert pauses[-2:] == [10.0, 10.0]
    assert max(pauses) > LONGEST_PAUSE_SECONDS
