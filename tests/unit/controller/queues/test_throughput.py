from itertools import pairwise

import pytest

from taskqueue.controller.queues.throughput import Throughput, ThroughputReading


def test_nothing_is_known_before_the_first_end() -> None:
    assert Throughput().read(1e6) == ThroughputReading(0, None)


def test_ends_of_the_last_minute_are_counted() -> None:
    meter = Throughput()
    for second in range(120):
        meter.on_task_ended(second, 0.5)
        meter.on_task_ended(second + 0.5, None)
    assert meter.read(120.0) == ThroughputReading(118, 0.5)  # of seconds 61 to 119
    assert meter.read(150.0) == ThroughputReading(58, 0.5)
    assert meter.read(200.0) == ThroughputReading(0, 0.5)


def test_a_reading_holds_so_that_a_decaying_minute_is_a_dozen_writes() -> None:
    meter = Throughput()
    for second in range(60):
        meter.on_task_ended(float(second), 1.0)
    readings = [meter.read(60.0 + second) for second in range(600)]
    changes = sum(before != after for before, after in pairwise(readings))
    assert 0 < changes <= 12
    assert readings[-1] == ThroughputReading(0, 1.0)


def test_the_mean_follows_recent_attempts() -> None:
    meter = Throughput()
    meter.on_task_ended(0.0, 2.0)
    meter.on_task_ended(0.0, 4.0)
    assert meter.read(0.0).mean_run_seconds == 3.0
    for _ in range(500):
        meter.on_task_ended(10.0, 1.0)
    assert meter.read(10.0).mean_run_seconds == pytest.approx(1.0, abs=0.01)


def test_the_mean_has_three_digits() -> None:
    meter = Throughput()
    meter.on_task_ended(0.0, 12.3456)
    assert meter.read(0.0).mean_run_seconds == 12.3
    meter = Throughput()
    meter.on_task_ended(0.0, 0.000123456)
    assert meter.read(0.0).mean_run_seconds == 0.000123
