"""What KEDA does beside the HPA."""

from dataclasses import replace

import pytest

from tests.simulation.cluster import Cluster, Conditions
from tests.simulation.keda import FASTEST_BEHAVIOR, Keda, KedaSettings, Phases, Protocol
from tests.simulation.loads import Job
from tests.simulation.timeline import Timeline

PHASES = Phases(poll=10.0, sync=7.0, statistics=2.0)
AMQP = KedaSettings(protocol=Protocol.AMQP, polling_seconds=30, cooldown_seconds=60)


def followed(
    settings: KedaSettings, *jobs: Job, until: float, slots: int = 1
) -> list[tuple[float, int]]:
    conditions = Conditions(start_seconds=1.0, start_spread=0.0, slots=slots)
    cluster = Cluster(Timeline(), jobs, conditions, seed=1)
    Keda(cluster, settings, target=5, max_replicas=10, phases=PHASES)
    cluster.timeline.run(until)
    return cluster.sizes[1:]


def test_the_first_replica_comes_with_a_poll_and_the_last_goes_after_the_cooldown() -> None:
    # Polls at 10, 40, 70 ...; active last at 40; 100 is not yet more than 60 s later.
    assert followed(AMQP, Job(11.0, 1.0), until=300) == [(40.0, 1), (130.0, 0)]


def test_more_come_with_the_hpas_syncs() -> None:
    found = followed(AMQP, *(Job(5.0, 1000.0) for _ in range(50)), until=60)
    assert found == [(10.0, 1), (22.0, 4), (37.0, 8), (52.0, 10)]  # syncs at 7, 22, 37, 52


def test_over_amqp_what_runs_does_not_count_and_its_pod_goes() -> None:
    found = followed(AMQP, Job(0.0, 400.0), until=200)
    # Removed at 100, killed 30 s later, seen again by the poll at 130.
    assert found == [(10.0, 1), (100.0, 0), (130.0, 1)]


def test_over_http_what_runs_counts() -> None:
    http = KedaSettings(polling_seconds=30, cooldown_seconds=60)
    assert followed(http, Job(0.0, 400.0), until=400) == [(10.0, 1)]


def test_over_http_statistics_are_as_old_as_the_last_statistics() -> None:
    http = KedaSettings(polling_seconds=1, cooldown_seconds=3)
    # Told at 12 that there is one, at 17 that there is none; 16 was the last active poll.
    assert followed(http, Job(10.5, 0.5), until=100) == [(12.0, 1), (20.0, 0)]


def test_all_replicas_go_at_once_from_whatever_number() -> None:
    behavior = replace(FASTEST_BEHAVIOR, down_window_seconds=300.0)
    fast = KedaSettings(
        protocol=Protocol.AMQP, polling_seconds=1, cooldown_seconds=1, behavior=behavior
    )
    found = followed(fast, *(Job(5.0, 4.0) for _ in range(50)), until=200)
    # The last is taken at 39.
    assert found == [(10.0, 1), (22.0, 10), (40.0, 0)]


@pytest.mark.parametrize("seed", range(5))
def test_phases_are_by_chance_within_their_intervals(seed: int) -> None:
    phases = Phases.by_chance(AMQP, seed)
    assert phases == Phases.by_chance(AMQP, seed)
    assert 0 <= phases.poll < 30
    assert 0 <= phases.sync < 15
    assert 0 <= phases.statistics < 5
    assert phases != Phases.by_chance(AMQP, seed + 1)
