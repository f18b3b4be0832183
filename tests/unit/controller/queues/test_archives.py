"""What is known of the archives of all TaskQueues."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

from taskqueue.controller.completions.task_ends import TaskEnds
from taskqueue.controller.queues.archives import Archives
from taskqueue.controller.tasks.dispatcher import Dispatcher
from taskqueue.kubernetes.client import ApiClient
from taskqueue.model.queue import ArchiveConfig, QueueConfig
from taskqueue.model.task import Policy

PLAIN = QueueConfig(namespace="shop", name="q", uid="u", generation=1)
ARCHIVED = replace(PLAIN, archive=ArchiveConfig(secret="archive"))
KEY = PLAIN.key
NOTHING = cast(Any, None)


def archives() -> Archives:
    return Archives(
        client=cast(ApiClient, None),
        installation="default",
        ends=cast(TaskEnds, None),
        on_recorded=lambda tasks: None,
        since="",
        clock=lambda: 0.0,
    )


async def test_a_queue_without_an_archive_is_safe_whatever_is_dropped() -> None:
    known = archives()
    known.make(PLAIN, cast(Dispatcher, NOTHING))
    known.look_for_ends(KEY, behind=True)
    assert known.is_safe(KEY)
    assert not known.is_archived(KEY)
    assert known.archive_of(KEY) is None


async def test_ends_are_safe_until_one_is_dropped() -> None:
    known = archives()
    archiver = known.make(ARCHIVED, cast(Dispatcher, NOTHING))
    assert known.is_archived(KEY)
    assert known.archive_of(KEY) == ARCHIVED.archive
    assert known.is_safe(KEY)  # a former leader has made the outbox
    known.look_for_ends(KEY)
    assert known.is_safe(KEY)
    known.look_for_ends(KEY, behind=True)
    assert not known.is_safe(KEY)
    archiver.backfill.is_behind = False
    assert known.is_safe(KEY)


async def test_ends_are_not_safe_while_an_archive_is_new() -> None:
    known = archives()
    archiver = known.make(PLAIN, cast(Dispatcher, NOTHING))
    known.on_reconfigured(ARCHIVED, PLAIN, archiver)
    assert known.is_archived(KEY)
    assert not known.is_safe(KEY)


async def test_a_new_time_to_live_has_the_finished_tasks_looked_for() -> None:
    known = archives()
    archiver = known.make(ARCHIVED, cast(Dispatcher, NOTHING))
    archiver.backfill._requested.clear()
    known.on_reconfigured(ARCHIVED, ARCHIVED, archiver)
    assert not archiver.backfill._requested.is_set()
    known.on_reconfigured(replace(ARCHIVED, policy=Policy(ttl_seconds=5)), ARCHIVED, archiver)
    assert archiver.backfill._requested.is_set()
    assert known.is_safe(KEY)


async def test_an_archive_that_is_given_up_holds_up_nothing() -> None:
    known = archives()
    archiver = known.make(ARCHIVED, cast(Dispatcher, NOTHING))
    known.look_for_ends(KEY, behind=True)
    known.on_reconfigured(PLAIN, ARCHIVED, archiver)
    assert known.is_safe(KEY)
    known.make(ARCHIVED, cast(Dispatcher, NOTHING))
    known.remove(KEY)
    assert not known.is_archived(KEY)
