"""What a TaskQueue's side of the broker keeps in mind over failures, with stand-ins."""

from dataclasses import replace
from typing import Any, cast

import pytest

from taskqueue.amqp.channel import BrokerUnavailable
from taskqueue.amqp.connection import Connection
from taskqueue.contract.topology import Queue, TopologyConflict
from taskqueue.controller.queues.broker_session import outboxes
from taskqueue.kubernetes.client import ApiError
from taskqueue.limits import TOPOLOGY_CHECK_SECONDS
from taskqueue.model.queue import ArchiveConfig
from taskqueue.model.webhook import SecretKey, WebhookConfig
from tests.unit.controller.queues.broker_session_case import CONFIG, ONE, OTHER, Case, FakeLink, up


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


ARCHIVED = replace(CONFIG, archive=ArchiveConfig(secret="archive"))


async def test_an_archive_has_an_outbox_as_soon_as_it_is_asked_for(broker: dict[str, Any]) -> None:
    case = Case()
    await case.session.ensure_declared(CONFIG)
    assert (broker["declared"], broker["sinks"], broker["unbound"]) == (1, (), ["archive"])
    assert case.session.outbox_connection("archive") is None
    await case.session.ensure_declared(ARCHIVED)
    assert (broker["declared"], broker["sinks"], broker["unbound"]) == (1, (), ["archive"])
    case.now += 1
    await case.session.ensure_declared(ARCHIVED)
    assert (broker["declared"], broker["sinks"], broker["unbound"]) == (
        2,
        ("archive",),
        ["archive"],
    )
    broker["outbox"] = 7
    await case.session.count_messages()
    assert case.session.outbox_waiting("archive") == 7
    await case.session.ensure_declared(ARCHIVED)
    assert broker["declared"] == 2
    case.now += 1
    await case.session.ensure_declared(CONFIG)
    assert (broker["declared"], broker["sinks"], broker["unbound"][-1]) == (3, (), "archive")
    await case.session.count_messages()
    assert case.session.outbox_waiting("archive") is None


async def test_an_outbox_that_is_missing_is_declared_again(broker: dict[str, Any]) -> None:
    case = Case()
    await case.session.ensure_declared(ARCHIVED)
    broker["outbox"] = None
    await case.session.count_messages()
    assert not case.session.declared
    case.now += 1
    await case.session.ensure_declared(ARCHIVED)
    assert broker["declared"] == 2


async def test_an_outbox_is_consumed_beside_what_is_published(broker: dict[str, Any]) -> None:
    case = Case()
    consuming = cast(Connection, object())
    case.link.state = replace(up(), consuming=consuming)
    await case.session.ensure_declared(ARCHIVED)
    assert case.session.outbox_connection("archive") is consuming
    assert case.session.outbox_connection("other") is None
    case.link.state = up()
    assert case.session.outbox_connection("archive") is None


async def test_a_webhook_has_an_outbox_until_it_is_removed(broker: dict[str, Any]) -> None:
    case = Case()
    one, two = (webhook(name) for name in ("one", "two"))
    await case.session.ensure_declared(replace(ARCHIVED, webhooks=(one, two)))
    assert broker["sinks"] == ("archive", "webhook-one", "webhook-two")
    assert broker["unbound"] == []
    await case.session.count_messages()
    assert case.session.outbox_waiting("webhook-two") == 0
    case.now += 1
    fewer = replace(two, phases=("Failed",))
    await case.session.ensure_declared(replace(ARCHIVED, webhooks=(fewer,)))
    assert broker["sinks"] == ("archive", "webhook-two")
    assert set(broker["unbound"]) == {"webhook-one", "webhook-two"}  # the latter as it was
    assert outboxes(replace(CONFIG, webhooks=(fewer,)))[0].events == ("task.failed",)


def webhook(name: str) -> WebhookConfig:
    return WebhookConfig(name=name, url="https://there", signing_secret=SecretKey("s", "k"))
