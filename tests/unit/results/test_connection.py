from __future__ import annotations

import sys

import pytest

from taskqueue.results.connection import StoreConnection, open_store, read_connection
from taskqueue.results.store import StoreError


def test_the_keys_of_a_secret_are_read() -> None:
    read = read_connection(
        {
            "uri": " s3://bucket/prefix\n",
            "endpoint": "https://store:9000",
            "region": "eu-1",
            "accessKeyId": "id",
            "secretAccessKey": "secret",
            "unknown": "x",
        }
    )
    assert read == StoreConnection(
        "s3://bucket/prefix", "https://store:9000", "eu-1", "id", "secret"
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "there is no key uri"),
        ({"uri": ""}, "there is no key uri"),
        ({"uri": "mysql://host/db"}, "begins with 'mysql'"),
        ({"uri": "host:5432"}, "begins with 'host:5432'"),
    ],
)
def test_an_address_of_no_known_store_is_refused(values: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_connection(values)


@pytest.mark.parametrize(
    ("uri", "where"),
    [
        ("postgresql://me:s3cret@db:5432/tasks?sslmode=require", "postgresql://db:5432/tasks"),
        ("redis://:s3cret@[::1]:6379/0", "redis://::1:6379/0"),
        ("s3://bucket/prefix", "s3://bucket/prefix"),
        ("redis://:s3cret@host:port/0", "an address that cannot be read"),
        ("postgresql://me:s3cret@[::1/tasks", "an address that cannot be read"),
    ],
)
def test_what_people_see_of_an_address_is_no_secret(uri: str, where: str) -> None:
    connection = StoreConnection(uri, access_key_id="s3cret", secret_access_key="s3cret")
    assert connection.where == where
    assert "s3cret" not in repr(connection)


@pytest.mark.parametrize(
    ("uri", "library"),
    [("postgresql://h/d", "psycopg"), ("rediss://h", "redis"), ("s3://b", "obstore")],
)
def test_a_missing_library_is_named(
    uri: str, library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in [name for name in sys.modules if name.startswith("taskqueue.results.")]:
        if module.rpartition(".")[2] in {"postgresql", "redis", "s3"}:
            monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(StoreError, match=rf"need .*{library}.*taskqueue-operator\[results\]"):
        open_store(StoreConnection(uri))


async def test_an_address_that_no_library_reads_is_a_store_error() -> None:
    for uri in ("redis://host:port/0", "s3:///prefix"):
        with pytest.raises(StoreError) as caught:
            open_store(StoreConnection(uri))
        assert not caught.value.transient
    store = open_store(StoreConnection("postgresql://h?nonsense=1"))
    with pytest.raises(StoreError, match="nonsense") as caught:
        await store.get("k")
    assert not caught.value.transient
