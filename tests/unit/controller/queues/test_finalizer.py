"""The end of a TaskQueue, with a broker and an API server that are there, away or refusing."""

import asyncio
from dataclasses import replace
from typing import Any, cast

import pytest

from taskqueue.amqp.channel import BrokerUnavailable, ChannelRefused
from taskqueue.amqp.connection import Connection
from taskqueue.amqp.parameters import BrokerParameters
from taskqueue.controller.queues.finalizer import REMOVAL_SECONDS, QueueFinalizer
from taskqueue.direct.management_http import ManagementError
from taskqueue.kubernetes.client import ApiClient, ApiError
from taskqueue.kubernetes.secret_values import SecretUnusable
from taskqueue.kubernetes.taskqueue_codec import QUEUES_FINALIZER
from taskqueue.model.queue import CredentialsPolicy, CredentialsType, QueueConfig

BROKER = BrokerParameters(host="one", port=5672, username="u", password="p")
CONFIG = QueueConfig(
    namespace="shop", name="q", uid="u", generation=1, connection_secret="rabbit",
    delete_queues=True, finalized=True, deleting=True,
)  # fmt: skip
MANAGED = replace(
    CONFIG,
    delete_queues=False,
    credentials=CredentialsPolicy(type=CredentialsType.MANAGED),
)
QUEUES = [
    "taskqueue.shop.q",
    "taskqueue-dead.shop.q",
    "taskqueue-operator.team-a.archive.shop.q",
]


class FakeBroker:
    """Keeps what is deleted; fails as the test sets, once for each entry of ``failures``."""

    def __init__(self) -> None:
        self.deleted: list[str] = []
        self.unbound: list[tuple[str, str, str]] = []
        self.failures: list[Exception] = []
        self.away = False
        self.hangs = False
        self.open = 0

    async def connect(self, parameters: BrokerParameters, *, name: str) -> Connection:
        assert name == "taskqueue-operator.team-a: delete queues"
        assert parameters == BROKER
        if self.hangs:
            await asyncio.Event().wait()
        if self.away:
            raise BrokerUnavailable("cannot connect to RabbitMQ at one:5672/")
        self.open += 1
        return cast(Connection, self)

    async def channel(self) -> Any:
        return FakeChannel(self)

    async def close(self) -> None:
        self.open -= 1


class FakeChannel:
    def __init__(self, broker: FakeBroker) -> None:
        self._broker = broker

    async def delete_queue(self, name: str) -> int:
        if self._broker.failures:
            raise self._broker.failures.pop()
        self._broker.deleted.append(name)
        return 0

    async def unbind_queue(self, queue: str, exchange: str, key: str) -> None:
        self._broker.unbound.append((queue, exchange, key))

    async def close(self) -> None: ...


class FakeApi:
    """One TaskQueue object, and the Events about it."""

    def __init__(self, *finalizers: str) -> None:
        self.metadata: dict[str, Any] = {"uid": "u", "resourceVersion": "7"}
        if finalizers:
            self.metadata["finalizers"] = list(finalizers)
        self.events: list[dict[str, Any]] = []
        self.patches = 0
        self.failure: ApiError | None = None
        self.conflicts = 0
        self.event_failure: ApiError | None = None

    async def get(self, path: str) -> dict[str, Any]:
        assert path.endswith("/namespaces/shop/taskqueues/q")
        if self.failure is not None:
            raise self.failure
        return {"metadata": self.metadata}

    async def merge(self, path: str, body: Any) -> None:
        assert body["metadata"].pop("resourceVersion") == "7"
        if self.conflicts:
            self.conflicts -= 1
            raise ApiError(409, "Conflict", "the object has been modified")
        self.patches += 1
        self.metadata |= body["metadata"]

    async def send(self, method: str, path: str, *, body: Any) -> None:
        assert (method, path) == ("POST", "/apis/events.k8s.io/v1/namespaces/shop/events")
        if self.event_failure is not None:
            raise self.event_failure
        self.events.append(body)


class Case:
    def __init__(self, config: QueueConfig = CONFIG, api: FakeApi | None = None) -> None:
        self.config = config
        self.broker = FakeBroker()
        self.api = api or FakeApi("other", QUEUES_FINALIZER)
        self.secret: SecretUnusable | BrokerParameters = BROKER
        self.management: ManagementError | None = None
        self.users_deleted = 0
        self.finalizer = QueueFinalizer(
            client=cast(ApiClient, self.api),
            installation="team-a",
            find_parameters=self._find,
            delete_users=self._delete_users,
            connect=self.broker.connect,
        )

    async def _find(self, config: QueueConfig) -> BrokerParameters:
        if isinstance(self.secret, SecretUnusable):
            raise self.secret
        return self.secret

    async def _delete_users(self, config: QueueConfig) -> None:
        assert config is self.config
        if self.management is not None:
            raise self.management
        self.users_deleted += 1


def now() -> float:
    return asyncio.get_running_loop().time()


@pytest.mark.looptime
async def test_both_queues_go_and_then_the_finalizer() -> None:
    case = Case()
    await case.finalizer.finalize(case.config, known=None)
    assert case.broker.deleted == QUEUES
    assert case.broker.unbound == [
        ("taskqueue-operator.team-a.inbox", "taskqueue.outcomes", "shop.q.#"),
        ("taskqueue-operator.team-a.inbox", "taskqueue.dead", "shop.q"),
        ("taskqueue-operator.team-a.heartbeats", "taskqueue.heartbeats", "shop.q.#"),
    ]
    assert case.broker.open == 0
    assert case.api.metadata["finalizers"] == ["other"]
    assert case.api.events == []
    await case.finalizer.finalize(case.config, known=None)
    assert (case.broker.deleted, case.api.patches) == (QUEUES, 1)


@pytest.mark.looptime
async def test_managed_users_go_and_the_queues_stay() -> None:
    case = Case(MANAGED)
    await case.finalizer.finalize(case.config, known=None)
    assert (case.users_deleted, case.broker.deleted) == (1, [])
    assert case.api.metadata["finalizers"] == ["other"]


@pytest.mark.looptime
async def test_users_and_queues_go_together() -> None:
    case = Case(replace(MANAGED, delete_queues=True))
    await case.finalizer.finalize(case.config, known=None)
    assert (case.users_deleted, case.broker.deleted) == (1, QUEUES)


@pytest.mark.looptime
async def test_users_that_cannot_be_deleted_delay_the_end_by_a_minute() -> None:
    case = Case(MANAGED)
    case.management = ManagementError("nothing listens there")
    await case.finalizer.finalize(case.config, known=None)
    assert now() == pytest.approx(REMOVAL_SECONDS, abs=0.1)
    assert case.api.metadata["finalizers"] == ["other"]
    (event,) = case.api.events
    assert "the users of the workers of shop/q could not be deleted" in event["note"]
    assert "nothing listens there" in event["note"]
    assert not any(name in event["note"] for name in QUEUES)


@pytest.mark.looptime
async def test_queues_are_left_alone_without_the_finalizer() -> None:
    case = Case(replace(CONFIG, finalized=False), FakeApi("other"))
    await case.finalizer.finalize(case.config, known=BROKER)
    assert (case.broker.deleted, case.api.patches) == ([], 0)


@pytest.mark.looptime
async def test_a_broker_that_comes_back_is_in_time() -> None:
    case = Case()
    case.broker.failures = [BrokerUnavailable("lost"), ChannelRefused(404, "no leader")]
    await case.finalizer.finalize(case.config, known=None)
    assert case.broker.deleted == QUEUES
    assert case.broker.open == 0
    assert 0 < now() < REMOVAL_SECONDS


@pytest.mark.looptime
@pytest.mark.parametrize("hangs", [False, True])
async def test_a_broker_that_stays_away_delays_the_end_by_a_minute(hangs: bool) -> None:
    case = Case()
    case.broker.away, case.broker.hangs = not hangs, hangs
    await case.finalizer.finalize(case.config, known=None)
    assert now() == pytest.approx(REMOVAL_SECONDS, abs=0.1)
    assert case.api.metadata["finalizers"] == ["other"]
    (event,) = case.api.events
    assert (event["type"], event["reason"]) == ("Warning", "QueuesNotDeleted")
    assert event["regarding"]["uid"] == "u"
    assert all(name in event["note"] for name in QUEUES[:2])
    assert ("one:5672" in event["note"]) is not hangs


@pytest.mark.looptime
async def test_a_secret_that_went_first_is_not_needed_any_more() -> None:
    case = Case()
    case.secret = SecretUnusable("SecretNotFound", "gone")
    await case.finalizer.finalize(case.config, known=BROKER)
    assert case.broker.deleted == QUEUES


@pytest.mark.looptime
async def test_an_unknown_broker_and_a_refused_event_keep_nothing_for_ever() -> None:
    case = Case()
    case.secret = SecretUnusable("SecretNotFound", "gone")
    case.api.event_failure = ApiError(403, "Forbidden", "the namespace is being terminated")
    await case.finalizer.finalize(case.config, known=None)
    assert case.api.metadata["finalizers"] == ["other"]


@pytest.mark.looptime
async def test_a_finalizer_that_could_not_go_goes_at_the_next_call() -> None:
    case = Case()
    case.api.failure = ApiError(500, "InternalError", "no")
    with pytest.raises(ApiError):
        await case.finalizer.finalize(case.config, known=None)
    case.api.failure = None
    await case.finalizer.finalize(case.config, known=None)
    assert case.broker.deleted == QUEUES  # once
    assert case.api.metadata["finalizers"] == ["other"]


async def test_finalizer_is_present_only_while_the_policy_asks_for_it() -> None:
    asks = replace(CONFIG, finalized=False, deleting=False)
    case = Case(asks, FakeApi())
    await case.finalizer.sync_finalizer(case.config)
    assert case.api.metadata["finalizers"] == [QUEUES_FINALIZER]
    await case.finalizer.sync_finalizer(case.config)
    assert case.api.patches == 1
    case.config = replace(asks, delete_queues=False, finalized=True)
    await case.finalizer.sync_finalizer(case.config)
    assert case.api.metadata["finalizers"] == []


async def test_no_request_is_made_for_a_queue_that_is_to_stay() -> None:
    case = Case(replace(CONFIG, delete_queues=False, finalized=False, deleting=False))
    case.api.failure = ApiError(500, "InternalError", "not to be asked")
    await case.finalizer.sync_finalizer(case.config)


async def test_finalizer_of_a_new_object_under_the_name_is_not_changed() -> None:
    api = FakeApi()
    api.metadata["uid"] = "another"
    case = Case(replace(CONFIG, finalized=False, deleting=False), api)
    await case.finalizer.sync_finalizer(case.config)
    assert api.patches == 0


async def test_others_may_write_the_object_at_the_same_time() -> None:
    case = Case(replace(CONFIG, finalized=False, deleting=False), FakeApi("other"))
    case.api.conflicts = 2
    await case.finalizer.sync_finalizer(case.config)
    assert case.api.metadata["finalizers"] == ["other", QUEUES_FINALIZER]
    case.config = replace(CONFIG, delete_queues=False)
    case.api.conflicts = 1000
    with pytest.raises(ApiError):
        await case.finalizer.sync_finalizer(case.config)
