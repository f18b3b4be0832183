"""Loads are the same each time, and what their names say."""

import pytest

from tests.simulation import loads
from tests.simulation.loads import LoadCase


def per_second(load: LoadCase, begin: float, end: float) -> float:
    return sum(begin <= job.arrives < end for job in load.jobs) / (end - begin)


@pytest.mark.parametrize("make", loads.ALL)
def test_a_seed_gives_the_same_load_each_time_in_order_and_bounded(make: loads.Make) -> None:
    load = make(3)
    assert load == make(3)
    assert load.jobs == tuple(sorted(load.jobs, key=lambda job: job.arrives))
    assert 300 < len(load.jobs) < 15_000
    assert all(0 < job.seconds <= 180 for job in load.jobs)
    work = sum(job.seconds for job in load.jobs) / load.jobs[-1].arrives
    assert work < 0.7 * load.max_replicas, "no pool of this size would ever be done"


def test_steady_is_steady() -> None:
    load = loads.steady(1)
    assert load.steady is not None
    rates = [per_second(load, at, at + 240) for at in range(0, 1200, 240)]
    assert all(abs(rate - 4.5) < 0.5 for rate in rates)


def test_a_constant_load_has_no_chance_in_it() -> None:
    load = loads.constant(1)
    gaps = {
        round(after.arrives - before.arrives, 6)
        for before, after in zip(load.jobs, load.jobs[1:], strict=False)
    }
    assert gaps == {round(1 / 4.5, 6)}
    assert {job.seconds for job in load.jobs} == {1.0}


def test_a_step_goes_up_and_down() -> None:
    load = loads.step(1)
    assert per_second(load, 0, 300) < 1 < 6 < per_second(load, 300, 600)
    assert per_second(load, 600, 1200) < 1


def test_teeth_rise_and_break_off() -> None:
    load = loads.sawtooth(1)
    for tooth in range(0, 1800, 300):
        assert (
            per_second(load, tooth, tooth + 60) < 3 < 5 < per_second(load, tooth + 120, tooth + 180)
        )
        assert per_second(load, tooth + 180, tooth + 300) == 0


def test_nights_are_quiet_and_noons_busy() -> None:
    load = loads.diurnal(1)
    assert per_second(load, 0, 900) == 0
    assert per_second(load, 1500, 2100) > 5
    assert load.jobs[-1].arrives < 2700


@pytest.mark.parametrize("make", [loads.lognormal_times, loads.pareto_times])
def test_of_heavy_tailed_work_few_do_most(make: loads.Make) -> None:
    times = sorted((job.seconds for job in make(1).jobs), reverse=True)
    assert sum(times[: len(times) // 10]) > 0.5 * sum(times)
    assert times[len(times) // 2] < 1.5


def test_what_was_recorded_comes_in_bursts_and_has_a_tail() -> None:
    load = loads.recorded(1)
    assert load == loads.recorded(2), "there is one recording, whatever the seed"
    rates = [per_second(load, at, at + 10) for at in range(0, int(load.jobs[-1].arrives), 10)]
    assert max(rates) > 3 * sum(rates) / len(rates)
    times = sorted(job.seconds for job in load.jobs)
    assert times[int(0.99 * len(times))] > 5 * times[len(times) // 2]
