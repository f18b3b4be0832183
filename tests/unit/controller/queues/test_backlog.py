"""The backlog rule by rule; against a model of a broker: test_backlog_properties."""

from __future__ import annotations

from taskqueue.controller.queues.backlog import (
    EMPTY_STATISTICS_SECONDS,
    STATISTICS_SECONDS,
    BacklogEstimate,
    BacklogMeter,
)
from taskqueue.controller.tasks.published_attempts import LATE_SECONDS, PublishedPeak
from taskqueue.model.queue_stats import QueueStats

MISSING = "cannot be read"


def read(
    meter: BacklogMeter, now: float, *, waiting: int = 0, published: int = 0, foreign: int = 0
) -> BacklogEstimate:
    return meter.update_estimate(
        waiting=waiting, published=published, workers_foreign=foreign, now=now, error=MISSING
    )


def with_statistics(*, since: float = 0.0) -> BacklogMeter:
    meter = BacklogMeter()
    meter.expect_statistics(since)
    return meter


def test_own_tasks_are_the_backlog_wherever_they_are() -> None:
    meter = BacklogMeter()
    meter.set_ready(6, published=10, now=100.0)
    assert read(meter, 100.0, waiting=3, published=10) == BacklogEstimate(
        backlog=13, ready=6, running=4
    )


def test_more_ready_than_published_is_of_others() -> None:
    meter = BacklogMeter()
    meter.set_ready(15, published=10, now=100.0)
    assert read(meter, 100.0, published=10).backlog == 15


def test_tasks_that_ended_since_the_count_are_no_messages_of_others() -> None:
    meter = BacklogMeter()
    meter.set_ready(10, published=10, now=100.0)
    assert read(meter, 100.9, published=1) == BacklogEstimate(backlog=1, ready=10, running=0)


def test_what_was_not_counted_is_unknown_and_the_rest_still_holds() -> None:
    meter = BacklogMeter()
    meter.set_ready(20, published=10, now=100.0)
    meter.clear_ready()
    signal = read(meter, 101.0, waiting=1, published=10, foreign=2)
    assert signal == BacklogEstimate(backlog=13, ready=None, running=None)


def test_what_workers_have_beyond_their_tasks_is_of_others() -> None:
    meter = BacklogMeter()
    meter.set_ready(0, published=4, now=100.0)
    signal = read(meter, 100.0, published=4, foreign=3)
    assert signal == BacklogEstimate(backlog=7, ready=0, running=7)


def test_statistics_tell_of_direct_messages_that_workers_do_not_tell_of() -> None:
    meter = with_statistics()
    meter.set_ready(0, published=2, now=100.0)
    meter.set_statistics(QueueStats(0, 5), read_at=100.0)
    signal = read(meter, 100.0, published=2)
    assert signal == BacklogEstimate(backlog=5, ready=0, running=5)


def test_statistics_tell_of_direct_messages_hidden_behind_running_tasks() -> None:
    meter = with_statistics()
    meter.set_ready(10, published=10, now=100.0)
    assert read(meter, 100.0, published=10).backlog == 10
    meter.set_statistics(QueueStats(10, 10), read_at=100.0)
    signal = read(meter, 100.0, published=10)
    assert signal == BacklogEstimate(backlog=20, ready=10, running=10)


def test_workers_and_statistics_telling_of_the_same_messages_count_once() -> None:
    meter = with_statistics()
    meter.set_ready(7, published=0, now=100.0)
    meter.set_statistics(QueueStats(7, 3), read_at=100.0)
    assert read(meter, 100.0, foreign=3).backlog == 10


def test_new_messages_are_added_to_those_that_statistics_saw_running() -> None:
    meter = with_statistics()
    meter.set_statistics(QueueStats(0, 5), read_at=100.0)
    meter.set_ready(100, published=0, now=104.0)
    assert read(meter, 104.0).backlog == 105


def test_tasks_that_ended_before_the_statistics_were_read_do_not_come_back() -> None:
    meter = with_statistics()
    meter.set_ready(0, published=50, now=100.0)
    read(meter, 100.0, published=50)
    read(meter, 102.0, published=0)
    read(meter, 109.0, published=0)
    meter.set_statistics(QueueStats(0, 50), read_at=109.0)
    assert read(meter, 109.0).backlog == 0


def test_more_published_than_before_are_no_messages_of_others() -> None:
    meter = with_statistics()
    for second, number in enumerate((3, 0, 10)):
        read(meter, 100.0 + second, published=number)
    meter.set_statistics(QueueStats(10, 0), read_at=103.0)
    assert read(meter, 103.0, published=10).backlog == 10


def test_a_number_published_counts_until_it_ended_however_smaller_ones_vary() -> None:
    meter = with_statistics()
    meter.observe_published(1000, 0.0)
    for second in range(1, 60):
        meter.observe_published(second % 7, float(second))
    meter.set_statistics(QueueStats(0, 30), read_at=60.0)
    assert read(meter, 60.0, published=0).backlog == 30 - 6


def test_nothing_is_asked_of_statistics_that_are_not_wanted() -> None:
    meter = BacklogMeter()
    assert read(meter, 1e6).error == ""


def test_statistics_that_never_came_are_a_problem_after_a_while() -> None:
    meter = with_statistics(since=100.0)
    assert read(meter, 100.0 + STATISTICS_SECONDS).error == ""
    assert read(meter, 100.1 + STATISTICS_SECONDS).error == MISSING


def test_statistics_cut_off_hold_for_a_while_and_are_then_a_problem_with_a_lower_bound() -> None:
    meter = with_statistics()
    meter.set_statistics(QueueStats(4, 5), read_at=100.0)
    read(meter, 100.0, foreign=2)
    meter.set_ready(4, published=0, now=100.0)
    assert read(meter, 100.0 + STATISTICS_SECONDS) == BacklogEstimate(backlog=9, ready=4, running=5)
    later = read(meter, 100.1 + STATISTICS_SECONDS, foreign=2)
    assert later == BacklogEstimate(backlog=6, ready=4, running=2, error=MISSING)


def test_statistics_that_come_back_end_the_problem() -> None:
    meter = with_statistics()
    meter.set_statistics(QueueStats(0, 5), read_at=100.0)
    assert read(meter, 200.0).error == MISSING
    meter.set_statistics(QueueStats(0, 4), read_at=201.0)
    assert read(meter, 201.0) == BacklogEstimate(backlog=4, ready=None, running=None)


def test_zero_just_after_a_connection_is_not_believed() -> None:
    meter = with_statistics()
    meter.set_statistics(QueueStats(0, 5), read_at=100.0)
    meter.on_connected(105.0)
    meter.set_statistics(QueueStats(0, 0), read_at=104.9 + EMPTY_STATISTICS_SECONDS)
    assert read(meter, 104.9 + EMPTY_STATISTICS_SECONDS).backlog == 5
    meter.set_statistics(QueueStats(0, 0), read_at=105.0 + EMPTY_STATISTICS_SECONDS)
    assert read(meter, 105.0 + EMPTY_STATISTICS_SECONDS).backlog == 0


def test_zero_just_after_a_connection_does_not_end_the_wait_for_statistics() -> None:
    meter = with_statistics()
    meter.on_connected(100.0)
    meter.set_statistics(QueueStats(0, 0), read_at=109.0)
    assert read(meter, 109.0).error == MISSING


def test_zeros_that_are_not_believed_yet_are_no_missing_statistics() -> None:
    meter = with_statistics()
    meter.set_statistics(QueueStats(0, 0), read_at=100.0)
    meter.on_connected(105.0)
    for at in (106.0, 111.0):
        meter.set_statistics(QueueStats(0, 0), read_at=at)
    assert read(meter, 105.0 + STATISTICS_SECONDS).error == ""
    assert read(meter, 105.1 + STATISTICS_SECONDS).error == MISSING


def test_a_connection_after_a_connection_does_not_make_old_statistics_last() -> None:
    meter = with_statistics()
    meter.set_statistics(QueueStats(0, 5), read_at=100.0)
    for at in range(105, 140, 5):
        meter.on_connected(float(at))
    assert read(meter, 140.0) == BacklogEstimate(backlog=0, ready=None, running=None, error=MISSING)


def test_more_than_zero_just_after_a_connection_is_believed() -> None:
    meter = with_statistics()
    meter.on_connected(100.0)
    meter.set_statistics(QueueStats(0, 1), read_at=101.0)
    assert read(meter, 101.0).backlog == 1


def test_messages_given_back_over_a_lost_connection_count_once() -> None:
    meter = with_statistics()
    meter.set_statistics(QueueStats(1, 5), read_at=100.0)
    meter.on_connected(103.0)
    meter.set_ready(6, published=0, now=103.0)  # requeued
    assert read(meter, 103.0).backlog == 6


def test_other_statistics_start_over() -> None:
    meter = with_statistics()
    meter.set_statistics(QueueStats(0, 5), read_at=100.0)
    meter.expect_statistics(100.0)
    assert read(meter, 101.0).backlog == 0
    meter.expect_statistics(None)
    assert read(meter, 1000.0).error == ""


def test_the_most_published_is_of_the_time_since_it_was_last_asked() -> None:
    peak = PublishedPeak()
    for _ in range(3):
        peak.add(100.0)
    for _ in range(3):
        peak.remove(100.1)
    assert peak.pop(102.0) == 3
    assert peak.pop(102.0) == 0


def test_a_task_that_has_just_ended_counts_beside_the_one_published_in_its_place() -> None:
    peak = PublishedPeak()
    peak.add(100.0)
    peak.remove(101.0)
    peak.add(101.0 + LATE_SECONDS)
    assert peak.pop(101.0 + LATE_SECONDS) == 2
    assert peak.pop(150.0) == 2
    peak.remove(200.0)
    peak.add(200.1 + LATE_SECONDS)
    assert peak.pop(202.0) == 1


def test_a_message_taken_since_it_was_counted_counts_once() -> None:
    meter = BacklogMeter()

    def backlog(workers: int, now: float) -> int | None:
        return meter.update_estimate(
            waiting=0, published=0, workers_foreign=workers, now=now, error=""
        ).backlog

    meter.set_ready(1, published=0, now=0.0)
    assert backlog(0, 0.0) == 1
    assert backlog(1, 0.3) == 1  # a worker has said that it has it
    meter.set_ready(0, published=0, now=1.0)
    assert backlog(1, 1.0) == 1
    meter.set_ready(2, published=0, now=2.0)
    assert backlog(1, 2.0) == 3  # two more behind it
