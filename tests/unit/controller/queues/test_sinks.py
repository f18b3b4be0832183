"""What is known of the sinks of all TaskQueues."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import pytest

from taskqueue.controller.completions.task_ends import TaskEnds
from taskqueue.controller.completions.webhook_networks import WebhookNetworks
from taskqueue.controller.queues.sinks import Sinks
from taskqueue.controller.queues.webhooks import MOST_MISSED, MissedEnds
from taskqueue.controller.tasks.dispatcher import Dispatcher
from taskqueue.controller.tasks.finished_tasks import FinishedTask
from taskqueue.kubernetes.client import ApiClient
from taskqueue.model.queue import ArchiveConfig, QueueConfig
from taskqueue.model.task import Policy
from taskqueue.model.webhook import SecretKey, WebhookConfig

PLAIN = QueueConfig(namespace="shop", name="q", uid="u", generation=1)
ARCHIVED = replace(PLAIN, archive=ArchiveConfig(secret="archive"))
KEY = PLAIN.key
NOTHING = cast(Any, None)
NOTIFIED = replace(
    PLAIN, webhooks=(WebhookConfig(name="a", url="x", signing_secret=SecretKey("s", "k")),)
)
RECORDED: list[str] = []


def sinks() -> Sinks:
    return Sinks(
        client=cast(ApiClient, None),
        installation="default",
        ends=cast(TaskEnds, None),
        on_recorded=lambda tasks: RECORDED.extend(one.name for one in tasks),
        since="",
        networks=WebhookNetworks(),
        clock=lambda: 0.0,
    )


async def test_a_queue_without_an_archive_is_safe_whatever_is_dropped() -> None:
    known = sinks()
    known.make(PLAIN, cast(Dispatcher, NOTHING))
    known.on_end_missed(KEY, "uid", dropped=True)
    assert known.is_safe(KEY)
    assert not known.holds_finished(KEY)


async def test_ends_are_safe_until_one_is_dropped() -> None:
    known = sinks()
    one = known.make(ARCHIVED, cast(Dispatcher, NOTHING))
    assert known.holds_finished(KEY)
    assert known.is_safe(KEY)  # a former leader has made the outbox
    known.on_end_missed(KEY, "uid", dropped=False)
    assert known.is_safe(KEY)
    known.on_end_missed(KEY, "uid", dropped=True)
    assert not known.is_safe(KEY)
    one.archiver.backfill.is_behind = False
    assert known.is_safe(KEY)


async def test_ends_are_not_safe_while_an_archive_is_new() -> None:
    known = sinks()
    one = known.make(PLAIN, cast(Dispatcher, NOTHING))
    known.on_reconfigured(ARCHIVED, PLAIN, one)
    assert known.holds_finished(KEY)
    assert not known.is_safe(KEY)


async def test_a_new_time_to_live_has_the_finished_tasks_looked_for() -> None:
    known = sinks()
    one = known.make(ARCHIVED, cast(Dispatcher, NOTHING))
    one.archiver.backfill._requested.clear()
    known.on_reconfigured(ARCHIVED, ARCHIVED, one)
    assert not one.archiver.backfill._requested.is_set()
    known.on_reconfigured(replace(ARCHIVED, policy=Policy(ttl_seconds=5)), ARCHIVED, one)
    assert one.archiver.backfill._requested.is_set()
    assert known.is_safe(KEY)


async def test_an_archive_that_is_given_up_holds_up_nothing() -> None:
    known = sinks()
    one = known.make(ARCHIVED, cast(Dispatcher, NOTHING))
    known.on_end_missed(KEY, "uid", dropped=True)
    known.on_reconfigured(PLAIN, ARCHIVED, one)
    assert known.is_safe(KEY)
    known.make(ARCHIVED, cast(Dispatcher, NOTHING))
    known.remove(KEY)
    assert not known.holds_finished(KEY)


def finished(name: str) -> FinishedTask:
    return FinishedTask(name=name, uid=f"uid-{name}", queue=KEY, completed=1.0, ttl=5)


async def test_a_webhook_holds_finished_tasks_only_while_it_has_missed_one() -> None:
    known = sinks()
    one = known.make(NOTIFIED, cast(Dispatcher, NOTHING))
    assert known.is_safe(KEY)
    assert not known.holds_finished(KEY)
    known.on_end_missed(KEY, "uid-t", dropped=True)
    assert not known.is_safe(KEY)
    assert known.holds_finished(KEY)
    one.webhooks.backfill.is_behind = False  # it has begun to look
    assert not known.is_safe(KEY)
    one.webhooks.missed.discard("uid-t")
    assert known.is_safe(KEY)
    assert not known.holds_finished(KEY)


@pytest.mark.parametrize("archive_first", [True, False])
async def test_a_finished_task_is_handed_on_when_neither_kind_of_sink_lacks_it(
    archive_first: bool,
) -> None:
    """Whichever finds it last hands it on, and what one of them lacks is never handed on."""
    known = sinks()
    one = known.make(replace(NOTIFIED, archive=ARCHIVED.archive), cast(Dispatcher, NOTHING))
    archive, webhooks = one.archiver.backfill, one.webhooks.backfill
    tasks = [finished("t")]
    RECORDED.clear()
    known.on_end_missed(KEY, "uid-t", dropped=True)
    if archive_first:
        archive._on_recorded(tasks)
        assert RECORDED == []
        archive.is_behind = False
        one.webhooks.missed.discard("uid-t")
        webhooks._on_recorded(tasks)
    else:
        one.webhooks.missed.discard("uid-t")
        webhooks._on_recorded(tasks)
        assert RECORDED == []  # the archive may lack it
        archive._on_recorded(tasks)
    assert RECORDED == ["t"]


async def test_missed_ends_are_remembered_up_to_a_limit() -> None:
    missed = MissedEnds(KEY)
    for number in range(MOST_MISSED + 2):
        missed.add(str(number))
    assert len(missed) == MOST_MISSED
    assert await missed.missing(["0", "1", "2", "never"]) == {"2"}
