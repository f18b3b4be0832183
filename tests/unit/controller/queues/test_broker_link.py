"""A link goes on trying, whatever happens to it."""

import asyncio
from contextlib import suppress
from dataclasses import replace
from random import Random
from typing import Any, cast

import pytest
from prometheus_client import REGISTRY

from taskqueue.amqp.channel import BrokerUnavailable, Channel, ChannelRefused, Delivery
from taskqueue.amqp.parameters import BrokerParameters
from taskqueue.amqp.properties import BasicProperties
from taskqueue.amqp.publisher import Publisher, Settled
from taskqueue.contract.command import FIRST_COMMAND, decode
from taskqueue.contract.names import CONTROL_STREAM, EVENTS_EXCHANGE, OUTCOMES_EXCHANGE
from taskqueue.controller.queues import broker_link
from taskqueue.controller.queues.broker_link import BrokerLink, InboxMarkers, LinkDown, LinkUp
from taskqueue.limits import PARSED_EVENT_BYTES
from tests.unit.controller.fakes import FakeChannel, TaskHarness

KEY = "shop.q.task.succeeded"

pytestmark = pytest.mark.looptime

PARAMETERS = BrokerParameters(host="rabbit", port=5672, username="u", password="p")


async def test_unexpected_error_becomes_the_state_and_is_retried(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    failures = [ZeroDivisionError("odd"), BrokerUnavailable("refused")]

    async def connect(*_: Any, **__: Any) -> Any:
        raise failures.pop(0) if len(failures) > 1 else failures[0]

    monkeypatch.setattr(broker_link, "connect", connect)
    synced = asyncio.Event()
    synced.set()
    link = BrokerLink(
        PARAMETERS,
        installation="default",
        feed_synced=synced,
        markers=InboxMarkers(),
        random=Random(0),
    )
    reasons: list[str] = []

    def note() -> None:
        assert isinstance(link.state, LinkDown)
        reasons.append(link.state.reason)

    link.subscribe(note)
    task = asyncio.create_task(link.run())
    await asyncio.sleep(30)
    assert reasons == ["Failed", "BrokerUnavailable"]
    assert not task.done()
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


class SwallowingPublisher:
    """Confirms every marker; those before ``lost`` are taken by somebody else's consumer."""

    def __init__(self, reader: BrokerLink, *, lost: int) -> None:
        self.reader = reader
        self.lost = lost
        self.published = 0
        self.keys: list[str] = []

    async def publish_and_wait(
        self, exchange: str, key: str, body: bytes, properties: Any
    ) -> tuple[Settled, str]:
        self.published += 1
        self.keys.append(key)
        if self.published > self.lost:
            channel = cast(Channel, FakeChannel())
            self.reader._on_delivery(Delivery(channel, 1, False, exchange, key, properties, body))
        return Settled.CONFIRMED, ""


def make_link(markers: InboxMarkers, installation: str = "default") -> BrokerLink:
    return BrokerLink(
        PARAMETERS,
        installation=installation,
        feed_synced=asyncio.Event(),
        markers=markers,
        random=Random(0),
    )


async def catch_up(link: BrokerLink, publisher: SwallowingPublisher) -> None:
    broken: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    async with asyncio.timeout(60):
        await link._read_to_marker(cast(Publisher, publisher), broken)


async def test_a_marker_taken_by_a_former_leader_is_followed_by_another() -> None:
    link = make_link(InboxMarkers())
    publisher = SwallowingPublisher(link, lost=3)
    await catch_up(link, publisher)
    assert publisher.published == 4
    assert isinstance(link.state, LinkDown)
    assert link.state.reason == "ReadingInbox"


async def test_a_marker_may_be_read_by_another_link_of_the_process() -> None:
    markers = InboxMarkers()
    publisher = SwallowingPublisher(make_link(markers), lost=0)
    await catch_up(make_link(markers), publisher)
    assert publisher.published == 1


async def test_a_marker_of_another_process_counts_for_nothing() -> None:
    publisher = SwallowingPublisher(make_link(InboxMarkers()), lost=0)
    with pytest.raises(TimeoutError):
        await catch_up(make_link(InboxMarkers()), publisher)


async def test_a_marker_of_another_installation_is_acknowledged_and_counts_for_nothing() -> None:
    """The binding of a TaskQueue team-b in a namespace taskqueue-operator fits its key."""
    link, channel = make_link(InboxMarkers(), "team-a"), FakeChannel()
    link.on_message = lambda delivery, source: pytest.fail("not a message for the inbox")
    key, properties = "taskqueue-operator.team-b.marker", BasicProperties(type="marker")
    link._on_delivery(
        Delivery(cast(Channel, channel), 7, False, "taskqueue.outcomes", key, properties, b"")
    )
    assert channel.acked == [7]


async def test_a_marker_carries_the_installation() -> None:
    link = make_link(InboxMarkers(), "team-a")
    publisher = SwallowingPublisher(link, lost=1)
    await catch_up(link, publisher)
    assert set(publisher.keys) == {"taskqueue-operator.team-a.marker"}
    assert isinstance(link.state, LinkDown)
    assert "taskqueue-operator.team-a.inbox" in link.state.message


async def test_the_bindings_of_older_operators_are_removed_once_on_a_connection(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    unbound: list[tuple[object, str]] = []
    failures: list[Exception] = []

    async def unbind_all_keys(connection: object, installation: str) -> None:
        unbound.append((connection, installation))
        if failures:
            raise failures.pop()

    monkeypatch.setattr(broker_link, "unbind_all_keys", unbind_all_keys)
    link = make_link(InboxMarkers(), "team-a")
    one, other = (LinkUp(cast(Publisher, object()), cast(Any, object())) for _ in range(2))
    for _ in range(2):
        await link.unbind_all_keys(one)
    failures.append(ChannelRefused(403, "no"))
    await link.unbind_all_keys(other)
    assert unbound == [(one.connection, "team-a"), (other.connection, "team-a")]
    assert [record.getMessage() for record in caplog.records] == ["inbox.unbind_failed"]


async def test_links_of_one_broker_know_it_whoever_reads_its_marker_first() -> None:
    markers = InboxMarkers()
    reader, before, after, elsewhere = (make_link(markers) for _ in range(4))
    await catch_up(before, SwallowingPublisher(reader, lost=0))
    await catch_up(reader, SwallowingPublisher(reader, lost=0))
    await catch_up(after, SwallowingPublisher(reader, lost=0))
    await catch_up(elsewhere, SwallowingPublisher(elsewhere, lost=0))
    assert before.broker is reader.broker is after.broker
    assert elsewhere.broker is not reader.broker


class RecordingPublisher:
    """Confirms everything at once, and keeps it."""

    def __init__(self) -> None:
        self.published: list[tuple[str, str, bytes, Any]] = []

    def publish(
        self, exchange: str, key: str, body: bytes, properties: Any, on_settled: Any
    ) -> None:
        self.published.append((exchange, key, body, properties))
        on_settled(Settled.CONFIRMED, "")


async def test_a_message_on_which_the_intake_fails_is_parked_and_acknowledged() -> None:
    link, channel, publisher = make_link(InboxMarkers()), FakeChannel(), RecordingPublisher()
    link._publisher = cast(Publisher, publisher)

    def fail(delivery: Delivery, source: BrokerLink) -> None:
        raise ZeroDivisionError("odd")

    link.on_message = fail
    key = "shop.q.task.succeeded"
    link._on_delivery(
        Delivery(
            cast(Channel, channel), 7, False, "taskqueue.outcomes", key, BasicProperties(), b"body"
        )
    )
    ((exchange, dead_key, body, properties),) = publisher.published
    assert (exchange, dead_key, body) == ("taskqueue.dead", "shop.q", b"body")
    reason = "the operator failed on it: ZeroDivisionError('odd')"
    assert properties.headers == {"tq-error": reason, "tq-exchange": "taskqueue.outcomes"}
    assert channel.acked == [7]


class RefusingPublisher(RecordingPublisher):
    """Refuses the first publish, as a broker does whose queue has no leader just now."""

    def publish(
        self, exchange: str, key: str, body: bytes, properties: Any, on_settled: Any
    ) -> None:
        self.published.append((exchange, key, body, properties))
        on_settled(Settled.UNKNOWN if len(self.published) == 1 else Settled.CONFIRMED, "")


async def test_a_message_that_the_broker_refuses_to_park_is_parked_later() -> None:
    link, channel, publisher = make_link(InboxMarkers()), FakeChannel(), RefusingPublisher()
    link._publisher = cast(Publisher, publisher)
    key, properties = "shop.q.task.succeeded", BasicProperties()
    delivery = Delivery(
        cast(Channel, channel), 7, False, "taskqueue.outcomes", key, properties, b"body"
    )
    link.dead_letter_delivery(delivery, "it is bad")
    assert channel.acked == []
    await asyncio.sleep(6)
    assert channel.acked == [7]
    assert [body for _, _, body, _ in publisher.published] == [b"body", b"body"]


async def test_bad_messages_are_parked_byte_for_byte_and_counted_once_each() -> None:
    link, channel, publisher = make_link(InboxMarkers()), FakeChannel(), RefusingPublisher()
    link._publisher = cast(Publisher, publisher)
    harness = TaskHarness()
    link.on_message = harness.tasks.inbox.on_delivery
    bodies = [b"\xff", b"{", b'{"a": NaN}', b"[" * 1_000, b"", b" " * (PARSED_EVENT_BYTES + 1)]
    before = counted()
    for tag, body in enumerate(bodies):
        delivery = Delivery(
            cast(Channel, channel), tag, False, OUTCOMES_EXCHANGE, KEY, BasicProperties(), body
        )
        link._on_delivery(delivery)
    assert counted() - before == len(bodies) - 1, "the broker has refused the first"
    await asyncio.sleep(6)
    assert counted() - before == len(bodies)
    assert sorted(channel.acked) == list(range(len(bodies)))
    parked = publisher.published[1:]
    assert [body for _, _, body, _ in parked] == [*bodies[1:], bodies[0]]
    assert {(exchange, key) for exchange, key, _, _ in parked} == {("taskqueue.dead", "shop.q")}
    assert all(properties.headers["tq-error"] for _, _, _, properties in parked)


def counted() -> float:
    """Return how many messages this process has parked."""
    value = REGISTRY.get_sample_value("taskqueue_messages_parked_total")
    assert value is not None
    return value


async def test_what_is_declared_again_makes_another_state_and_no_stream_empty() -> None:
    link, publisher = make_link(InboxMarkers(), "team-a"), RecordingPublisher()
    states: list[object] = []
    link.subscribe(lambda: states.append(link.state))
    ups = [LinkUp(cast(Publisher, publisher), cast(Any, None)) for _ in range(3)]
    for names, up in zip(
        ([OUTCOMES_EXCHANGE], [CONTROL_STREAM], [EVENTS_EXCHANGE]), ups, strict=True
    ):
        link._on_recreated(frozenset(names), up)
    assert states == ups, "TaskQueues are declared on each"
    ((exchange, key, body, _),) = publisher.published
    assert (exchange, key) == ("", CONTROL_STREAM)
    assert decode(body) == replace(FIRST_COMMAND, installation="team-a")
