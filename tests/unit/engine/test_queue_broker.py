"""What a TaskQueue's side of the broker keeps in mind over failures, with stand-ins."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, cast

import pytest

from taskqueue.broker.connection import BrokerParameters, BrokerUnavailable
from taskqueue.broker.contract import dead_queue
from taskqueue.broker.publisher import Publisher
from taskqueue.cluster.client import ApiClient, ApiError
from taskqueue.domain.queue import QueueConfig
from taskqueue.engine import queue_broker
from taskqueue.engine.broker_link import BrokerLink, State, Up
from taskqueue.engine.dispatcher import Dispatcher
from taskqueue.engine.queue_broker import QueueBroker

ONE = BrokerParameters(host="one", port=5672, username="u", password="p")
OTHER = BrokerParameters(host="other", port=5672, username="u", password="p")
CONFIG = QueueConfig(namespace="shop", name="q", uid="u", generation=1, connection_secret="rabbit")
#: host, username and password, in base64.
SECRET = {"data": {"host": "b25l", "username": "dQ==", "password": "cA=="}}


class FakeChannel:
    async def close(self) -> None: ...


class FakeConnection:
    blocked: str | None = None

    async def channel(self) -> FakeChannel:
        return FakeChannel()


class FakeLink:
    def __init__(self, parameters: BrokerParameters) -> None:
        self.parameters = parameters
        self.state: State = up()
        self.subscribed = 0

    def subscribe(self, callback: Callable[[], None]) -> None:
        self.subscribed += 1

    def unsubscribe(self, callback: Callable[[], None]) -> None:
        self.subscribed -= 1


class FakeDispatcher:
    def __init__(self) -> None:
        self.republished = 0
        self.opened = 0
        self.published = 0

    def open(self, publisher: Publisher) -> None:
        self.opened += 1

    def close(self) -> None: ...

    def republish_all(self) -> int:
        self.republished += 1
        return 1

    def observed_ready(self, ready: int, *, reporting: bool) -> None: ...


class FakeClient:
    """Answers as told: an error to raise, or an object."""

    def __init__(self) -> None:
        self.secret: ApiError | Mapping[str, Any] = SECRET

    async def get(self, path: str, **_: str) -> Mapping[str, Any]:
        if isinstance(self.secret, ApiError):
            raise self.secret
        return self.secret


def up() -> Up:
    return Up(cast(Publisher, object()), cast(Any, FakeConnection()))


class Case:
    def __init__(self) -> None:
        self.dispatcher, self.client = FakeDispatcher(), FakeClient()
        self.link = FakeLink(ONE)
        self.now = 100.0
        self.side = QueueBroker(
            CONFIG,
            dispatcher=cast(Dispatcher, self.dispatcher),
            client=cast(ApiClient, self.client),
            links=lambda parameters: cast(BrokerLink, self.link),
            wake=lambda: None,
            monotonic=lambda: self.now,
        )

    async def reconnected(self, link: FakeLink | None = None) -> None:
        """Have the loop find a new connection of this link, or another, and look at it."""
        self.link = link or self.link
        self.link.state = up()
        self.now += 60.0
        await self.side.reach()


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The state of a broker that the test changes.

    ``ready`` and ``dead`` are the messages in the queues, None: no queue; an exception is raised.
    ``failure`` is raised by the next declaration.
    """
    state: dict[str, Any] = {"ready": 0, "dead": 0, "failure": None}

    async def ready_messages(channel: object, queue: str) -> int | None:
        answer = state["dead" if queue == dead_queue(*CONFIG.key) else "ready"]
        if isinstance(answer, Exception):
            raise answer
        return cast("int | None", answer)

    async def declare(connection: object, namespace: str, queue: str) -> bool:
        created, state["ready"] = state["ready"] is None, state["ready"] or 0
        state["dead"] = state["dead"] or 0
        failure, state["failure"] = state["failure"], None
        if failure is not None:
            raise failure
        return created

    monkeypatch.setattr(queue_broker, "ready_messages", ready_messages)
    monkeypatch.setattr(queue_broker, "declare_task_queue", declare)
    return state


async def test_a_queue_that_is_there_is_opened_and_nothing_published_again(
    broker: dict[str, Any],
) -> None:
    case = Case()
    await case.side.reach()
    assert (case.dispatcher.opened, case.dispatcher.republished) == (1, 0)
    assert case.side.declared
    assert case.side.condition.status


async def test_a_lost_queue_is_remembered_over_a_failure_while_it_is_made_again(
    broker: dict[str, Any],
) -> None:
    case = Case()
    broker |= {"ready": None, "failure": BrokerUnavailable("gone in the middle")}
    await case.side.reach()
    assert (case.dispatcher.opened, case.dispatcher.republished) == (0, 0)
    assert case.side.condition.reason == "DeclareFailed"
    assert broker["ready"] == 0  # it was made before the failure
    await case.reconnected()
    assert (case.dispatcher.opened, case.dispatcher.republished) == (1, 1)
    await case.reconnected()
    assert (case.dispatcher.opened, case.dispatcher.republished) == (2, 1)


async def test_another_broker_that_has_the_queue_gets_what_the_former_had(
    broker: dict[str, Any],
) -> None:
    case = Case()
    await case.side.reach()
    await case.reconnected(FakeLink(OTHER))
    assert case.dispatcher.republished == 1


async def test_a_secret_the_operator_may_not_read_is_said_in_a_condition() -> None:
    case = Case()
    case.client.secret = ApiError(403, "Forbidden", "no")
    await case.side.reach()
    assert case.side.condition.reason == "SecretForbidden"
    assert "shop/rabbit" in case.side.condition.message


@pytest.mark.parametrize("status", [403, 404])
async def test_a_connection_that_works_outlives_a_secret_that_cannot_be_read(
    broker: dict[str, Any], status: int
) -> None:
    case = Case()
    await case.side.reach()
    case.client.secret = ApiError(status, "No", "no")
    case.now += 60.0
    await case.side.reach()
    assert case.side.declared
    assert case.link.subscribed == 1
    assert case.side.parameters is not None


async def test_a_connection_is_given_up_for_a_secret_that_is_wrong(broker: dict[str, Any]) -> None:
    case = Case()
    await case.side.reach()
    case.client.secret = {"data": {}}
    case.now += 60.0
    await case.side.reach()
    assert (case.side.declared, case.link.subscribed) == (False, 0)
    assert case.side.condition.reason == "SecretInvalid"
    assert "Secret shop/rabbit (spec.broker.connectionSecret): key host" in (
        case.side.condition.message
    )


async def test_another_secret_is_read_at_once(broker: dict[str, Any]) -> None:
    case = Case()
    await case.side.reach()
    case.side.reconfigure(replace(CONFIG, connection_secret="other"))
    assert (case.side.declared, case.side.secret) == (False, None)
    await case.side.reach()
    assert case.side.secret == ("shop", "other")
    assert case.link.subscribed == 1


async def test_both_queues_are_counted(broker: dict[str, Any]) -> None:
    case = Case()
    await case.side.reach()
    broker |= {"ready": 3, "dead": 2}
    await case.side.count()
    assert (case.side.ready, case.side.dead_letters) == (3, 2)


async def test_what_cannot_be_counted_is_unknown_and_never_zero(broker: dict[str, Any]) -> None:
    case = Case()
    await case.side.reach()
    broker |= {"dead": BrokerUnavailable("lost")}
    await case.side.count()
    assert (case.side.declared, case.side.dead_letters) == (False, None)


async def test_a_dead_queue_that_is_deleted_is_made_again_and_no_task_published_twice(
    broker: dict[str, Any],
) -> None:
    case = Case()
    await case.side.reach()
    broker |= {"dead": None}
    await case.side.count()
    assert (case.side.declared, case.side.dead_letters) == (False, None)
    case.now += 60.0
    await case.side.reach()
    await case.side.count()
    assert (case.side.declared, case.side.dead_letters) == (True, 0)
    assert case.dispatcher.republished == 0


async def test_more_dead_letters_are_logged_and_fewer_are_not(
    broker: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    case = Case()
    await case.side.reach()
    for dead in (4, 4, 1, 3):
        broker["dead"] = dead
        await case.side.count()
    logged = [record for record in caplog.records if record.message == "queue.dead_letters"]
    (record,) = logged
    fields = vars(record)["fields"]
    assert (fields["dead_letters"], fields["more"]) == (3, 2)


async def test_leaving_lets_go_of_the_link(broker: dict[str, Any]) -> None:
    case = Case()
    await case.side.reach()
    await case.side.leave()
    assert (case.side.declared, case.link.subscribed) == (False, 0)
    assert case.side.parameters is not None  # the queues may still have to be deleted
