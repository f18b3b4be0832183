"""Requests to receivers on this machine: what reaches them, what must not, and what is said."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web

from taskqueue.controller.completions.webhook_client import (
    EXPLANATIONS,
    WebhookClient,
    WebhookFailure,
    WebhookTrouble,
    is_usable,
)
from taskqueue.controller.completions.webhook_networks import WebhookNetworks
from tests.unit.controller.completions.test_webhook_networks import spellings_v4

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

LOOPBACK = WebhookNetworks.parse("127.0.0.0/8")
#: What is said of a URL that leads nowhere.
NOWHERE = (
    WebhookTrouble.ADDRESS_NOT_ALLOWED,
    WebhookTrouble.NAME_UNKNOWN,
    WebhookTrouble.URL_INVALID,
)
#: Long enough for a machine that is busy.
PATIENT = 60.0


class Receiver:
    """Answers as the test says, and counts the connections that it gets, whatever comes by them."""

    def __init__(self) -> None:
        self.requests: list[tuple[web.Request, bytes]] = []
        self.connections = 0
        self.answer: Handler = self._accept

    async def _accept(self, _: web.Request) -> web.StreamResponse:
        return web.Response(status=204)

    async def start(self, host: str = "127.0.0.1") -> None:
        self._runner = web.ServerRunner(web.Server(self._handle), shutdown_timeout=0.1)
        await self._runner.setup()
        server = self._runner.server
        assert server is not None

        def protocol() -> Any:
            self.connections += 1
            return server()

        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(protocol, host, 0)
        self.port: int = self._server.sockets[0].getsockname()[1]

    def url(self, host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}/hook"

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        assert isinstance(request, web.BaseRequest)
        self.requests.append((request, await request.read()))  # type: ignore[arg-type]
        return await self.answer(request)  # type: ignore[arg-type]

    async def stop(self) -> None:
        self._server.close()
        await self._runner.cleanup()


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    receiver = Receiver()
    await receiver.start()
    yield receiver
    await receiver.stop()


@pytest.fixture
async def client() -> AsyncIterator[WebhookClient]:
    client = WebhookClient(LOOPBACK, at_once=4)
    yield client
    await client.close()


async def post(client: WebhookClient, url: str, *, seconds: float = PATIENT) -> Any:
    return await client.post(url, b'{"a": 1}', {"X-Own": "yes"}, timeout_seconds=seconds)


async def test_a_body_and_headers_arrive_by_connections_that_are_used_again(
    client: WebhookClient, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")  # of the operator, not of webhooks
    for _ in range(3):
        assert await post(client, receiver.url()) is None
    assert receiver.connections == 1
    request, body = receiver.requests[0]
    assert body == b'{"a": 1}'
    assert (request.method, request.headers["X-Own"]) == ("POST", "yes")
    assert request.headers["User-Agent"] == "taskqueue-operator"


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
async def test_a_status_below_300_is_accepted(
    client: WebhookClient, receiver: Receiver, status: int
) -> None:
    receiver.answer = lambda _: answer(status)
    assert await post(client, receiver.url()) is None


@pytest.mark.parametrize("status", [400, 401, 404, 410, 429, 500, 503, 599])
async def test_another_status_is_not(
    client: WebhookClient, receiver: Receiver, status: int
) -> None:
    receiver.answer = lambda _: answer(status, "the receiver's words")
    failure = await post(client, receiver.url())
    assert failure == WebhookFailure(WebhookTrouble.REFUSED, status)
    assert str(status) in str(failure)
    assert "words" not in str(failure)


async def answer(status: int, text: str = "", **headers: str) -> web.StreamResponse:
    return web.Response(status=status, text=text, headers=headers)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_not_followed(
    client: WebhookClient, receiver: Receiver, status: int
) -> None:
    other = Receiver()
    await other.start()
    receiver.answer = lambda _: answer(status, Location=other.url())
    assert await post(client, receiver.url()) == WebhookFailure(WebhookTrouble.REDIRECTED, status)
    assert other.connections == 0
    await other.stop()


@pytest.mark.parametrize(
    "host",
    [
        *spellings_v4("127.0.0.1"),
        "localhost",
        "LOCALHOST.",
        "127.1",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "①②⑦.⓪.⓪.①",
    ],
)
async def test_no_spelling_of_an_address_gets_a_connection_there(
    receiver: Receiver, host: str
) -> None:
    client = WebhookClient(WebhookNetworks(), at_once=1)
    failure = await post(client, receiver.url(host))
    assert receiver.connections == 0
    assert failure is not None
    assert failure.trouble in NOWHERE
    await client.close()


@pytest.mark.parametrize("at_once", [True, False])
async def test_a_name_that_changes_its_address_leads_nowhere_else(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch, at_once: bool
) -> None:
    """Of two addresses one is allowed, where nobody listens: both in one answer, or in turn."""
    turn = 0

    def resolve(host: str, port: int, *_: object) -> list[tuple[Any, ...]]:
        nonlocal turn
        turn += 1
        addresses = ["127.0.0.2", "127.0.0.1"]
        found = addresses if at_once else [addresses[turn % 2]]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, port)) for one in found]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    client = WebhookClient(WebhookNetworks.parse("127.0.0.2/32"), at_once=1)
    client._session.connector._use_dns_cache = False  # type: ignore[union-attr]
    for _ in range(6):
        assert await post(client, receiver.url("changing.example")) is not None
    assert turn >= 6
    assert receiver.connections == 0
    await client.close()


async def test_a_name_without_an_address_is_said(
    client: WebhookClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def resolve(*_: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "unknown")

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    failure = await post(client, "http://nowhere.example/")
    assert failure == WebhookFailure(WebhookTrouble.NAME_UNKNOWN)


async def test_a_receiver_that_does_not_answer_is_said(
    client: WebhookClient, receiver: Receiver
) -> None:
    async def hang(_: web.Request) -> web.StreamResponse:
        await asyncio.Event().wait()
        raise AssertionError

    receiver.answer = hang
    failure = await post(client, receiver.url(), seconds=0.2)
    assert failure == WebhookFailure(WebhookTrouble.TIMED_OUT)


async def test_an_answer_without_an_end_is_left_when_its_status_is_known(
    client: WebhookClient, receiver: Receiver
) -> None:
    async def talk(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b"words " * 1000)

    receiver.answer = talk
    assert await post(client, receiver.url()) is None


async def test_nobody_there_and_no_tls_are_said(client: WebhookClient, receiver: Receiver) -> None:
    failure = await post(client, receiver.url().replace("http:", "https:"))
    assert failure == WebhookFailure(WebhookTrouble.TLS_FAILED)
    await receiver.stop()
    assert await post(client, receiver.url()) == WebhookFailure(WebhookTrouble.UNREACHABLE)


async def test_a_connection_that_is_closed_without_an_answer_is_said(client: WebhookClient) -> None:
    async def close(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async with await asyncio.start_server(close, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        failure = await post(client, f"http://127.0.0.1:{port}/")
    assert failure == WebhookFailure(WebhookTrouble.UNREACHABLE)


@pytest.mark.parametrize(
    ("url", "usable"),
    [
        ("https://shop.example/hook?a=b", True),
        ("http://10.1.2.3:8080", True),
        ("http://[::1]:8080/", True),
        ("ftp://shop.example/", False),
        ("file:///etc/passwd", False),
        ("https://user:word@shop.example/", False),
        ("https://user@shop.example/", False),
        ("https:///path", False),
        ("shop.example/hook", False),
        ("http://shop.example:99999/", False),
        ("http://[::1/", False),
        ("", False),
    ],
)
def test_which_urls_can_be_used(url: str, usable: bool) -> None:
    assert is_usable(url) is usable


def test_each_trouble_has_words() -> None:
    assert EXPLANATIONS.keys() == set(WebhookTrouble)
