"""What a TaskQueue's side of the broker keeps in mind over failures, with stand-ins."""

import base64
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, cast

import pytest

from taskqueue.amqp.channel import BrokerUnavailable, QueueCounts
from taskqueue.amqp.parameters import BrokerParameters, StatisticsEndpoint
from taskqueue.amqp.publisher import Publisher
from taskqueue.contract.names import dead_queue, work_queue
from taskqueue.contract.topology import Queue, TopologyConflict
from taskqueue.controller.queues import broker_session
from taskqueue.controller.queues.backlog import BacklogEstimate
from taskqueue.controller.queues.broker_link import BrokerLink, LinkDown, LinkUp, State
from taskqueue.controller.queues.broker_session import BrokerSession
from taskqueue.controller.queues.statistics import StatisticsReader, StatisticsReaders, StatsReading
from taskqueue.controller.tasks.dispatcher import Dispatcher
from taskqueue.kubernetes.client import ApiClient, ApiError
from taskqueue.limits import TOPOLOGY_CHECK_SECONDS
from taskqueue.model.queue import QueueConfig
from taskqueue.model.queue_stats import QueueStats

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
        self.readers: dict[StatisticsEndpoint, StatisticsReader] = {}

    def acquire(self, endpoint: StatisticsEndpoint, user: object) -> StatisticsReader:
        self.readers[endpoint] = StatisticsReader(endpoint, cast(Any, None))
        return self.readers[endpoint]

    def release(self, endpoint: StatisticsEndpoint, user: object) -> None:
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
    }

    async def ready_messages(channel: object, queue: str) -> int | None:
        answer = state["dead" if queue == dead_queue(*CONFIG.key) else "ready"]
        if isinstance(answer, Exception):
            raise answer
        return cast("int | None", answer)

    async def count_queue(channel: object, queue: str) -> QueueCounts | None:
        ready = await ready_messages(channel, queue)
        return None if ready is None else QueueCounts(ready, state["consumers"])

    async def declare(connection: object, namespace: str, queue: str, installation: str) -> bool:
        assert installation == "team-a"
        state["declared"] += 1
        created, state["ready"] = state["ready"] is None, state["ready"] or 0
        state["dead"] = state["dead"] or 0
        failure, state["failure"] = state["failure"], None
        if failure is not None:
            raise failure
        return created

    monkeypatch.setattr(broker_session, "ready_messages", ready_messages)
    monkeypatch.setattr(broker_session, "count_queue", count_queue)
    monkeypatch.setattr(broker_session, "declare_task_queue", declare)
    return state


async def test_a_queue_that_is_there_is_opened_and_nothing_published_again(
    broker: dict[str, Any],
) -> None:
    case = Case()
    await case.session.ensure_declared(CONFIG)
    assert (case.dispatcher.opened, case.dispatcher.republished) == (1, 0)
    assert case.session.declared
    assert case.session.condition.status


async def test_the_operator_is_told_when_the_events_of_a_queue_reach_it(
    broker: dict[str, Any],
) -> None:
    case = Case()
    broker["failure"] = BrokerUnavailable("gone in the middle")
    await case.session.ensure_declared(CONFIG)
    assert (case.bound, case.session.is_bound) == ([], False)
    await case.reconnected()
    assert case.bound == [True]
    case.link.state = up()  # perhaps of another broker, at the same address
    assert not case.session.is_bound
    await case.reconnected()
    assert case.bound == [True, True]
    await case.session.close()
    assert not case.session.is_bound


async def test_a_lost_queue_is_remembered_over_a_failure_while_it_is_made_again(
    broker: dict[str, Any],
) -> None:
    case = Case()
    broker |= {"ready": None, "failure": BrokerUnavailable("gone in the middle")}
    await case.session.ensure_declared(CONFIG)
    assert (case.dispatcher.opened, case.dispatcher.republished) == (0, 0)
    assert case.session.condition.reason == "DeclareFailed"
    assert broker["ready"] == 0  # it was made before the failure
    await case.reconnected()
    assert (case.dispatcher.opened, case.dispatcher.republished) == (1, 1)
    await case.reconnected()
    assert (case.dispatcher.opened, case.dispatcher.republished) == (2, 1)


async def test_another_broker_that_has_the_queue_gets_what_the_former_had(
    broker: dict[str, Any],
) -> None:
    case = Case()
    await case.session.ensure_declared(CONFIG)
    await case.reconnected(FakeLink(OTHER))
    assert case.dispatcher.republished == 1


@pytest.mark.parametrize(
    "change",
    [{"password": "new"}, {"username": "other"}, {"ca_certificate": "other"}],
    ids=lambda change: next(iter(change)),
)
async def test_changed_credentials_are_used_and_nothing_is_published_again(
    broker: dict[str, Any], change: dict[str, str]
) -> None:
    case = Case()
    await case.session.ensure_declared(CONFIG)
    await case.reconnected(FakeLink(replace(ONE, **change)))  # type: ignore[arg-type]
    assert (case.dispatcher.opened, case.dispatcher.republished) == (2, 0)
    assert case.session.condition.status


async def test_a_secret_the_operator_may_not_read_is_said_in_a_condition() -> None:
    case = Case()
    case.client.secret = ApiError(403, "Forbidden", "no")
    await case.session.ensure_declared(CONFIG)
    assert case.session.condition.reason == "SecretForbidden"
    assert "shop/rabbit" in case.session.condition.message


@pytest.mark.parametrize("status", [403, 404])
async def test_a_connection_that_works_outlives_a_secret_that_cannot_be_read(
    broker: dict[str, Any], status: int
) -> None:
    case = Case()
    await case.session.ensure_declared(CONFIG)
    case.client.secret = ApiError(status, "No", "no")
    case.now += 60.0
    await case.session.ensure_declared(CONFIG)
    assert case.session.declared
    assert case.link.subscribed == 1
    assert case.session.parameters is not None


async def test_a_connection_is_given_up_for_a_secret_that_is_wrong(broker: dict[str, Any]) -> None:
    case = Case()
    await case.session.ensure_declared(CONFIG)
    case.client.secret = {"data": {}}
    case.now += 60.0
    await case.session.ensure_declared(CONFIG)
    assert (case.session.declared, case.link.subscribed) == (False, 0)
    assert case.session.condition.reason == "SecretInvalid"
    assert "Secret shop/rabbit (spec.broker.connectionSecret): key host" in (
        case.session.condition.message
    )


async def test_another_secret_is_read_at_once(broker: dict[str, Any]) -> None:
    case = Case()
    await case.session.ensure_declared(CONFIG)
    other = replace(CONFIG, connection_secret="other")
    assert case.session.known_parameters(CONFIG) is not None
    assert case.session.known_parameters(other) is None
    await case.session.ensure_declared(other)
    assert case.session.secret == ("shop", "other")
    assert case.session.known_parameters(other) is not None
    assert case.link.subscribed == 1


async def test_both_queues_are_counted(broker: dict[str, Any]) -> None:
    case = Case()
    await case.session.ensure_declared(CONFIG)
    broker |= {"ready": 3, "dead": 2, "consumers": 4}
    await case.session.count_messages()
    assert (case.session.ready, case.session.dead_letters) == (3, 2)
    assert case.session.consumers == 4
    broker["ready"] = BrokerUnavailable("lost")
    await case.session.count_messages()
    assert case.session.consumers is None


async def test_what_cannot_be_counted_is_unknown_and_never_zero(broker: dict[str, Any]) -> None:
    case = Case()
    await case.session.ensure_declared(CONFIG)
    broker |= {"dead": BrokerUnavailable("lost")}
    await case.session.count_messages()
    assert (case.session.declared, case.session.dead_letters) == (False, None)


async def test_a_dead_queue_that_is_deleted_is_made_again_and_no_task_published_twice(
    broker: dict[str, Any],
) -> None:
    case = Case()
    await case.session.ensure_declared(CONFIG)
    broker |= {"dead": None}
    await case.session.count_messages()
    assert (case.session.declared, case.session.dead_letters) == (False, None)
    case.now += 60.0
    await case.session.ensure_declared(CONFIG)
    await case.session.count_messages()
    assert (case.session.declared, case.session.dead_letters) == (True, 0)
    assert case.dispatcher.republished == 0


async def test_queues_and_bindings_are_declared_again_every_ten_seconds(
    broker: dict[str, Any],
) -> None:
    case = Case()
    await case.session.ensure_declared(CONFIG)
    for _ in range(3):
        case.now += TOPOLOGY_CHECK_SECONDS - 1.0
        await case.session.ensure_declared(CONFIG)
        case.now += 1.0
        await case.session.ensure_declared(CONFIG)
        await case.session.count_messages()
    assert broker["declared"] == 4
    # Nothing was missing, so nothing starts over.
    assert (case.dispatcher.opened, case.dispatcher.republished, case.bound) == (1, 0, [True])
    assert (case.session.declared, case.session.condition.status) == (True, True)


async def test_another_state_of_the_link_has_them_declared_at_once(broker: dict[str, Any]) -> None:
    case = Case()
    await case.session.ensure_declared(CONFIG)
    case.now += 1.0
    case.link.state = up()  # an exchange was declared again, and has no bindings
    await case.session.ensure_declared(CONFIG)
    assert (broker["declared"], case.dispatcher.opened, case.session.is_bound) == (2, 2, True)


async def test_a_work_queue_that_is_missing_then_is_filled_again(broker: dict[str, Any]) -> None:
    case = Case()
    await case.session.ensure_declared(CONFIG)
    case.now += TOPOLOGY_CHECK_SECONDS
    broker |= {"ready": None, "failure": BrokerUnavailable("gone in the middle")}
    await case.session.ensure_declared(CONFIG)
    assert (case.dispatcher.is_open, case.session.declared) == (False, False)
    case.now += 1.0
    await case.session.ensure_declared(CONFIG)
    assert (case.dispatcher.is_open, case.dispatcher.republished) == (True, 1)


async def test_what_somebody_has_made_with_other_arguments_gets_no_more_work(
    broker: dict[str, Any],
) -> None:
    case = Case()
    await case.session.ensure_declared(CONFIG)
    case.now += TOPOLOGY_CHECK_SECONDS
    broker["failure"] = TopologyConflict(Queue("taskqueue.shop.q", {}), "inequivalent arg")
    await case.session.ensure_declared(CONFIG)
    assert case.session.condition.reason == "TopologyConflict"
    assert not case.dispatcher.is_open
    case.now += 1.0
    await case.session.ensure_declared(CONFIG)
    assert (case.dispatcher.is_open, case.session.condition.status) == (True, True)


async def test_more_dead_letters_are_logged_and_fewer_are_not(
    broker: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    case = Case()
    await case.session.ensure_declared(CONFIG)
    for dead in (4, 4, 1, 3):
        broker["dead"] = dead
        await case.session.count_messages()
    logged = [record for record in caplog.records if record.message == "dead_letters.increased"]
    (record,) = logged
    fields = vars(record)["fields"]
    assert (fields["dead_letters"], fields["added"]) == (3, 2)


# The estimate.


async def test_the_estimate_of_an_unavailable_broker_is_unknown_and_says_why(
    broker: dict[str, Any],
) -> None:
    case = Case()
    case.client.secret = ApiError(404, "NotFound", "no")
    await case.session.ensure_declared(CONFIG)
    estimate = case.session.estimate_backlog(waiting=3, published=2, workers_foreign=1)
    assert (estimate.backlog, estimate.ready, estimate.running) == (None, None, None)
    assert "SecretNotFound" in estimate.error
    assert "shop/rabbit" in estimate.error


async def test_a_connection_lost_makes_the_estimate_unknown_until_the_queue_is_declared_again(
    broker: dict[str, Any],
) -> None:
    case = Case()
    await case.session.ensure_declared(CONFIG)
    await case.session.count_messages()
    case.link.state = LinkDown("BrokerUnavailable", "gone")
    await case.session.ensure_declared(CONFIG)
    estimate = case.session.estimate_backlog(waiting=0, published=0)
    assert (estimate.backlog, estimate.error) == (
        None,
        "the broker is not ready: BrokerUnavailable: gone",
    )
    await case.reconnected()
    assert case.session.estimate_backlog(waiting=0, published=0).backlog == 0


async def test_the_estimate_without_statistics(broker: dict[str, Any]) -> None:
    case = Case()
    await case.session.ensure_declared(CONFIG)
    broker["ready"], case.dispatcher.published = 5, 3
    case.session.estimate_backlog(waiting=2, published=3, workers_foreign=4)
    await case.session.count_messages()
    case.now += 3600
    assert case.session.estimate_backlog(
        waiting=2, published=3, workers_foreign=4
    ) == BacklogEstimate(backlog=11, ready=5, running=4)


async def test_tasks_that_come_or_go_while_it_is_counted_are_no_messages_of_others(
    broker: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case()
    await case.session.ensure_declared(CONFIG)
    for before, after in ((7, 0), (0, 7)):
        case.dispatcher.published = before

        async def count_queue(channel: object, queue: str, after: int = after) -> QueueCounts:
            case.dispatcher.published = after
            return QueueCounts(7, 0)

        monkeypatch.setattr(broker_session, "count_queue", count_queue)
        await case.session.count_messages()
        assert case.session.estimate_backlog(waiting=0, published=after).backlog == after


async def test_a_count_that_fails_leaves_no_old_one_behind(broker: dict[str, Any]) -> None:
    case = Case()
    await case.session.ensure_declared(CONFIG)
    broker["ready"] = 9
    await case.session.count_messages()
    broker["ready"] = BrokerUnavailable("lost")
    await case.session.count_messages()
    broker["ready"] = 0
    await case.reconnected()
    assert case.session.estimate_backlog(waiting=0, published=0) == BacklogEstimate(
        backlog=0, ready=None, running=None
    )


async def test_the_statistics_that_the_secret_names_are_read(broker: dict[str, Any]) -> None:
    case = Case()
    case.name_endpoint()
    await case.session.ensure_declared(CONFIG)
    await case.session.count_messages()
    case.set_statistics(0, 4)
    assert case.session.estimate_backlog(waiting=0, published=1) == BacklogEstimate(
        backlog=4, ready=0, running=4
    )
    case.now += 60
    estimate = case.session.estimate_backlog(waiting=0, published=1, workers_foreign=2)
    assert (estimate.backlog, estimate.error != "") == (3, True)


async def test_the_most_published_since_the_last_estimate_are_no_messages_of_others(
    broker: dict[str, Any],
) -> None:
    case = Case()
    case.name_endpoint()
    await case.session.ensure_declared(CONFIG)
    case.set_statistics(3, 6)
    assert case.session.estimate_backlog(waiting=0, published=0, most_published=9).backlog == 0


async def test_messages_given_back_over_a_new_connection_count_once(broker: dict[str, Any]) -> None:
    case = Case()
    case.name_endpoint()
    await case.session.ensure_declared(CONFIG)
    await case.session.count_messages()
    case.set_statistics(0, 4)
    assert case.session.estimate_backlog(waiting=0, published=0).backlog == 4
    case.now += 5
    case.link.state = up()
    await case.session.ensure_declared(CONFIG)
    broker["ready"] = 4
    await case.session.count_messages()
    assert case.session.estimate_backlog(waiting=0, published=0).backlog == 4


async def test_a_wrong_endpoint_stops_no_connection_and_is_a_problem(
    broker: dict[str, Any],
) -> None:
    case = Case()
    case.name_endpoint("one:15672")
    await case.session.ensure_declared(CONFIG)
    assert case.session.declared
    case.now += 20
    estimate = case.session.estimate_backlog(waiting=1, published=0)
    assert estimate.backlog == 1
    assert estimate.error.startswith(
        "Secret shop/rabbit (spec.broker.connectionSecret): key managementUri must begin with"
    )


async def test_a_prometheus_endpoint_is_a_problem_that_names_the_key_to_use(
    broker: dict[str, Any],
) -> None:
    case = Case()
    case.name_endpoint("http://one:15692", key="prometheusUri")
    await case.session.ensure_declared(CONFIG)
    assert case.session.declared
    assert case.session.estimate_backlog(waiting=1, published=0).error == ""
    case.now += 20
    assert case.session.estimate_backlog(waiting=1, published=0) == BacklogEstimate(
        backlog=1,
        ready=None,
        running=None,
        error="Secret shop/rabbit (spec.broker.connectionSecret): key prometheusUri is no longer "
        "read: use managementUri",
    )


async def test_an_endpoint_named_later_is_read_over_the_same_connection(
    broker: dict[str, Any],
) -> None:
    case = Case()
    await case.session.ensure_declared(CONFIG)
    case.name_endpoint()
    case.now += 60
    await case.session.ensure_declared(CONFIG)
    assert case.readers.only.endpoint.url == "http://one:15672"
    assert case.dispatcher.opened == 1
    case.client.secret = SECRET
    case.now += 60
    await case.session.ensure_declared(CONFIG)
    assert case.readers.readers == {}


async def test_find_parameters_starts_no_reader(broker: dict[str, Any]) -> None:
    case = Case()
    case.name_endpoint()
    await case.session.find_parameters(CONFIG)
    assert case.readers.readers == {}


async def test_leaving_or_losing_the_secret_stops_the_reader(broker: dict[str, Any]) -> None:
    case = Case()
    case.name_endpoint()
    await case.session.ensure_declared(CONFIG)
    assert len(case.readers.readers) == 1
    other = replace(CONFIG, connection_secret="other")
    case.client.secret = ApiError(404, "NotFound", "no")
    await case.session.ensure_declared(other)
    assert case.readers.readers == {}
    case.name_endpoint()
    case.now += 60
    await case.session.ensure_declared(other)
    assert len(case.readers.readers) == 1
    await case.session.close()
    assert case.readers.readers == {}


async def test_leaving_lets_go_of_the_link(broker: dict[str, Any]) -> None:
    case = Case()
    await case.session.ensure_declared(CONFIG)
    await case.session.close()
    assert (case.session.declared, case.link.subscribed) == (False, 0)
    assert case.session.parameters is not None  # the queues may still have to be deleted
