"""The estimate of a TaskQueue's backlog, and the statistics it is made from, with stand-ins."""

from dataclasses import replace
from typing import Any

import pytest

from taskqueue.amqp.channel import BrokerUnavailable, QueueCounts
from taskqueue.controller.queues import broker_session
from taskqueue.controller.queues.backlog import BacklogEstimate
from taskqueue.controller.queues.broker_link import LinkDown
from taskqueue.kubernetes.client import ApiError
from tests.unit.controller.queues.broker_session_case import CONFIG, SECRET, Case, up


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
