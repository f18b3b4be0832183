"""A `BrokerSession` between stand-ins for its broker, its link, its client and its dispatcher."""

import base64
from collections.abc import Callable, Mapping
from typing import Any, cast

import pytest

from taskqueue.amqp.channel import QueueCounts
from taskqueue.amqp.parameters import BrokerParameters, ManagementEndpoint
from taskqueue.amqp.publisher import Publisher
from taskqueue.contract.names import dead_queue, work_queue
from taskqueue.contract.outbox import ARCHIVE_OUTBOX, Outbox
from taskqueue.controller.queues import broker_session
from taskqueue.controller.queues.broker_link import BrokerLink, LinkUp, State
from taskqueue.controller.queues.broker_session import BrokerSession
from taskqueue.controller.queues.statistics import StatisticsReader, StatisticsReaders, StatsReading
from taskqueue.controller.queues.user_sweeper import UserSweeper
from taskqueue.controller.tasks.dispatcher import Dispatcher
from taskqueue.kubernetes.client import ApiClient, ApiError
from taskqueue.model.queue import QueueConfig
from taskqueue.model.queue_stats import QueueStats

ONE = BrokerParameters(host="one", port=5672, username="u", password="p")
OTHER = BrokerParameters(host="other", port=5672, username="u", password="p")
CONFIG = QueueConfig(namespace="shop", name="q", uid="u", generation=1, connection_secret="rabbit")
OUTBOX = ARCHIVE_OUTBOX.name(*CONFIG.key, "team-a")
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
        self.is_open = False

    def open(self, publisher: Publisher) -> None:
        self.opened += 1
        self.is_open = True

    def close(self) -> None:
        self.is_open = False

    def republish_all(self) -> int:
        self.republished += 1
        return 1

    def on_ready_count(self, ready: int, *, reporting: bool) -> None: ...


class FakeReaders(StatisticsReaders):
    """Gives readers that read nothing; the test sets what they have read."""

    def __init__(self) -> None:
        self.readers: dict[ManagementEndpoint, StatisticsReader] = {}

    def acquire(
        self, endpoint: ManagementEndpoint, user: object, namespace: str = ""
    ) -> StatisticsReader:
        self.readers[endpoint] = StatisticsReader(endpoint, cast(Any, None))
        return self.readers[endpoint]

    def release(self, endpoint: ManagementEndpoint, user: object) -> None:
        del self.readers[endpoint]

    @property
    def only(self) -> StatisticsReader:
        (reader,) = self.readers.values()
        return reader


class FakeClient:
    """Answers as the test sets: an error to raise, or an object."""

    def __init__(self) -> None:
        self.secret: ApiError | Mapping[str, Any] = SECRET

    async def get(self, path: str, **_: str) -> Mapping[str, Any]:
        if isinstance(self.secret, ApiError):
            raise self.secret
        return self.secret


def up() -> LinkUp:
    return LinkUp(cast(Publisher, object()), cast(Any, FakeConnection()))


class Case:
    def __init__(self) -> None:
        self.dispatcher, self.client = FakeDispatcher(), FakeClient()
        self.link = FakeLink(ONE)
        self.readers = FakeReaders()
        self.now = 100.0
        self.bound: list[bool] = []
        self.session = BrokerSession(
            CONFIG.key,
            dispatcher=cast(Dispatcher, self.dispatcher),
            client=cast(ApiClient, self.client),
            links=lambda parameters: cast(BrokerLink, self.link),
            installation="team-a",
            on_change=lambda: None,
            on_declared=lambda: self.bound.append(self.session.is_bound),
            monotonic=lambda: self.now,
            readers=self.readers,
            sweeper=UserSweeper("team-a", lambda: None),
        )

    def name_endpoint(self, uri: str = "http://one:15672", key: str = "managementUri") -> None:
        """Have the Secret name an endpoint for statistics."""
        data = {**SECRET["data"], key: base64.b64encode(uri.encode()).decode()}
        self.client.secret = {"data": data}

    def set_statistics(self, ready: int, unacknowledged: int) -> None:
        """Have the statistics read just now."""
        figures = {work_queue(*CONFIG.key): QueueStats(ready, unacknowledged)}
        self.readers.only.reading = StatsReading(figures, self.now)

    async def reconnected(self, link: FakeLink | None = None) -> None:
        """Have the loop find a new connection of this link, or another, and look at it."""
        self.link = link or self.link
        self.link.state = up()
        self.now += 60.0
        await self.session.ensure_declared(CONFIG)


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The state of a broker that the test changes.

    ``ready`` and ``dead`` are the messages in the queues, None: no queue; an exception is raised.
    ``consumers`` are those of the work queue.
    ``failure`` is raised by the next declaration; ``declared`` counts them.
    """
    state: dict[str, Any] = {
        "ready": 0,
        "consumers": 0,
        "dead": 0,
        "failure": None,
        "declared": 0,
        "unbound": [],
        "outbox": 0,
    }

    async def ready_messages(channel: object, queue: str) -> int | None:
        names = {dead_queue(*CONFIG.key): "dead", OUTBOX: "outbox"}
        answer = state[names.get(queue, "ready")]
        if isinstance(answer, Exception):
            raise answer
        return cast("int | None", answer)

    async def count_queue(channel: object, queue: str) -> QueueCounts | None:
        ready = await ready_messages(channel, queue)
        return None if ready is None else QueueCounts(ready, state["consumers"])

    async def declare(
        connection: object,
        namespace: str,
        queue: str,
        installation: str,
        *,
        sinks: tuple[Outbox, ...],
    ) -> bool:
        assert installation == "team-a"
        state["sinks"] = tuple(one.sink for one in sinks)
        state["declared"] += 1
        created, state["ready"] = state["ready"] is None, state["ready"] or 0
        state["dead"] = state["dead"] or 0
        failure, state["failure"] = state["failure"], None
        if failure is not None:
            raise failure
        return created

    monkeypatch.setattr(broker_session, "ready_messages", ready_messages)
    monkeypatch.setattr(broker_session, "count_queue", count_queue)

    async def unbind(
        connection: object,
        sinks: tuple[Outbox, ...],
        namespace: str,
        queue: str,
        installation: str,
        *,
        needed: tuple[Outbox, ...],
    ) -> None:
        state["unbound"] += [one.sink for one in sinks if one not in needed]

    monkeypatch.setattr(broker_session, "declare_task_queue", declare)
    monkeypatch.setattr(broker_session, "unbind_outboxes", unbind)
    return state
