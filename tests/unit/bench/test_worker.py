"""What the worker benchmark starts, and what it makes of what it saw."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest
from rich.console import Console

from taskqueue.amqp.parameters import BrokerParameters
from taskqueue.contract.names import work_queue
from taskqueue.worker.settings import WorkerSettings
from tests.bench import cluster, worker
from tests.bench.brokers import Broker
from tests.bench.deadline import BenchError
from tests.bench.machine import cores
from tests.bench.peers import peer as peers
from tests.bench.processes import CpuSample
from tests.bench.report import Report
from tests.bench.worker import Cpu, Round

PARAMETERS = BrokerParameters(
    host="10.0.0.1", port=30672, username="us er", password="p/w", virtual_host="bench"
)
BROKER = Broker(PARAMETERS, channel=None, publisher=None)  # type: ignore[arg-type]


def test_our_workers_are_the_real_ones_with_their_default_settings() -> None:
    ours = peers.ours("taskqueue", "noop", processes=2, slots=None)
    outcomes, *workers = ours.commands
    assert outcomes[-1] == "tests.bench.peers.outcomes"
    assert [command[1:5] for command in workers] == [
        ["-m", "taskqueue", "worker", "tests.bench.peers.handlers"]
    ] * 2
    settings = WorkerSettings.from_environment(peers.environment_of(ours, BROKER))
    assert work_queue(settings.namespace, settings.queue) == ours.queue
    assert settings.broker.read() == PARAMETERS
    assert "TASKQUEUE_CONCURRENCY" not in ours.environment
    assert settings.namespace == cluster.NAMESPACE


def test_slots_and_another_version_are_for_our_workers_only() -> None:
    ours = peers.ours("old", "noop", processes=1, slots=8, source=Path("/old"))
    environment = peers.environment_of(ours, BROKER)
    assert environment["TASKQUEUE_CONCURRENCY"] == "8"
    assert environment["PYTHONPATH"].startswith("/old")


def test_every_client_is_given_one_address() -> None:
    assert BROKER.uri == "amqp://us%20er:p%2Fw@10.0.0.1:30672/bench"
    assert BrokerParameters.from_mapping({"uri": BROKER.uri}) == PARAMETERS


def test_the_peers_get_as_many_processes_and_acknowledge_late(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(peers, "find_spec", lambda name: object())
    (dramatiq,) = peers.dramatiq(processes=2, threads=8, quorum=False).commands
    assert dramatiq[-4:] == ["--processes", "2", "--threads", "8"]
    (celery,) = peers.celery(processes=2).commands
    assert celery[celery.index("--concurrency") + 1] == "2"
    text = (peers.ROOT / "tests/bench/peers/celery_app.py").read_text()
    assert "task_acks_late = True" in text


def test_a_peer_that_is_not_installed_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "find_spec", lambda name: None)
    with pytest.raises(BenchError, match=r"celery is not installed: pip install .*\[bench\]"):
        peers.celery(processes=2)


def test_nobody_imports_the_peers_here() -> None:
    assert not {"celery", "dramatiq"} & set(sys.modules)


def test_a_round_is_the_peers_time_and_the_brokers_and_tells_of_others() -> None:
    before = Cpu(1.0, CpuSample({1: ("rabbitmq", 5.0), 2: ("etcd", 1.0)}, machine=10.0))
    after = Cpu(2.0, CpuSample({1: ("rabbitmq", 5.5), 2: ("etcd", 1.25)}, machine=12.0))
    one = worker._round(1000, 2.0, before, after)
    assert (one.rate, one.cpu, one.broker_cpu) == (500.0, 1.0, 0.5)
    assert one.others == pytest.approx(0.5 / (2.0 * cores()))
    assert worker._round(1000, 2.0, Cpu(1.0, None), Cpu(2.0, None)) == Round(500.0, 1.0)


def test_ratios_are_of_rounds_side_by_side() -> None:
    rounds = {
        "taskqueue": [Round(100, 1.0), Round(10, 1.0), Round(80, 1.0)],
        "dramatiq": [Round(50, 2.0), Round(10, 2.0), Round(20, 2.0)],
        "dramatiq_quorum": [Round(50, 2.0), Round(5, 2.0), Round(16, 2.0)],
        "celery": [Round(25, 4.0, 0.5), Round(5, 4.0, 0.5), Round(20, 4.0, 0.5)],
    }
    outcome = worker._report(rounds, Report(Console(file=io.StringIO(), width=100)))
    assert outcome.bench == "worker"
    assert outcome.ratios == {
        "vs_dramatiq": 2.0,
        "vs_dramatiq_quorum": 2.0,
        "vs_celery": 4.0,
    }
    assert outcome.figures == {
        "taskqueue_per_second": 80,
        "dramatiq_per_second": 20,
        "dramatiq_quorum_per_second": 16,
        "celery_per_second": 20,
    }
    assert outcome.details["cpu_ms_per_message"]["celery"] == {"workers": 4.0, "rabbitmq": 0.5}
    assert outcome.spread["vs_dramatiq"].high == 4.0
