"""What a TaskQueue's loop keeps in mind over failures, with stand-ins for broker and API server."""

from collections.abc import Callable, Mapping
from typing import Any, cast

import pytest

from taskqueue.broker.connection import BrokerParameters, BrokerUnavailable
from taskqueue.broker.publisher import Publisher
from taskqueue.cluster.client import ApiClient, ApiError
from taskqueue.domain.queue import QueueConfig
from taskqueue.engine import queue_controller
from taskqueue.engine.broker_link import BrokerLink, State, Up
from taskqueue.engine.dispatcher import Dispatcher
from taskqueue.engine.queue_controller import QueueController, Totals

ONE = BrokerParameters(host="one", port=5672, username="u", password="p")
OTHER = BrokerParameters(host="other", port=5672, username="u", password="p")


class FakeChannel:
    async def close(self) -> None: ...


class FakeConnection:
    async def channel(self) -> FakeChannel:
        return FakeChannel()


class FakeLink:
    def __init__(self, parameters: BrokerParameters) -> None:
        self.parameters = parameters
        self.state: State = up()

    def subscribe(self, callback: Callable[[], None]) -> None: ...
    def unsubscribe(self, callback: Callable[[], None]) -> None: ...


class FakeDispatcher:
    waiting = published = slots = 0
    config: QueueConfig | None = None

    def __init__(self) -> None:
        self.republished = 0
        self.opened = 0

    def open(self, publisher: Publisher) -> None:
        self.opened += 1

    def close(self) -> None: ...

    def republish_all(self) -> int:
        self.republished += 1
        return 1


class FakeClient:
    """Answers as told: an error to raise, or an object."""

    def __init__(self) -> None:
        self.secret: ApiError | Mapping[str, Any] = {}
        self.status: ApiError | None = None

    async def get(self, path: str, **_: str) -> Mapping[str, Any]:
        if isinstance(self.secret, ApiError):
            raise self.secret
        return self.secret

    async def merge(self, path: str, body: Any) -> None:
        if self.status is not None:
            raise self.status


def up() -> Up:
    return Up(cast(Publisher, object()), cast(Any, FakeConnection()))


class Case:
    def __init__(self) -> None:
        self.dispatcher, self.client, self.gone = FakeDispatcher(), FakeClient(), 0
        self.link = FakeLink(ONE)
        self.controller = QueueController(
            QueueConfig(
                namespace="shop", name="q", uid="u", generation=1, connection_secret="rabbit"
            ),
            Totals(),
            dispatcher=cast(Dispatcher, self.dispatcher),
            client=cast(ApiClient, self.client),
            links=lambda parameters: cast(BrokerLink, self.link),
            clock=lambda: 1e9,
            created=0.0,
            on_gone=self._on_gone,
        )
        self.controller._link = cast(BrokerLink, self.link)

    def _on_gone(self) -> None:
        self.gone += 1


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """``ready``: messages in the queue, None: no queue; ``failure``: of the next declaration."""
    state: dict[str, Any] = {"ready": 0, "failure": None}

    async def ready_messages(channel: object, queue: str) -> int | None:
        return cast("int | None", state["ready"])

    async def declare(connection: object, namespace: str, queue: str) -> bool:
        created, state["ready"] = state["ready"] is None, 0
        failure, state["failure"] = state["failure"], None
        if failure is not None:
            raise failure
        return created

    monkeypatch.setattr(queue_controller, "ready_messages", ready_messages)
    monkeypatch.setattr(queue_controller, "declare_task_queue", declare)
    return state


async def test_a_queue_that_is_there_is_opened_and_nothing_published_again(
    broker: dict[str, Any],
) -> None:
    case = Case()
    await case.controller._declare(up())
    assert (case.dispatcher.opened, case.dispatcher.republished) == (1, 0)


async def test_a_lost_queue_is_remembered_over_a_failure_while_it_is_made_again(
    broker: dict[str, Any],
) -> None:
    case = Case()
    broker |= {"ready": None, "failure": BrokerUnavailable("gone in the middle")}
    await case.controller._declare(up())
    assert (case.dispatcher.opened, case.dispatcher.republished) == (0, 0)
    assert broker["ready"] == 0  # it was made before the failure
    await case.controller._declare(up())
    assert (case.dispatcher.opened, case.dispatcher.republished) == (1, 1)
    await case.controller._declare(up())
    assert case.dispatcher.republished == 1


async def test_another_broker_that_has_the_queue_gets_what_the_former_had(
    broker: dict[str, Any],
) -> None:
    case = Case()
    await case.controller._declare(up())
    case.controller._link = cast(BrokerLink, FakeLink(OTHER))
    await case.controller._declare(up())
    assert case.dispatcher.republished == 1


async def test_a_secret_the_operator_may_not_read_is_said_in_a_condition() -> None:
    case = Case()
    case.controller._link = None
    case.client.secret = ApiError(403, "Forbidden", "no")
    await case.controller._find_link()
    assert case.controller._broker.reason == "SecretForbidden"
    assert "shop/rabbit" in case.controller._broker.message


async def test_a_connection_that_works_outlives_a_secret_that_cannot_be_read() -> None:
    case = Case()
    case.client.secret = ApiError(404, "NotFound", "no")
    with pytest.raises(ApiError):
        await case.controller._find_link()
    assert case.controller._link is not None


async def test_a_status_that_finds_no_taskqueue_tells_that_it_is_gone() -> None:
    case = Case()
    case.client.status = ApiError(404, "NotFound", "no")
    await case.controller._write_status()
    assert case.gone == 1


async def test_a_refused_status_is_not_taken_for_written() -> None:
    case = Case()
    case.client.status = ApiError(422, "Invalid", "no")
    await case.controller._write_status()
    assert case.controller._written == {}
    case.client.status = None
    await case.controller._write_status()
    assert case.controller._written


async def test_a_failing_secret_keeps_neither_pool_nor_status_from_their_turn() -> None:
    case = Case()
    case.controller._link = None
    case.client.secret = ApiError(500, "InternalError", "no")
    with pytest.raises(ApiError):
        await case.controller._reconcile()
    assert case.controller.pool.decision is not None
    assert case.controller._written
