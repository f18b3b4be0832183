"""What the archive promises, against a real PostgreSQL."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, timedelta
from functools import partial
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taskqueue.archive import migrations
from taskqueue.archive.archive import Archive
from taskqueue.archive.errors import ArchiveError, ArchiveTrouble
from taskqueue.archive.history import HistoryFilter, Place
from taskqueue.archive.rows import ArchivedTask
from tests.integration.archive.ended_tasks import (
    EPOCH,
    HANDLERS,
    OBJECTS,
    PHASES,
    REASONS,
    TIMES,
    WORDS,
    as_stored,
    ended_tasks,
    new_task,
    wanted,
)
from tests.integration.results.servers import PASSWORD, PostgresqlServer

#: The first time the server is installed.
pytestmark = pytest.mark.timeout(900)


async def all_of(archive: Archive, namespace: str) -> list[ArchivedTask]:
    return await archive.read(HistoryFilter(namespace=namespace), rows=10_000)


def renewed(tasks: Sequence[ArchivedTask]) -> tuple[str, list[ArchivedTask]]:
    """Return a namespace of its own, and the Tasks there: an example may have them again."""
    namespace = uuid.uuid4().hex
    return namespace, [
        replace(task, namespace=namespace, uid=f"{namespace[:8]}-{task.uid}") for task in tasks
    ]


def drop_tables(server: PostgresqlServer) -> None:
    server.execute("DROP TABLE IF EXISTS taskqueue_archive, taskqueue_archive_migrations")


def test_whatever_a_task_has_comes_back_as_it_was(server: PostgresqlServer) -> None:
    with asyncio.Runner() as runner:
        archive = Archive(server.connection())

        @settings(deadline=None, max_examples=40)
        @given(st.lists(ended_tasks(namespace="any", payloads=OBJECTS), min_size=1, max_size=5))
        def check(tasks: list[ArchivedTask]) -> None:
            namespace, tasks = renewed(tasks)
            runner.run(archive.write(tasks))
            found = {task.uid: task for task in runner.run(all_of(archive, namespace))}
            for task in tasks:
                assert as_stored(found[task.uid]) == as_stored(task)
                assert found[task.uid].result == task.result

        check()
        runner.run(archive.close())


FILTERS = st.fixed_dictionaries(
    {"namespace": st.just("filters")},
    optional={
        "queue": st.sampled_from(["q", "r", "s"]),
        "handler": st.sampled_from(HANDLERS),
        "phases": st.lists(st.sampled_from(PHASES), max_size=2),
        "reason": st.sampled_from(REASONS),
        "labels": st.dictionaries(st.sampled_from(["app", "team"]), st.sampled_from("xy")),
        "since": TIMES,
        "until": TIMES,
        "error_text": WORDS.filter(lambda text: "\0" not in text),
        "payload": st.dictionaries(
            st.sampled_from(["a", "b", "a.b", "a.0", "b.b.0", ("0",)]),
            st.sampled_from([None, True, 1, 0, "1", "x", [1, "x"], {"b": 1}, 2]),
            max_size=2,
        ),
    },
).map(lambda fields: HistoryFilter(**cast(Any, fields)))


def test_filters_and_pages_are_those_of_plain_python(server: PostgresqlServer) -> None:
    with asyncio.Runner() as runner:
        archive = Archive(server.connection())

        async def pages(one: HistoryFilter, rows: int) -> list[str]:
            uids: list[str] = []
            after: Place | None = None
            while page := await archive.read(one, after=after, rows=rows):
                assert len(page) <= rows
                uids += [task.uid for task in page]
                last = Place(page[-1].completed, page[-1].uid)
                after = Place.from_token(last.token())
            return uids

        @settings(deadline=None, max_examples=8)
        @given(
            st.lists(
                ended_tasks(namespace="filters"),
                min_size=20,
                max_size=40,
                unique_by=lambda task: task.uid,
            ),
            st.lists(st.tuples(FILTERS, st.integers(1, 30)), min_size=20, max_size=20),
        )
        def check(tasks: list[ArchivedTask], asked: list[tuple[HistoryFilter, int]]) -> None:
            namespace, tasks = renewed(tasks)
            runner.run(archive.write(tasks))
            for one, rows in asked:
                one = replace(one, namespace=namespace)
                expected = [task.uid for task in wanted(tasks, one)]
                assert runner.run(pages(one, rows)) == expected, one

        check()
        runner.run(archive.close())


async def test_a_task_written_again_stays_as_it_was_first(archive: Archive) -> None:
    namespace = uuid.uuid4().hex
    first = new_task(namespace=namespace, message="first")
    again = replace(first, message="second")
    await archive.write([first, again])
    await archive.write([again])
    assert [task.message for task in await all_of(archive, namespace)] == ["first"]


async def test_several_writers_of_the_same_tasks_leave_one_row_of_each(
    server: PostgresqlServer,
) -> None:
    namespace = uuid.uuid4().hex
    tasks = [new_task(namespace=namespace) for _ in range(200)]
    archives = [Archive(server.connection()) for _ in range(4)]
    await asyncio.gather(*(archive.write(tasks) for archive in archives))
    uids = [task.uid for task in await all_of(archives[0], namespace)]
    assert sorted(uids) == sorted(task.uid for task in tasks)
    for archive in archives:
        await archive.close()


async def test_those_without_a_row_are_missing(archive: Archive) -> None:
    there, missing = new_task(), new_task()
    await archive.write([there])
    assert await archive.missing([there.uid, missing.uid]) == {missing.uid}
    assert await archive.missing([]) == set()


async def test_a_row_that_is_refused_stops_no_other(archive: Archive) -> None:
    namespace = uuid.uuid4().hex
    good = [new_task(namespace=namespace) for _ in range(3)]
    bad = new_task(namespace=namespace, attempts=2**40)
    await archive.write([*good[:2], bad, good[2]])
    found = {task.uid for task in await all_of(archive, namespace)}
    assert found == {task.uid for task in good}


async def test_what_is_old_is_deleted_of_one_queue_only(archive: Archive) -> None:
    namespace = uuid.uuid4().hex
    old, young = EPOCH, EPOCH + timedelta(hours=1)
    tasks = [
        new_task(namespace=namespace, queue=queue, completed=at)
        for queue in ("q", "q2")
        for at in (old, young)
        for _ in range(1200 if queue == "q" else 1)
    ]
    await archive.write(tasks)
    assert await archive.delete_before(namespace, "q", young) == 1200
    left = await all_of(archive, namespace)
    assert sum(task.queue == "q" for task in left) == 1200
    assert {task.completed for task in left if task.queue == "q"} == {young}
    assert sum(task.queue == "q2" for task in left) == 2


async def test_many_processes_may_make_the_tables_at_once(server: PostgresqlServer) -> None:
    drop_tables(server)
    archives = [Archive(server.connection()) for _ in range(8)]
    tasks = [new_task() for _ in archives]
    await asyncio.gather(
        *(archive.write([task]) for archive, task in zip(archives, tasks, strict=True))
    )
    assert await archives[0].missing(task.uid for task in tasks) == set()
    made = server.execute("SELECT number FROM taskqueue_archive_migrations ORDER BY number")
    numbers = range(1, len(migrations.MIGRATIONS) + 1)
    assert made.split() == [str(number) for number in numbers]
    for archive in archives:
        await archive.close()


async def test_only_the_changes_that_a_database_lacks_are_made(
    server: PostgresqlServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    drop_tables(server)
    task = new_task()
    older = Archive(server.connection())
    await older.write([task])
    added = "ALTER TABLE taskqueue_archive ADD COLUMN added text"
    with monkeypatch.context() as patch:
        patch.setattr(migrations, "MIGRATIONS", (*migrations.MIGRATIONS, added))
        newer = Archive(server.connection())
        assert await newer.missing([task.uid]) == set()
        await newer.close()
    server.execute("SELECT added FROM taskqueue_archive")
    # The older one goes on, and so does another of its version.
    again = Archive(server.connection())
    for archive in (older, again):
        await archive.write([new_task()])
        await archive.close()
    drop_tables(server)


async def test_a_change_that_fails_leaves_nothing_of_itself(
    server: PostgresqlServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    drop_tables(server)
    with monkeypatch.context() as patch:
        patch.setattr(migrations, "MIGRATIONS", (*migrations.MIGRATIONS, "SELECT nonsense"))
        archive = Archive(server.connection())
        with pytest.raises(ArchiveError) as caught:
            await archive.missing([])
        assert caught.value.trouble is not ArchiveTrouble.UNAVAILABLE
    assert server.execute("SELECT to_regclass('taskqueue_archive')") == ""
    await archive.write([new_task()])
    await archive.close()


async def test_a_reader_makes_no_tables(server: PostgresqlServer) -> None:
    drop_tables(server)
    reader = Archive(server.connection(), may_create=False)
    with pytest.raises(ArchiveError) as caught:
        await all_of(reader, "shop")
    assert caught.value.trouble is ArchiveTrouble.NO_ARCHIVE
    await reader.close()


async def test_who_may_not_create_tables_is_told_so(server: PostgresqlServer) -> None:
    drop_tables(server)
    server.execute("DROP ROLE IF EXISTS guest")
    server.execute("CREATE ROLE guest LOGIN PASSWORD 'guest'")
    uri = f"postgresql://guest:guest@127.0.0.1:{server.port}/postgres"
    archive = Archive(replace(server.connection(), uri=uri))
    with pytest.raises(ArchiveError) as caught:
        await archive.write([new_task()])
    assert caught.value.trouble is ArchiveTrouble.NOT_PERMITTED
    await archive.close()


async def test_a_wrong_password_is_said_and_not_told(server: PostgresqlServer) -> None:
    archive = Archive(server.connection(password="wr0ng-password"))
    with pytest.raises(ArchiveError) as caught:
        await archive.write([new_task()])
    assert caught.value.trouble is ArchiveTrouble.LOGIN_REFUSED
    assert "wr0ng" not in str(caught.value)
    await archive.close()


async def test_a_server_that_hangs_or_is_away_is_unavailable_and_used_again(
    server: PostgresqlServer,
) -> None:
    archive = Archive(server.connection(), timeout=2)
    before = new_task()
    await archive.write([before])
    server.pause()
    try:
        await _is_unavailable(archive)
    finally:
        server.resume()
    server.kill()
    await _is_unavailable(archive)
    server.start()
    after = new_task()
    await archive.write([after])
    assert await archive.missing([before.uid, after.uid]) == set()
    await archive.close()


async def _is_unavailable(archive: Archive) -> None:
    for call in (
        partial(archive.write, [new_task()]),
        partial(archive.missing, ["x"]),
        partial(all_of, archive, "shop"),
    ):
        with pytest.raises(ArchiveError) as caught:
            await call()
        assert caught.value.trouble is ArchiveTrouble.UNAVAILABLE
        assert PASSWORD not in str(caught.value)


async def test_a_server_killed_in_mid_write_has_whole_batches(server: PostgresqlServer) -> None:
    """Every batch that was answered is there, and no other is there in part."""
    namespace = uuid.uuid4().hex
    result = {"data": "x" * 3000}
    batches = [[new_task(namespace=namespace, result=result) for _ in range(50)] for _ in range(40)]
    archive = Archive(server.connection(), timeout=5)
    answered: list[Sequence[ArchivedTask]] = []

    async def write(batch: Sequence[ArchivedTask], writer: Archive) -> None:
        await writer.write(batch)
        answered.append(batch)
        if len(answered) == 8:
            server.kill()

    writers = [Archive(server.connection(), timeout=5) for _ in range(4)]
    ends: list[Any] = await asyncio.gather(
        *(write(batch, writers[number % 4]) for number, batch in enumerate(batches)),
        return_exceptions=True,
    )
    assert all(end is None or isinstance(end, ArchiveError) for end in ends), ends
    assert 8 <= len(answered) < len(batches)
    server.start()
    for batch in batches:
        missing = await archive.missing(task.uid for task in batch)
        assert len(missing) in (0, len(batch))
        assert not (missing and batch in answered)
    for batch in batches:
        await archive.write(batch)
    found = [task.uid for task in await all_of(archive, namespace)]
    assert sorted(found) == sorted(task.uid for batch in batches for task in batch)
    for one in (archive, *writers):
        await one.close()


@given(
    st.datetimes(timezones=st.just(UTC)),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1),
)
def test_a_place_comes_back_from_its_token(completed: Any, uid: str) -> None:
    place = Place.from_token(Place(completed, uid).token())
    assert (place.completed, place.uid) == (completed, uid)


@pytest.mark.parametrize("token", ["?", "abc", "aGFsbG8", "\0", "é", "MjAyNi0wMS0wMSB1"])
def test_a_token_of_somebody_else_is_refused(token: str) -> None:
    with pytest.raises(ValueError, match="is not where a page ended"):
        Place.from_token(token)


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"since": EPOCH.replace(tzinfo=None)}, "since has no time zone"),
        ({"phases": "Failed"}, "give a list"),
        ({"payload": {"": 1}}, "is no path"),
        ({"payload": {"a..b": 1}}, "is no path"),
        ({"payload": {"a": {1, 2}}}, "is not JSON"),
        ({"payload": {"a": "x\0"}}, "NUL"),
        ({"error_text": "\0"}, "NUL"),
    ],
)
def test_a_filter_that_cannot_be_asked_for_is_refused(fields: Any, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        HistoryFilter(namespace="shop", **fields)
