from __future__ import annotations

import asyncio
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskqueue.results.connection import (
    StoreConnection,
    check_foreign,
    open_store,
    read_connection,
)
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
        ({}, "the key uri must be an address"),
        ({"uri": ""}, "the key uri must be an address"),
        ({"uri": "mysql://host/db"}, "begins with mysql://"),
        ({"uri": "host:5432"}, "the key uri must be an address"),
    ],
)
def test_an_address_of_no_known_store_is_refused(values: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_connection(values)


@pytest.mark.parametrize(
    ("uri", "where"),
    [
        ("postgresql://me:s3cret@db:5432/tasks?sslmode=require", "postgresql://db:5432/tasks"),
        ("redis://:s3cret@[::1]:6379/0", "redis://[::1]:6379/0"),
        ("s3://bucket/prefix", "s3://bucket/prefix"),
        ("s3://bucket/prefix@1", "s3://bucket/prefix@1"),
        ("postgresql://me:s3cret@one:5432,two:5433/tasks", "postgresql://one:5432,two:5433/tasks"),
        ("postgresql://me:s3cret/5432@db/tasks", "an address that cannot be read"),
        ("redis://:s3cret%4@db", "an address that cannot be read"),
    ],
)
def test_what_people_see_of_an_address_is_no_secret(uri: str, where: str) -> None:
    connection = StoreConnection(uri, access_key_id="s3cret", secret_access_key="s3cret")
    assert connection.where == where
    assert "s3cret" not in repr(connection)


@given(
    scheme=st.sampled_from(
        ["", "mysql://", "postgresql://", "postgres://", "redis://", "rediss://"]
    ),
    password=st.lists(
        st.sampled_from(["Zq", ":", "/", "?", "#", "@", "%", "&", "=", "[", "]", "%20", "1"]),
        min_size=1,
        max_size=6,
    ),
    rest=st.sampled_from(["", "/0", "/tasks", "?client_name=x", ",127.0.0.1:1/tasks"]),
)
def test_no_part_of_a_password_is_in_a_message_however_it_is_written(
    scheme: str, password: list[str], rest: str
) -> None:
    said = []
    uri = f"{scheme}me:{''.join(password)}Zq@127.0.0.1:1{rest}"
    try:
        connection = read_connection({"uri": uri})
        said = [connection.where, repr(connection)]
        store = open_store(connection, timeout=2)
        asyncio.run(store.get("key"))
    except (ValueError, StoreError) as error:
        said.append(str(error))
    assert said
    assert "Zq" not in " ".join(said)


@pytest.mark.parametrize(
    "uri",
    [
        "postgresql://u:p@db/tasks?sslmode=verify-full&sslrootcert=/proc/self/fd/1",
        "postgresql://u:p@db/tasks?sslcert=/etc/operator/tls.crt&sslkey=/etc/operator/tls.key",
        "postgresql://u:p@db/tasks?sslcrl=/dev/zero",
        "postgresql://u:p@db/tasks?passfile=/var/run/secrets/tokens",
        "postgresql://u:p@db/tasks?service=admin",
        "postgresql://u:p@db/tasks?oauth_issuer=http://169.254.169.254",
        "postgresql://u:p@%2Fvar%2Frun%2Fpostgresql/tasks",
        "postgresql://u:p@db,%2Fvar%2Frun/tasks",
        "postgresql://u:p@/tasks",
        "postgresql://u:p@db/tasks?host=/var/run",
        "postgresql:///tasks",
        "postgresql://u:p@db/tasks?nonsense=1",
        "redis://db/0?ssl_ca_certs=/dev/zero",
        "rediss://db/0?ssl_keyfile=/etc/operator/tls.key",
        "redis://db/0?max_connections=100000",
        "s3://bucket/prefix",
    ],
)
def test_an_address_of_others_uses_nothing_of_this_machine(uri: str) -> None:
    connection = read_connection({"uri": uri})
    with pytest.raises(ValueError, match=r"give|leave|use only|correct"):
        check_foreign(connection)


@pytest.mark.parametrize(
    "uri",
    [
        "postgresql://u:p@db:5432/tasks",
        "postgresql://u:p@one:5432,two:5433/tasks?target_session_attrs=read-write",
        "postgresql://u:p@db/tasks?sslmode=verify-full&sslrootcert=system&connect_timeout=5",
        "postgresql://u:p@[fd00::1]:5432/tasks?options=-csearch_path%3Dtasks",
        "redis://:p@db:6379/0?protocol=3",
        "rediss://:p@db?ssl_cert_reqs=none",
    ],
)
def test_an_address_of_others_may_say_all_else(uri: str) -> None:
    check_foreign(read_connection({"uri": uri}))


def test_a_bucket_of_others_is_reached_with_their_keys() -> None:
    keys = {"uri": "s3://bucket", "accessKeyId": "id", "secretAccessKey": "secret"}
    check_foreign(read_connection(keys))


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
