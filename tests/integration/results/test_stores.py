"""What each store promises, against its real server."""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from dataclasses import replace
from functools import partial

import pytest

from taskqueue.model.result import queue_prefix, result_key
from taskqueue.results.connection import open_store
from taskqueue.results.patience import put_patiently
from taskqueue.results.reference import StoredResult
from taskqueue.results.store import ResultStore, StoreError
from tests.integration.results.servers import PASSWORD, PostgresqlServer, Server

#: The first time a server is installed or built.
pytestmark = pytest.mark.timeout(900)

JSON = "application/json"


def key(uid: str = "", *, queue: str = "q", attempt: int = 1) -> str:
    return result_key(
        namespace="shop", queue=queue, uid=uid or os.urandom(8).hex(), attempt=attempt, epoch=0
    )


@pytest.mark.parametrize(
    "body",
    [b"", b"{}", bytes(range(256)), os.urandom(5_000_000)],
    ids=["empty", "json", "all bytes", "5 MB"],
)
async def test_a_result_comes_back_as_it_was_written(store: ResultStore, body: bytes) -> None:
    at = key()
    written = StoredResult(body, 'image/png; what="a; b"')
    await store.put(at, written)
    assert await store.get(at) == written


async def test_there_is_none_under_a_key_that_nobody_wrote(store: ResultStore) -> None:
    assert await store.get(key()) is None


async def test_the_first_of_one_key_is_kept_whole_and_everybody_gets_that(
    store: ResultStore,
) -> None:
    at = key()
    results = [StoredResult(os.urandom(200_000), f"text/{number}") for number in range(8)]
    answers = await asyncio.gather(*(store.put(at, one) for one in results))
    assert answers == [answers[0]] * len(results)
    assert answers[0] in results
    assert await store.put(at, StoredResult(b"", "text/late")) == answers[0]
    assert await store.get(at) == answers[0]


async def test_more_than_one_portion_is_deleted(
    server: Server, store: ResultStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    if server.kind == "redis":
        pytest.skip("Redis deletes by itself: see the test of its time to live")
    for name in ("postgresql._PORTION", "s3._PAGE"):
        monkeypatch.setattr(f"taskqueue.results.{name}", 4)
    keys = [key(queue="portions") for _ in range(9)]
    await asyncio.gather(*(store.put(at, StoredResult(b"1", JSON)) for at in keys))
    prefix = queue_prefix("shop", "portions")
    assert await store.delete_before(prefix, time.time() + 60) == len(keys)
    assert await store.delete_before(prefix, time.time() + 60) == 0


async def test_many_processes_may_use_it_for_the_first_time_at_once(server: Server) -> None:
    if isinstance(server, PostgresqlServer):
        server.execute("DROP TABLE IF EXISTS taskqueue_results")
    stores = [open_store(server.connection(), timeout=10) for _ in range(8)]
    keys = [key() for _ in stores]
    try:
        await asyncio.gather(
            *(
                store.put(at, StoredResult(at.encode(), JSON))
                for store, at in zip(stores, keys, strict=True)
            )
        )
        for store, at in zip(reversed(stores), keys, strict=True):
            found = await store.get(at)
            assert found is not None
            assert found.body == at.encode()
    finally:
        for store in stores:
            await store.close()


async def test_what_is_old_is_deleted_of_one_queue_only(server: Server, store: ResultStore) -> None:
    if server.kind == "redis":
        pytest.skip("Redis deletes by itself: see the test of its time to live")
    old, other = key(queue="old"), key(queue="old2")
    deep = f"{queue_prefix('shop', 'old')}uid/1-0"
    for at in (old, other, deep):
        await store.put(at, StoredResult(b"1", JSON))
    await asyncio.sleep(1.1)  # S3 keeps whole seconds
    moment = time.time()
    await asyncio.sleep(1.1)
    young = key(queue="old")
    await store.put(young, StoredResult(b"2", JSON))
    assert await store.delete_before(queue_prefix("shop", "old"), moment) == 2
    assert await store.get(old) is None
    assert await store.get(deep) is None
    assert await store.get(other) is not None
    assert await store.get(young) is not None
    assert await store.delete_before(queue_prefix("shop", "nobody"), moment) == 0


async def test_redis_deletes_what_is_older_than_the_retention(server: Server) -> None:
    if server.kind != "redis":
        pytest.skip("only Redis")
    store = open_store(server.connection(), retention_seconds=0.5)
    at = key()
    await store.put(at, StoredResult(b"1", JSON))
    assert await store.get(at) is not None
    await asyncio.sleep(0.7)
    assert await store.get(at) is None
    await store.close()


async def test_a_wrong_password_is_a_lasting_error_that_does_not_tell_it(server: Server) -> None:
    store = open_store(server.connection(password="wr0ng-password"), timeout=3)
    for call in (
        partial(store.put, key(), StoredResult(b"1", JSON)),
        partial(store.get, key()),
    ):
        with pytest.raises(StoreError) as caught:
            await call()
        assert not caught.value.transient, caught.value
        assert "check " in str(caught.value)
        _tells_no_secret(caught.value)
    await store.close()


async def test_a_bucket_or_database_that_does_not_exist_is_a_lasting_error(server: Server) -> None:
    if server.kind == "redis":
        pytest.skip("Redis has neither")
    there = server.connection()
    uri = there.uri.replace("/postgres", "/nowhere").replace("//results", "//nowhere")
    store = open_store(replace(there, uri=uri), timeout=3)
    with pytest.raises(StoreError, match="nowhere") as caught:
        await store.put(key(), StoredResult(b"1", JSON))
    assert not caught.value.transient
    await store.close()


async def test_a_store_that_is_away_is_a_passing_error_and_loses_nothing(
    server: Server, store: ResultStore
) -> None:
    kept, late = key(), key()
    await store.put(kept, StoredResult(b"kept", JSON))
    server.kill()
    for call in (partial(store.put, late, StoredResult(b"late", JSON)), partial(store.get, kept)):
        with pytest.raises(StoreError) as caught:
            await call()
        assert caught.value.transient, caught.value
        _tells_no_secret(caught.value)
    server.start()
    await put_patiently(store, late, StoredResult(b"late", JSON), seconds=30)
    for at, body in ((kept, b"kept"), (late, b"late")):
        found = await store.get(at)
        assert found is not None
        assert found.body == body


async def test_a_store_that_hangs_is_given_up_after_the_time_out(
    server: Server, store: ResultStore
) -> None:
    at = key()
    await store.put(at, StoredResult(b"1", JSON))
    server.pause()
    try:
        before = time.monotonic()
        with pytest.raises(StoreError) as caught:
            await store.put(key(), StoredResult(b"2", JSON))
        assert caught.value.transient
        assert time.monotonic() - before >= 2.5
    finally:
        server.resume()
    late = key()
    await put_patiently(store, late, StoredResult(b"3", JSON), seconds=30)
    for each, body in ((at, b"1"), (late, b"3")):
        found = await store.get(each)
        assert found is not None
        assert found.body == body


async def test_a_store_killed_in_mid_write_has_whole_results_or_none(
    server: Server,
) -> None:
    """Every write that was answered is there, and no other is there in part."""
    body = os.urandom(1_000_000)
    store = open_store(server.connection(), timeout=5)
    keys = [key() for _ in range(40)]
    answered: list[str] = []

    async def write(at: str) -> None:
        await store.put(at, StoredResult(body + at.encode(), JSON))
        answered.append(at)
        if len(answered) == 10:
            server.kill()

    ends = await asyncio.gather(*(write(at) for at in keys), return_exceptions=True)
    assert all(end is None or isinstance(end, StoreError) for end in ends), ends
    assert 10 <= len(answered) < len(keys)
    server.start()
    await put_patiently(store, key(), StoredResult(b"", JSON), seconds=30)
    for at in keys:
        found = await store.get(at)
        if found is None:
            assert at not in answered
        else:
            wanted = hashlib.sha256(body + at.encode()).hexdigest()
            assert hashlib.sha256(found.body).hexdigest() == wanted
    await store.close()


def _tells_no_secret(error: BaseException) -> None:
    while True:
        assert PASSWORD not in str(error)
        assert "wr0ng" not in str(error)
        if error.__cause__ is None:
            return
        error = error.__cause__
