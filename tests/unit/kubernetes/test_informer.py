import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taskqueue.kubernetes import client
from taskqueue.kubernetes.client import OBJECT_BYTES, PROBLEMS, TOO_LARGE, UNREADABLE
from taskqueue.kubernetes.informer import Informer, Key
from tests.unit.kubernetes.fake_api import FakeApi, eventually, make, serve


class Listener:
    def __init__(self) -> None:
        self.held: dict[str, str] = {}
        self.events: list[tuple[str, str, str]] = []
        self.problems: dict[str, str] = {}
        self.versions: dict[str, str] = {}

    def on_upserted(self, raw: dict[str, Any]) -> None:
        name, uid = raw["metadata"]["name"], raw["metadata"]["uid"]
        self.held[name] = uid
        self.versions[name] = raw["metadata"]["resourceVersion"]
        self.events.append(("upserted", name, uid))

    def on_unreadable(self, raw: dict[str, Any], problem: str) -> None:
        name = raw["metadata"]["name"]
        self.problems[name] = problem
        self.events.append(("unreadable", name, raw["metadata"]["uid"]))

    def on_deleted(self, key: Key, uid: str, metadata: Mapping[str, Any] | None = None) -> None:
        if self.held.get(key[1]) == uid:
            del self.held[key[1]]
        self.events.append(("deleted", key[1], uid))


@asynccontextmanager
async def feeding(api: FakeApi) -> AsyncIterator[tuple[Informer, Listener]]:
    listener = Listener()
    async with serve(api) as connected:
        feed = Informer(connected, "/things", listener, random=Random(1))
        task = asyncio.create_task(feed.run())
        try:
            async with asyncio.timeout(10):
                await feed.synced.wait()
            yield feed, listener
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


async def test_informer_delivers_all_pages_before_it_is_synced() -> None:
    api = FakeApi(objects={f"o{n}": make(f"o{n}") for n in range(1234)})
    async with feeding(api) as (_, listener):
        assert len(listener.held) == 1234
        assert api.lists == 13


async def test_informer_delivers_changes_in_order() -> None:
    api = FakeApi()
    async with feeding(api) as (_, listener):
        await api.emit("ADDED", make("a"))
        await api.emit("MODIFIED", make("a"))
        await api.emit("ADDED", make("b"))
        await api.emit("DELETED", make("a"))
        await eventually(lambda: len(listener.events) == 4)
        assert [(kind, name) for kind, name, _ in listener.events] == [
            ("upserted", "a"),
            ("upserted", "a"),
            ("upserted", "b"),
            ("deleted", "a"),
        ]


async def test_informer_resumes_the_watch_without_a_list() -> None:
    api = FakeApi(objects={"a": make("a")})
    async with feeding(api) as (_, listener):
        await api.emit("ADDED", make("b"))
        await eventually(lambda: "b" in listener.held)
        await api.break_watches()
        await api.emit("ADDED", make("c"))
        await eventually(lambda: "c" in listener.held)
        assert api.lists == 1
        assert len(listener.events) == 3


async def test_informer_resumes_a_watch_whose_connection_is_silently_dead(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(client, "WATCH_SILENCE_SECONDS", 0.05)
    api = FakeApi(objects={"a": make("a")}, silent_watches=2)
    async with feeding(api) as (_, listener):
        await api.emit("ADDED", make("b"))
        await eventually(lambda: "b" in listener.held)
        assert api.lists == 1
        assert len(listener.events) == 2
    assert not caplog.records, "silence is no error"


async def test_informer_lists_again_when_its_version_has_expired() -> None:
    api = FakeApi(objects={"a": make("a"), "b": make("b")})
    async with feeding(api) as (_, listener):
        # While the feed is away: b goes, c comes, and the history is compacted.
        api.objects = {"a": make("a"), "c": make("c")}
        api.version += 100
        api.forgotten_below = api.version
        await api.break_watches()
        await eventually(lambda: "c" in listener.held)
        assert listener.held == {"a": "uid-a", "c": "uid-c"}
        assert ("deleted", "b", "uid-b") in listener.events


async def test_informer_deletes_before_it_adds_a_reused_name() -> None:
    api = FakeApi(objects={"a": make("a", "one")})
    async with feeding(api) as (_, listener):
        api.objects = {"a": make("a", "two")}
        api.version += 100
        api.forgotten_below = api.version
        await api.break_watches()
        await eventually(lambda: listener.held == {"a": "two"})
        assert listener.events[-2:] == [("deleted", "a", "one"), ("upserted", "a", "two")]


async def test_informer_advances_with_bookmarks() -> None:
    api = FakeApi()
    async with feeding(api) as (feed, listener):
        await api.emit("BOOKMARK", make("none"))
        await eventually(lambda: feed._version == str(api.version))
        assert listener.events == []


async def test_informer_reads_objects_larger_than_the_buffer() -> None:
    api = FakeApi()
    async with feeding(api) as (_, listener):
        await api.emit("ADDED", make("big", spec={"payload": "x" * 1_400_000}))
        await eventually(lambda: "big" in listener.held)


# orjson goes 1,024 levels deep, an API server ten times that.
DEEP = b'{"a":' * 1100 + b"1" + b"}" * 1100
#: Larger than a single object may be.
FAT = b'{"payload":{"text":"' + b"x" * OBJECT_BYTES + b'"}}'


def with_bad_ones(api: FakeApi) -> FakeApi:
    """Give it three objects that cannot be read: by their spec, their metadata, their size."""
    for name in ("o4-deep", "o5-managed", "o6-fat"):
        api.objects[name] = make(name)
    api.raw |= {"o4-deep": DEEP, "o5-managed": DEEP, "o6-fat": FAT}
    api.managed["o5-managed"] = b'[{"fieldsV1":' + DEEP + b"}]"
    return api


async def test_informer_names_what_it_cannot_read_of_a_list() -> None:
    api = with_bad_ones(FakeApi(objects={f"o{n}": make(f"o{n}") for n in range(9)}))
    async with feeding(api) as (feed, listener):
        assert sorted(listener.held) == [f"o{n}" for n in range(9)]
        assert listener.problems == {
            "o4-deep": PROBLEMS[UNREADABLE],
            "o5-managed": PROBLEMS[UNREADABLE],
            "o6-fat": PROBLEMS[TOO_LARGE],
        }
        assert feed.uid_of(("ns", "o6-fat")) == "uid-o6-fat"
        await api.emit("ADDED", make("later"))
        await eventually(lambda: "later" in listener.held)


async def test_informer_names_what_it_cannot_read_of_a_watch() -> None:
    api = FakeApi()
    async with feeding(api) as (feed, listener):
        with_bad_ones(api)
        for name in list(api.objects):
            await api.emit("ADDED", api.objects[name])
        await api.emit("ADDED", make("later"))
        await eventually(lambda: "later" in listener.held)
        assert sorted(listener.problems) == ["o4-deep", "o5-managed", "o6-fat"]
        assert feed._version == str(api.version)
        for name in listener.problems:
            await api.emit("DELETED", api.objects[name])
        await eventually(lambda: feed.uid_of(("ns", "o6-fat")) is None)
        assert [what for what, _, _ in listener.events[-3:]] == ["deleted"] * 3
        assert api.lists == 1


async def test_informer_leaves_out_what_it_cannot_even_name() -> None:
    api = FakeApi()
    async with feeding(api) as (_, listener):
        api.managed["nameless"] = FAT
        await api.emit("ADDED", make("nameless"))
        await api.emit("ADDED", make("later"))
        await eventually(lambda: "later" in listener.held)
        assert (list(listener.held), listener.problems, api.lists) == (["later"], {}, 1)


async def test_informer_sees_that_an_unreadable_object_is_deleted_meanwhile() -> None:
    api = with_bad_ones(FakeApi(objects={"a": make("a")}))
    async with feeding(api) as (_, listener):
        del api.objects["o4-deep"]
        api.version += 100
        api.forgotten_below = api.version
        await api.break_watches()
        await eventually(lambda: ("deleted", "o4-deep", "uid-o4-deep") in listener.events)


async def _catch_up_after(
    before: int,
    changes: Sequence[tuple[str, str]],
    *,
    expired: bool = False,
    elsewhere: int = 0,
    progress: bool = True,
) -> tuple[FakeApi, Listener]:
    """Have an informer catch up with changes that its watch does not show.

    Args:
        before: objects there are.
        changes: to them.
        expired: its watch cannot go on.
        elsewhere: writes to other resources, at last.
        progress: bookmarks show those too.
    """
    api = FakeApi(objects={f"o{n}": make(f"o{n}") for n in range(before)})
    async with serve(api) as connected:
        listener = Listener()
        feed = Informer(connected, "/things", listener, random=Random(1))
        running = asyncio.create_task(feed.run())
        async with asyncio.timeout(10):
            await feed.synced.wait()
        api.stalled = True
        for kind, name in changes:
            there = name in api.objects
            if kind == "DELETED" and there:
                await api.emit("DELETED", make(name, api.objects[name]["metadata"]["uid"]))
            elif kind == "PUT":
                uid = f"uid-{name}" if there else f"uid-{name}-{api.version}"
                await api.emit("MODIFIED" if there else "ADDED", make(name, uid))
        api.version += elsewhere
        api.is_without_progress = not progress
        if expired:
            api.forgotten_below = api.version
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        async with asyncio.timeout(20):
            await feed.catch_up()
    return api, listener


_NAMES = st.sampled_from(["o1", "o2", "o120", "new", "newer"])


@settings(max_examples=30, deadline=None)
@given(
    before=st.sampled_from([0, 3, 150]),
    changes=st.lists(st.tuples(st.sampled_from(["PUT", "DELETED"]), _NAMES), max_size=8),
    expired=st.booleans(),
    elsewhere=st.integers(0, 2),
    progress=st.booleans(),
)
def test_informer_that_caught_up_knows_what_its_watch_did_not_show(
    before: int,
    changes: Sequence[tuple[str, str]],
    expired: bool,
    elsewhere: int,
    progress: bool,
) -> None:
    api, listener = asyncio.run(
        _catch_up_after(before, changes, expired=expired, elsewhere=elsewhere, progress=progress)
    )
    there = {name: raw["metadata"]["resourceVersion"] for name, raw in api.objects.items()}
    assert {name: listener.versions[name] for name in listener.held} == there


async def test_informer_lists_what_is_many_only_once_to_catch_up() -> None:
    api, listener = await _catch_up_after(1000, [("PUT", "new")], elsewhere=1)
    assert "new" in listener.held
    assert api.lists == 10 + 1


async def test_informer_lists_all_to_catch_up_where_no_bookmark_comes_in_time() -> None:
    api, listener = await _catch_up_after(1000, [("PUT", "new")], elsewhere=1, progress=False)
    assert "new" in listener.held
    assert api.lists == 10 + 1 + 11


async def test_informer_that_has_not_listed_lists_to_catch_up() -> None:
    api = FakeApi(objects={f"o{n}": make(f"o{n}") for n in range(150)})
    async with serve(api) as connected:
        listener = Listener()
        feed = Informer(connected, "/things", listener, random=Random(1))
        await feed.catch_up()
        assert feed.synced.is_set()
    assert len(listener.held) == 150
