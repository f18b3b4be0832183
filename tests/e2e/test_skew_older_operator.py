"""Today's workers with an operator of an older commit, and operators that replace each other.

The operator of the cluster serves all namespaces, and so does an older one. So those here are
processes that serve an API group of the test's own, with today's CRDs, as after an update.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path

import pika
import pytest

from devcluster.paths import CHECKOUT
from tests.commits import OLDER, needs_older, sources
from tests.conformance import go
from tests.conftest import Cluster, Kubectl, RabbitMQ
from tests.e2e import go_worker, skew
from tests.e2e.api import Api
from tests.e2e.events import connect, events_of
from tests.e2e.gates import Gates
from tests.e2e.harness import Harness
from tests.e2e.operator_process import OperatorProcess, OperatorSources, own_group
from tests.e2e.skew import GO_ENDS, OLDER_IMAGE, PYTHON_ENDS, SLOTS, TODAYS
from tests.faults.watcher import Watcher, watching

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300), pytest.mark.long, needs_older]

#: More than run at once, so that some wait at the broker.
COUNT = 3 * SLOTS

#: Enough at once for a worker to join their events, if it thinks that the operator reads that.
MANY = 60


class Operators:
    """Runs the operators of the two versions, one at a time."""

    def __init__(
        self, versions: Mapping[str, OperatorSources], kubeconfig: Path, namespace: str, log: Path
    ) -> None:
        self._versions = versions
        self._kubeconfig = kubeconfig
        self._namespace = namespace
        self._log = log
        self._version = ""
        self._running: OperatorProcess | None = None

    def hand_over(self, version: str) -> None:
        """Replace the one that runs by that of a version, "older" or "todays", if it is another."""
        if self._version == version:
            return
        self.stop()
        self._version = version
        self._running = OperatorProcess(
            self._versions[version],
            kubeconfig=self._kubeconfig,
            namespace=self._namespace,
            log=self._log,
        )

    def stop(self) -> None:
        """Stop the one that runs."""
        if self._running is not None:
            self._running.stop()
            self._running = None


@pytest.fixture(scope="module")
def group(kubectl: Kubectl) -> Iterator[str]:
    """An API group that no other operator serves."""
    with own_group(kubectl, "skew") as group:
        yield group


@pytest.fixture(scope="module")
def operators(
    cluster: Cluster, kubectl: Kubectl, group: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Operators]:
    folder = tmp_path_factory.mktemp("operators")
    with sources(OLDER) as tree:
        versions = {
            name: OperatorSources(each, folder / name, group)
            for name, each in (("older", tree), ("todays", CHECKOUT))
        }
    namespace = group.partition(".")[0]
    kubectl.ok("create", "namespace", namespace)
    operators = Operators(versions, cluster.kubeconfig, namespace, folder / "log")
    yield operators
    operators.stop()
    kubectl.ok("delete", "namespace", namespace, "--wait=false")


@pytest.fixture(scope="module")
def harness(
    api: Api, kubectl: Kubectl, rabbitmq: RabbitMQ, group: str, operators: Operators
) -> Iterator[Harness]:
    """A namespace and a virtual host of which only the operators of this module know."""
    harness = Harness(api, kubectl, rabbitmq, group=group)
    # An address that is right for pods and for processes of this machine.
    address = f"{rabbitmq.username}:{rabbitmq.password}@{rabbitmq.host}:{rabbitmq.port}"
    uri = f"amqp://{address}/{harness.virtual_host()}"
    harness.secret("rabbit", uri=uri, host=None, username=None, password=None)
    yield harness
    try:
        harness.assert_ends_are_final()
    finally:
        harness.close()  # while there is an operator, for the finalizers
        harness.broker_api("DELETE", f"vhosts/{harness.namespace}")


@pytest.fixture(scope="module", autouse=True)
def queue(harness: Harness, gates: Gates, operators: Operators) -> None:
    operators.hand_over("older")
    skew.create_queue(harness, "q", skew.python_template(TODAYS))
    harness.ready()


def test_attempts_of_an_older_operator_end_as_they_should(harness: Harness) -> None:
    skew.assert_ends(harness, PYTHON_ENDS, queue="q")
    assert harness.tasks.versions("success")[-1]["status"]["result"] == {"page": 7}


def test_commands_of_an_older_operator_are_obeyed(harness: Harness) -> None:
    skew.assert_obeys(harness, "commanded", "watch", queue="q")


def test_an_unknown_handler_blocks_its_task(harness: Harness) -> None:
    skew.assert_is_blocked(harness, "unknown", "no-such-handler", queue="q")
    harness.delete_task("unknown")


def test_a_handler_may_save_checkpoints_that_nobody_keeps(harness: Harness) -> None:
    harness.task("steps", "steps", payload={"steps": 3, "seconds": 0.1})
    status = harness.finished("steps")
    assert (status["phase"], status["result"]) == ("Succeeded", {"begun": [0, 1, 2]})


@pytest.mark.parametrize("handler", ["echo", "give_up"])
def test_a_direct_message_ends(harness: Harness, handler: str) -> None:
    vhost = harness.namespace
    with events_of(harness, "q", virtual_host=vhost) as events:
        connection = connect(harness.rabbitmq, virtual_host=vhost)
        connection.channel().basic_publish(
            exchange="taskqueue.work",  # there is no other yet
            routing_key=f"{harness.namespace}.q",
            body=b'{"page": 7}',
            properties=pika.BasicProperties(
                type=handler, correlation_id=f"direct-{handler}", delivery_mode=2
            ),
        )
        data = events.of(f"direct-{handler}")["data"]
        connection.close()
    if handler == "echo":
        assert data["result"] == {"page": 7}
    else:
        assert data["error"]["type"] == "NotFound"


def test_todays_operator_takes_over_with_messages_in_flight(
    harness: Harness, gates: Gates, operators: Operators
) -> None:
    with watching_all(harness) as watcher:
        tasks = gates.behind("update", COUNT)
        skew.wait_running(harness, tasks, SLOTS)
        with watcher.disturbance("another operator takes over"):
            operators.hand_over("todays")
            harness.ready()
        gates.open("update")
        assert_all_succeeded(harness, tasks)
        watcher.verdict().assert_clean()


def test_an_older_operator_takes_over_from_todays(harness: Harness, operators: Operators) -> None:
    """The workers know that today's reads batches and prefixes, and the older one says nothing."""
    operators.hand_over("todays")
    skew.assert_ends(harness, PYTHON_ENDS, queue="q", prefix="todays-")
    operators.hand_over("older")
    names = harness.batch("many", MANY)
    skew.assert_ends(harness, PYTHON_ENDS, queue="q", prefix="back-")
    skew.assert_is_blocked(harness, "still-unknown", "no-such-handler", queue="q")
    harness.delete_task("still-unknown")
    assert_all_succeeded(harness, names)


@pytest.mark.skipif(go.go() is None, reason="Go is not installed")
def test_attempts_of_an_older_operator_end_on_go_workers(
    request: pytest.FixtureRequest, harness: Harness, operators: Operators, tmp_path: Path
) -> None:
    go_worker.put_image(skew.own_cluster(request), tmp_path)
    operators.hand_over("older")
    skew.create_queue(harness, "go", skew.go_template(go_worker.IMAGE))
    skew.assert_ends(harness, GO_ENDS, queue="go")
    skew.assert_obeys(harness, "go-commanded", "nap", queue="go")
    skew.assert_is_blocked(harness, "go-unknown", "no-such-handler", queue="go")
    harness.delete_task("go-unknown")


def test_older_workers_and_then_an_older_operator_come_back_with_messages_in_flight(
    request: pytest.FixtureRequest, harness: Harness, gates: Gates, operators: Operators
) -> None:
    with sources(OLDER) as tree:
        skew.put_older_image(request, tree)
    operators.hand_over("todays")
    with watching_all(harness) as watcher:
        tasks = gates.behind("return", COUNT)
        skew.wait_running(harness, tasks, SLOTS)
        skew.roll(harness, "q", skew.python_template(OLDER_IMAGE))
        skew.wait_running(harness, tasks, SLOTS)
        with watcher.disturbance("another operator takes over"):
            operators.hand_over("older")
            harness.ready()
        gates.open("return")
        assert_all_succeeded(harness, tasks)
        watcher.verdict().assert_clean()


def watching_all(harness: Harness) -> AbstractContextManager[Watcher]:
    """Record what happens in the module's namespace and virtual host."""
    vhost, group = harness.namespace, harness.group
    return watching(
        harness.api, harness.rabbitmq, harness.namespace, virtual_host=vhost, group=group
    )


def assert_all_succeeded(harness: Harness, names: list[str]) -> None:
    ended = harness.all_finished(names)
    assert {(one["phase"], one["attempts"]) for one in ended} == {("Succeeded", 1)}
