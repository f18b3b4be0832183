"""Connecting: what is told when it fails, that nothing leaks, and how a connection ends."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import replace
from typing import Any

import pytest

from taskqueue.amqp.channel import BrokerUnavailable, ChannelRefused
from taskqueue.amqp.connection import connect
from taskqueue.amqp.parameters import BrokerParameters
from tests.faults.relay import listener, relay_to
from tests.integration.amqp.endpoint import VirtualHost
from tests.integration.amqp.messages import PATIENCE

pytestmark = pytest.mark.broker

PASSWORD = "not-the-password"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"password": PASSWORD}, "refused the login: check username and password .*ACCESS_REFUSED"),
        ({"virtual_host": "nowhere"}, "virtual host does not exist .*vhost nowhere not found"),
        (
            {"host": "127.0.0.1", "port": 1, "password": PASSWORD},
            "nothing listens there: check host and port",
        ),
        (
            {"host": "no-such-host.invalid", "password": PASSWORD},
            "host name cannot be resolved: check host",
        ),
        ({"tls": True, "password": PASSWORD}, "TLS failed: check that the port speaks TLS"),
    ],
    ids=["password", "vhost", "port", "host", "tls"],
)
async def test_a_failure_says_where_what_and_what_to_do(
    parameters: BrokerParameters,
    change: dict[str, object],
    message: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    wrong = replace(parameters, **change)  # type: ignore[arg-type]
    with caplog.at_level(logging.INFO), pytest.raises(BrokerUnavailable, match=message) as failed:
        await connect(wrong, name="test")
    assert wrong.address in str(failed.value)
    assert f"{wrong.host}:{wrong.port}/{wrong.virtual_host}" == wrong.address
    assert PASSWORD not in str(failed.value)
    assert [record for record in caplog.records if record.name.startswith("pika")] == []


async def test_a_user_without_permission_on_the_vhost(rabbitmq_vhost: VirtualHost) -> None:
    user = rabbitmq_vhost.name
    rabbitmq_vhost.management.request("PUT", "users", user, body={"password": PASSWORD, "tags": ""})
    try:
        wrong = replace(rabbitmq_vhost.parameters, username=user, password=PASSWORD)
        with pytest.raises(BrokerUnavailable, match=r"user may not use it.*check vhost"):
            await connect(wrong, name="test")
    finally:
        rabbitmq_vhost.management.request("DELETE", "users", user)


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
async def test_a_silent_server_is_given_up_in_time(tls: bool) -> None:
    async with listener() as (port, gone):
        silent = BrokerParameters(
            host="127.0.0.1", port=port, username="op", password=PASSWORD, tls=tls
        )
        begun = time.monotonic()
        with pytest.raises(BrokerUnavailable, match=r"no AMQP answer within 0\.3 s"):
            await connect(silent, name="test", timeout_seconds=0.3)
        assert time.monotonic() - begun < 3
        await asyncio.wait_for(gone.wait(), PATIENCE)


async def test_a_server_of_another_protocol_is_told() -> None:
    async with listener(b"HTTP/1.1 400 Bad Request\r\n\r\n") as (port, gone):
        other = BrokerParameters(host="127.0.0.1", port=port, username="op", password=PASSWORD)
        with pytest.raises(BrokerUnavailable, match=r"does not speak AMQP 0-9-1") as caught:
            await connect(other, name="test", timeout_seconds=PATIENCE)
        assert "HTTP" not in str(caught.value)  # a condition must not show what others serve
        await asyncio.wait_for(gone.wait(), PATIENCE)


@pytest.mark.parametrize(
    ("tls", "greeting"),
    [(False, b""), (True, b""), (False, b"\x01\x00\x00\x00")],
    ids=["plain", "tls", "in the middle of a frame"],
)
async def test_cancelling_closes_the_socket(tls: bool, greeting: bytes) -> None:
    async with listener(greeting) as (port, gone):
        silent = BrokerParameters(
            host="127.0.0.1", port=port, username="op", password=PASSWORD, tls=tls
        )
        connecting = asyncio.ensure_future(connect(silent, name="test"))
        await asyncio.wait({connecting}, timeout=0.1)
        assert not connecting.done()
        assert not gone.is_set()
        connecting.cancel()
        await asyncio.wait({connecting})
        assert connecting.cancelled()
        await asyncio.wait_for(gone.wait(), PATIENCE)


async def test_closing_twice_is_closing_once(parameters: BrokerParameters) -> None:
    connection = await connect(parameters, name="test")
    channel = await connection.channel()
    assert not connection.closed.done()
    await asyncio.gather(connection.close(), connection.close())
    await connection.close()
    assert connection.closed.result() == "the connection was closed by this process"
    assert channel.closed.result()[0] == 0
    with pytest.raises(BrokerUnavailable, match="closed by this process"):
        await connection.channel()


async def test_a_close_by_the_broker_is_told(rabbitmq_vhost: VirtualHost) -> None:
    connection = await connect(rabbitmq_vhost.parameters, name="test")
    channel = await connection.channel()
    vhost = rabbitmq_vhost.name
    await asyncio.to_thread(rabbitmq_vhost.management.request, "DELETE", "vhosts", vhost)
    await asyncio.wait({connection.closed}, timeout=PATIENCE)
    assert "the broker closed the connection: 320 CONNECTION_FORCED" in connection.closed.result()
    assert "320 CONNECTION_FORCED" in channel.closed.result()[1]
    await connection.close()
    # The fixture deletes it again.
    rabbitmq_vhost.management.request("PUT", "vhosts", vhost)


async def test_a_reset_is_told_to_whoever_waits_for_a_reply(parameters: BrokerParameters) -> None:
    async with relay_to(parameters) as (relay, relayed):
        connection = await connect(relayed, name="test")
        channel = await connection.channel()
        relay.freeze()
        waiting: asyncio.Future[Any] = asyncio.ensure_future(channel.declare_queue("never"))
        opening: asyncio.Future[Any] = asyncio.ensure_future(connection.channel())
        requests: list[asyncio.Future[Any]] = [waiting, opening]
        await asyncio.wait(requests, timeout=0.05)
        relay.cut()
        for each in requests:
            with pytest.raises(BrokerUnavailable, match="the connection was lost"):
                await asyncio.wait_for(each, PATIENCE)
        assert "the connection was lost" in connection.closed.result()


async def test_a_silent_broker_is_given_up_after_two_heartbeats(
    parameters: BrokerParameters,
) -> None:
    async with relay_to(parameters) as (relay, relayed):
        connection = await connect(relayed, name="test", heartbeat_seconds=1)
        relay.freeze()
        begun = time.monotonic()
        await asyncio.wait({connection.closed}, timeout=PATIENCE)
        assert 1 < time.monotonic() - begun < 4
        assert "it has sent nothing for 2 s" in connection.closed.result()
        assert connection.silent_seconds >= 2


async def test_heartbeats_keep_an_idle_connection(parameters: BrokerParameters) -> None:
    connection = await connect(parameters, name="test", heartbeat_seconds=1)
    await asyncio.wait({connection.closed}, timeout=3.5)
    assert not connection.closed.done()
    assert connection.silent_seconds < 1
    await connection.close()


async def test_closing_does_not_wait_for_a_frozen_broker(
    parameters: BrokerParameters, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("taskqueue.amqp.connection.CLOSE_SECONDS", 0.2)
    async with relay_to(parameters) as (relay, relayed):
        connection = await connect(relayed, name="test")
        relay.freeze()
        begun = time.monotonic()
        await connection.close()
        assert time.monotonic() - begun < 2
        assert connection.closed.done()


async def test_a_channel_that_is_refused_leaves_the_connection(
    parameters: BrokerParameters,
) -> None:
    connection = await connect(parameters, name="test")
    channel = await connection.channel()
    with pytest.raises(ChannelRefused, match="404 NOT_FOUND - no queue 'missing'") as refused:
        await channel.declare_queue("missing", passive=True)
    assert refused.value.code == 404
    assert channel.closed.result()[0] == 404
    with pytest.raises(ChannelRefused, match="404"):
        await channel.declare_queue("again")
    assert await (await connection.channel()).declare_queue("again") == 0
    await connection.close()
