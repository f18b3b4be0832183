"""The cluster that integration and end-to-end tests run on, and what they need of it.

One cluster a session, opened through pytest-kind: found when it is up, made when it is not. It
stays up after the tests (``make cluster-down`` removes it). ``--cluster=current`` uses the cluster
of the present kubeconfig instead, and deploys nothing there.
"""

from __future__ import annotations

import base64
import gc
import json
import os
import shutil
import socket
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pytest_kind import KindCluster

from devcluster.cluster import open_cluster
from devcluster.deploy import deploy
from devcluster.paths import DEFAULT_NAME, KUBECONFIG, locked
from tests.e2e.api import Api, Refused
from tests.parallel import (
    LONG_FILES,
    RUN_TIMES,
    cluster_note,
    pytest_collection_modifyitems,
    pytest_runtest_protocol,
    pytest_xdist_make_scheduler,
    runs_in_parallel,
)

__all__ = [
    "pytest_collection_modifyitems",
    "pytest_runtest_protocol",
    "pytest_xdist_make_scheduler",
]


@dataclass(frozen=True)
class Cluster:
    """Where a cluster is, and which kubectl speaks to it."""

    kubeconfig: Path
    kubectl: Path


@dataclass(frozen=True)
class RabbitMQ:
    """The broker of the cluster, as a process on this machine reaches it."""

    host: str
    port: int
    management_port: int
    username: str
    password: str


class Kubectl:
    """Runs kubectl; a failure is returned, not raised, unless ``ok`` is used."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def __call__(
        self, *arguments: str, input: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*arguments),
            input=input,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )

    def command(self, *arguments: str) -> list[str]:
        """Return the command line for these arguments, to be run in another way."""
        return [
            str(self._cluster.kubectl),
            f"--kubeconfig={self._cluster.kubeconfig}",
            *arguments,
        ]

    def ok(self, *arguments: str, input: str | None = None) -> str:
        """Run and return the output; the test fails with kubectl's words when it fails."""
        done = self(*arguments, input=input)
        assert done.returncode == 0, f"kubectl {' '.join(arguments)}: {done.stderr}"
        return done.stdout


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.getgroup("kind").addoption(
        "--cluster",
        choices=["own", "current"],
        default="own",
        help="own: the development cluster (default); current: the cluster of KUBECONFIG",
    )


#: The name of a test's property that is printed at the end of the run.
SUMMARY_LINE = "summary"

_summary: list[str] = []


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Keep what a test has for the summary; it comes with the report of whichever worker ran it."""
    if report.when == "teardown":
        _summary.extend(
            f"{report.nodeid.rpartition('::')[2]}: {line}"
            for name, line in report.user_properties
            if name == SUMMARY_LINE
        )


def pytest_collection_finish() -> None:
    """Spare garbage collections the objects that stay: modules and tests, some millions.

    A worker's fork server collects when it starts, and tests fork it from this process.
    """
    gc.collect()
    gc.freeze()
    gc.collect()  # a full collection comes the sooner the less the last one left


#: How many tests were collected and not chosen; all workers collect the same.
_left_out = 0


def pytest_deselected(items: list[pytest.Item]) -> None:
    """Count the tests that are not run; they are the long ones if nothing else was asked for."""
    global _left_out
    _left_out += len(items)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Pass counts and times on to the process that prints the summary."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["left_out"] = _left_out
        session.config.workeroutput["times"] = RUN_TIMES.dump()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take the counts and times of a worker."""
    global _left_out
    output = getattr(node, "workeroutput", {})
    _left_out = output.get("left_out", _left_out)
    RUN_TIMES.load(output.get("times", ({}, {})))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print how long files took, what tests have measured, and how many were not run."""
    if terminalreporter.config.getoption("durations"):
        terminalreporter.section("groups, and the longest files")
        for line in RUN_TIMES.lines(early=LONG_FILES):
            terminalreporter.line(line)
    if _left_out:
        terminalreporter.section("not run")
        terminalreporter.line(f"{_left_out} tests; `make test-long` runs those that take long")
    if _summary:
        terminalreporter.section("measured")
        for line in _summary:
            terminalreporter.line(line)


@pytest.fixture(scope="session")
def kind_cluster(request: pytest.FixtureRequest) -> KindCluster:
    """pytest-kind's fixture, with kind-config.yaml and the kind that fits this machine."""
    name = request.config.getoption("cluster_name")
    kubeconfig = request.config.getoption("kubeconfig")
    return open_cluster(
        DEFAULT_NAME if name == "pytest-kind" else name,
        Path(kubeconfig) if kubeconfig else KUBECONFIG,
    )


@pytest.fixture(scope="session")
def cluster(request: pytest.FixtureRequest) -> Cluster:
    """The cluster, with RabbitMQ and the operator of this checkout running in it."""
    if request.config.getoption("cluster") == "current":
        kubectl = shutil.which("kubectl")
        assert kubectl, "--cluster=current needs kubectl on PATH"
        default = Path.home() / ".kube" / "config"
        return Cluster(Path(os.environ.get("KUBECONFIG", default)), Path(kubectl))

    def deployed() -> Cluster:
        kind: KindCluster = request.getfixturevalue("kind_cluster")
        deploy(kind)
        return Cluster(Path(kind.kubeconfig_path), Path(kind.kubectl_path))

    if not runs_in_parallel():
        return deployed()
    # The first worker deploys; the others wait for it and find what it has noted.
    note = cluster_note(request.config)
    with locked(note):
        if not note.exists():
            made = deployed()
            note.write_text(json.dumps([str(made.kubeconfig), str(made.kubectl)]))
    kubeconfig, kubectl = json.loads(note.read_text())
    return Cluster(Path(kubeconfig), Path(kubectl))


@pytest.fixture(scope="session")
def kubectl(cluster: Cluster) -> Kubectl:
    """Runs kubectl against the cluster."""
    return Kubectl(cluster)


@pytest.fixture(scope="session")
def node_address(kubectl: Kubectl) -> str:
    """The address at which NodePorts answer."""
    path = '{.items[0].status.addresses[?(@.type=="InternalIP")].address}'
    return kubectl.ok("get", "nodes", "-o", f"jsonpath={path}")


@pytest.fixture(scope="session")
def rabbitmq(kubectl: Kubectl, node_address: str) -> RabbitMQ:
    """The broker of devcluster/rabbitmq, through its NodePorts."""
    secret = json.loads(kubectl.ok("get", "secret", "rabbitmq", "-n", "rabbitmq", "-o", "json"))
    data = {key: base64.b64decode(value).decode() for key, value in secret["data"].items()}
    for port in (30672, 31672):
        wait_for_port(node_address, port)
    return RabbitMQ(
        host=node_address,
        port=30672,
        management_port=31672,
        username=data["username"],
        password=data["password"],
    )


def wait_for_port(host: str, port: int, *, seconds: float = 60) -> None:
    """Wait until a NodePort answers: it does so some time after its pod is Ready.

    The pod's address goes from the kubelet by way of the EndpointSlice to kube-proxy's rules.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection((host, port), timeout=5).close()
            return
        except OSError as problem:
            if time.monotonic() > deadline:
                pytest.fail(f"nothing answers at {host}:{port}: {problem}")
            time.sleep(0.1)


@pytest.fixture(scope="session")
def api_server(cluster: Cluster) -> Api:
    """A client of the API server, which costs less than a kubectl for each request."""
    return Api(cluster.kubeconfig)


@pytest.fixture
def namespace(make_namespace: Callable[[], str]) -> str:
    """A namespace of the test's own; it is gone, or going, afterwards."""
    return make_namespace()


@pytest.fixture
def make_namespace(api_server: Api) -> Iterator[Callable[[], str]]:
    """Makes namespaces, for tests that need several."""
    made: list[str] = []

    def make() -> str:
        name = f"test-{uuid.uuid4().hex[:10]}"
        api_server.request("POST", "/api/v1/namespaces", {"metadata": {"name": name}})
        made.append(name)
        return name

    yield make
    for name in made:
        with suppress(Refused):  # a test may have deleted it
            api_server.request("DELETE", f"/api/v1/namespaces/{name}")
