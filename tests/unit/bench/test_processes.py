"""Whose CPU time is whose."""

import pytest

from tests.bench.processes import CpuSample, Process, between, descendants, kind, parse_stat


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (("/opt/programs/kube-apiserver", "--advertise-address=10.0.0.2"), "kube-apiserver"),
        (("etcd",), "etcd"),
        (("/usr/lib/erlang/bin/beam.smp", "-W", "w"), "rabbitmq"),
        (("python3", "-m", "taskqueue", "operator"), "operator"),
        (("python3", "-m", "taskqueue", "worker", "noop"), "workers"),
        (("/usr/bin/containerd-shim-runc-v2", "-namespace"), "containerd"),
        (("coredns",), "rest of the cluster"),
        ((), "rest of the cluster"),
    ],
)
def test_a_process_is_known_by_its_command(command: tuple[str, ...], expected: str) -> None:
    assert kind(command) == expected


def test_a_stat_line_may_have_brackets_in_its_name() -> None:
    line = "42 (a) b (c)) S 7 42 42 0 -1 4194560 100 0 0 0 250 150 0 0 20 0 1 0 100 0 0"
    process = parse_stat(42, line, b"/bin/a\0--flag\0")
    assert (process.pid, process.parent) == (42, 7)
    assert process.command == ("/bin/a", "--flag")
    assert process.cpu_seconds == pytest.approx(4.0)


def test_a_tree_holds_children_of_children_only() -> None:
    parents = {1: 0, 2: 1, 3: 2, 4: 3, 5: 1}
    processes = {pid: Process(pid, parent, (), 0.0) for pid, parent in parents.items()}
    assert descendants(processes, 2) == {2, 3, 4}


def test_time_between_samples_is_by_kind_and_the_rest_is_the_machines() -> None:
    before = CpuSample({1: ("etcd", 10.0), 2: ("workers", 1.0)}, machine=100.0)
    after = CpuSample({1: ("etcd", 10.5), 2: ("workers", 2.0), 3: ("workers", 0.5)}, machine=103.0)
    assert between(before, after) == {
        "workers": 1.5,
        "etcd": 0.5,
        "everything else on the machine": 1.0,
    }
