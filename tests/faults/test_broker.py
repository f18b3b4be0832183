"""A RabbitMQ of three nodes is disturbed; each disturbance shows at a plain client."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pika
import pytest
import requests
from pika.adapters.blocking_connection import BlockingChannel
from pika.exceptions import AMQPConnectionError, ChannelClosedByBroker, ConnectionClosedByBroker

from tests.conftest import Kubectl
from tests.faults.broker import BrokerFaults
from tests.faults.broker_cluster import BrokerCluster, three_nodes
from tests.integration.amqp.own_broker import OwnBroker

pytestmark = [pytest.mark.cluster, pytest.mark.broker, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def broker_cluster(kubectl: Kubectl, node_address: str) -> Iterator[BrokerCluster]:
    name = f"test-{uuid.uuid4().hex[:10]}"
    with three_nodes(kubectl, name, node_address) as cluster:
        yield cluster


@pytest.fixture
def node(broker_cluster: BrokerCluster) -> OwnBroker:
    return broker_cluster.nodes[0]


@pytest.fixture
def faults(broker_cluster: BrokerCluster) -> BrokerFaults:
    return broker_cluster.faults[0]


def _connect(node: OwnBroker, user: str = "", password: str = "") -> pika.BlockingConnection:
    credentials = pika.PlainCredentials(user or node.username, password or node.password)
    return pika.BlockingConnection(
        pika.ConnectionParameters(node.host, node.port, credentials=credentials)
    )


@pytest.fixture
def connection(node: OwnBroker) -> Iterator[pika.BlockingConnection]:
    connection = _connect(node)
    yield connection
    if connection.is_open:
        connection.close()


@pytest.fixture
def channel(connection: pika.BlockingConnection) -> BlockingChannel:
    return connection.channel()


@pytest.mark.parametrize("kind", ["memory", "disk"])
def test_an_alarm_blocks_publishers_until_it_ends(
    connection: pika.BlockingConnection, channel: BlockingChannel, faults: BrokerFaults, kind: str
) -> None:
    blocked: list[bool] = []
    connection.add_on_connection_blocked_callback(lambda *_: blocked.append(True))
    connection.add_on_connection_unblocked_callback(lambda *_: blocked.append(False))

    def becomes(*states: bool) -> bool:
        connection.process_data_events(0.1)
        return blocked == list(states)

    with faults.memory_alarm() if kind == "memory" else faults.disk_alarm():
        assert faults.alarms() == {kind}
        channel.basic_publish("amq.topic", "nowhere", b"")
        faults.wait(lambda: becomes(True), what="blocked")
    faults.wait(lambda: becomes(True, False), what="unblocked")
    assert faults.alarms() == set()


def test_exchanges_queues_streams_and_bindings_are_deleted(
    connection: pika.BlockingConnection, channel: BlockingChannel, faults: BrokerFaults
) -> None:
    channel.exchange_declare("x.y", "topic", durable=True)
    for name, kind in (("a/b", "quorum"), ("log", "stream")):
        channel.queue_declare(name, durable=True, arguments={"x-queue-type": kind})
    channel.queue_bind("a/b", "x.y", "shop.#")
    channel.queue_bind("a/b", "x.y", "kept")
    channel.confirm_delivery()

    def reaches(key: str) -> bool:
        try:
            channel.basic_publish("x.y", key, b"", mandatory=True)
        except pika.exceptions.UnroutableError:
            return False
        return True

    assert reaches("shop.q")
    faults.delete_binding("x.y", "a/b", "shop.#")
    faults.wait(lambda: not reaches("shop.q"), what="unbound")
    assert reaches("kept")
    faults.delete_queue("a/b")
    faults.delete_queue("log")
    faults.delete_exchange("x.y")
    for name in ("a/b", "log"):
        with pytest.raises(ChannelClosedByBroker, match="404"):
            connection.channel().queue_declare(name, passive=True)
    with pytest.raises(ChannelClosedByBroker, match="404"):
        connection.channel().exchange_declare("x.y", passive=True)


def test_a_users_connections_are_closed_and_the_user_is_deleted(
    node: OwnBroker, faults: BrokerFaults
) -> None:
    faults.control("add_user", "guest-worker", "secret")
    faults.control("set_permissions", "guest-worker", ".*", ".*", ".*")
    theirs, ours = _connect(node, "guest-worker", "secret"), _connect(node)
    faults.close_connections("guest-worker")
    with pytest.raises(ConnectionClosedByBroker):
        theirs.process_data_events(10)
    ours.process_data_events(0)
    ours.close()
    faults.delete_user("guest-worker")
    with pytest.raises(AMQPConnectionError):
        _connect(node, "guest-worker", "secret")


def test_a_secret_is_deleted(
    broker_cluster: BrokerCluster, kubectl: Kubectl, faults: BrokerFaults
) -> None:
    where = ("-n", broker_cluster.namespace)
    kubectl.ok("create", "secret", "generic", "doomed", "--from-literal=host=here", *where)
    faults.delete_secret(broker_cluster.namespace, "doomed")
    assert "NotFound" in kubectl("get", "secret", "doomed", *where).stderr


def test_two_nodes_confirm_while_the_third_is_stopped(
    channel: BlockingChannel, broker_cluster: BrokerCluster
) -> None:
    channel.queue_declare("kept", durable=True, arguments={"x-queue-type": "quorum"})
    channel.confirm_delivery()
    last = len(broker_cluster.nodes) - 1
    everyone = {f"rabbitmq-{index}" for index in range(last + 1)}
    with broker_cluster.faults[last].stopped():
        assert broker_cluster.running() == everyone - {f"rabbitmq-{last}"}
        channel.basic_publish("", "kept", b"", pika.BasicProperties(delivery_mode=2))
        with pytest.raises(AMQPConnectionError):
            _connect(broker_cluster.nodes[last])
    broker_cluster.faults[0].wait(lambda: broker_cluster.running() == everyone, what="joined again")


def test_what_does_not_exist_cannot_be_deleted(faults: BrokerFaults) -> None:
    with pytest.raises(requests.HTTPError, match="404"):
        faults.delete_exchange("not.there")
