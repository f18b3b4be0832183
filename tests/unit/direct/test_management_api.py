"""What is read from a broker's endpoints, and what is said of an answer that is none."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from aiohttp import web

from taskqueue.amqp.parameters import MANAGEMENT_URI, BrokerParameters, ManagementEndpoint
from taskqueue.direct import management_api, management_http
from taskqueue.direct.management_api import StatisticsClient, StatisticsUnreadable
from taskqueue.model.queue_stats import QueueStats

BROKER = BrokerParameters(host="rabbit", port=5672, username="u", password="s3cret")

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def served(
    answer: Handler,
    *,
    virtual_host: str = "/",
    prefix: str = "",
) -> AsyncIterator[StatisticsClient]:
    """A client of an endpoint that answers so."""
    server = web.Server(answer)
    runner = web.ServerRunner(server, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    data = {MANAGEMENT_URI: f"http://127.0.0.1:{port}{prefix}"}
    endpoint = ManagementEndpoint.from_mapping(data, replace(BROKER, virtual_host=virtual_host))
    assert endpoint is not None
    client = StatisticsClient(endpoint)
    try:
        yield client
    finally:
        await client.close()
        await runner.cleanup()


def page(*items: Any, pages: int = 1) -> web.Response:
    return web.json_response({"items": list(items), "page_count": pages})


def queue(name: str, ready: Any = 1, unacknowledged: Any = 2, **more: Any) -> dict[str, Any]:
    return {
        "name": name,
        "state": "running",
        "messages_ready": ready,
        "messages_unacknowledged": unacknowledged,
        **more,
    }


async def unreadable(answer: Handler) -> str:
    async with served(answer) as client:
        with pytest.raises(StatisticsUnreadable) as caught:
            await client.read()
    text = str(caught.value)
    assert "s3cret" not in text
    assert f"at {client._endpoint.url} ({MANAGEMENT_URI}) cannot be read: " in text
    return text


# The management API.


async def test_management_is_asked_for_all_queues_of_the_virtual_host_at_once() -> None:
    requests: list[web.BaseRequest] = []

    async def answer(request: web.BaseRequest) -> web.Response:
        requests.append(request)
        return page(queue("taskqueue.shop.a", 6, 4), queue("taskqueue.shop.b", 0, 0))

    async with served(answer, virtual_host="a/b %2F ü", prefix="/rabbit/") as client:
        assert await client.read() == {
            "taskqueue.shop.a": QueueStats(6, 4),
            "taskqueue.shop.b": QueueStats(0, 0),
        }
    (request,) = requests
    assert request.raw_path.startswith("/rabbit/api/queues/a%2Fb%20%252F%20%C3%BC?")
    assert request.query["columns"] == "name,state,messages_ready,messages_unacknowledged"
    assert request.query["name"] == r"^taskqueue\."
    assert "disable_stats" not in request.query  # what is unknown would be 0
    login = base64.b64encode(b"u:s3cret").decode()
    assert request.headers["Authorization"] == f"Basic {login}"


async def test_every_page_is_read() -> None:
    async def answer(request: web.BaseRequest) -> web.Response:
        return page(queue(f"taskqueue.shop.{request.query['page']}"), pages=3)

    async with served(answer) as client:
        assert sorted(await client.read()) == [f"taskqueue.shop.{one}" for one in (1, 2, 3)]


async def test_there_is_an_end_to_the_pages() -> None:
    async def answer(request: web.BaseRequest) -> web.Response:
        return page(queue("taskqueue.shop.a"), pages=10**6)

    assert "more than 10000 queues" in await unreadable(answer)


@pytest.mark.parametrize(
    "item",
    [
        {"name": "taskqueue.shop.new"},
        queue("taskqueue.shop.q", None, None),
        queue("taskqueue.shop.q", 1, None),
        queue("taskqueue.shop.q", "1", 2),
        queue("taskqueue.shop.q", 1, 2.0),
        queue("taskqueue.shop.q", True, False),
        queue("taskqueue.shop.q", 1, 2, state="down"),
        queue("taskqueue.shop.q", 1, 2, state="minority"),
        {"messages_ready": 1, "messages_unacknowledged": 1},
        "taskqueue.shop.q",
        None,
    ],
)
async def test_queue_without_statistics_is_unknown_and_not_zero(item: Any) -> None:
    async def answer(request: web.BaseRequest) -> web.Response:
        return page(item, queue("taskqueue.shop.known"))

    async with served(answer) as client:
        assert list(await client.read()) == ["taskqueue.shop.known"]


async def test_a_broker_without_statistics_is_asked_for_totals() -> None:
    async def answer(request: web.BaseRequest) -> web.Response:
        if request.path == "/api/overview":
            return web.json_response({"disable_stats": True})
        totals = request.query.get("disable_stats") == "true"
        assert totals == (request.query.get("enable_queue_totals") == "true")
        return page(queue("taskqueue.shop.a") if totals else {"name": "taskqueue.shop.a"})

    async with served(answer) as client:
        assert await client.read() == {}
        assert await client.read() == {"taskqueue.shop.a": QueueStats(1, 2)}


async def test_a_broker_that_has_just_started_is_not_asked_for_totals() -> None:
    known = False

    async def answer(request: web.BaseRequest) -> web.Response:
        if request.path == "/api/overview":
            return web.json_response({"disable_stats": False})
        if request.query.get("disable_stats") == "true":
            return page(queue("taskqueue.shop.a", 0, 0))
        return page(queue("taskqueue.shop.a") if known else {"name": "taskqueue.shop.a"})

    async with served(answer) as client:
        assert await client.read() == {}
        assert await client.read() == {}
        known = True
        assert await client.read() == {"taskqueue.shop.a": QueueStats(1, 2)}


@pytest.mark.parametrize("text", ["[]", "{}", '{"items": 1, "page_count": 1}'])
async def test_json_without_a_list_of_queues_is_refused(text: str) -> None:
    async def answer(request: web.BaseRequest) -> web.Response:
        return web.Response(text=text, content_type="application/json")

    assert "not a list of queues" in await unreadable(answer)


@pytest.mark.parametrize("text", ["", "{"])
async def test_what_is_no_json_is_refused(text: str) -> None:
    async def answer(request: web.BaseRequest) -> web.Response:
        return web.Response(text=text, content_type="application/json")

    assert "unexpected answer: it is not JSON" in await unreadable(answer)


# What is no answer.


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (401, "check the password of user u, and give that user the tag management"),
        (403, "permissions on the virtual host"),
        (404, "that the virtual host / exists"),
        (503, "answered 503: check that the address is RabbitMQ's management API"),
    ],
)
async def test_a_refusal_says_what_to_do(status: int, words: str) -> None:
    async def answer(request: web.BaseRequest) -> web.Response:
        return web.json_response({}, status=status)

    assert words in await unreadable(answer)


async def test_a_redirect_is_not_followed_with_the_password() -> None:
    asked: list[str] = []

    async def answer(request: web.BaseRequest) -> web.Response:
        asked.append(request.path)
        raise web.HTTPMovedPermanently("/elsewhere")

    assert "answered 301: a redirect is not followed" in await unreadable(answer)
    assert asked == ["/api/queues//"]


async def test_web_page_is_refused() -> None:
    async def answer(request: web.BaseRequest) -> web.Response:
        return web.Response(text="<html>log in</html>", content_type="text/html")

    assert "its type is not application/json" in await unreadable(answer)


async def test_an_answer_without_end_is_given_up() -> None:
    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        while True:
            await response.write(b" " * 2**18)

    assert f"more than {management_http.MAX_BYTES} bytes" in await unreadable(answer)


async def test_an_endpoint_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(management_api, "READ_SECONDS", 0.2)

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        await response.write(b'{"items":')
        await asyncio.Event().wait()
        return response

    assert "no answer within 0.2 s" in await unreadable(answer)


async def test_an_answer_cut_short_is_none() -> None:
    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        response.content_length = 1000
        await response.prepare(request)
        await response.write(b"{")
        assert request.transport is not None
        request.transport.abort()
        return response

    assert "the connection failed" in await unreadable(answer)


async def test_compressed_text_is_not_inflated() -> None:
    async def answer(request: web.BaseRequest) -> web.Response:
        assert request.headers["Accept-Encoding"] == "identity"
        response = web.Response(
            body=json.dumps({"items": [], "page_count": 1}).encode(),
            content_type="application/json",
        )
        response.enable_compression(web.ContentCoding.gzip)
        return response

    assert "it is not JSON" in await unreadable(answer)


async def test_nothing_listens() -> None:
    async def answer(request: web.BaseRequest) -> web.Response:
        return page()

    async with served(answer) as client:
        pass
    gone = StatisticsClient(client._endpoint)
    with pytest.raises(StatisticsUnreadable, match="nothing listens there: check host and port"):
        await gone.read()
    await gone.close()


async def test_an_answer_after_a_failure_is_read() -> None:
    answers = [web.Response(status=500), page(queue("taskqueue.shop.a"))]

    async def answer(request: web.BaseRequest) -> web.Response:
        return answers.pop(0)

    async with served(answer) as client:
        with pytest.raises(StatisticsUnreadable):
            await client.read()
        assert await client.read() == {"taskqueue.shop.a": QueueStats(1, 2)}


async def test_an_authority_that_is_none_names_the_key() -> None:
    endpoint = ManagementEndpoint(
        url="https://127.0.0.1:1",
        username="u",
        broker=replace(BROKER, ca_certificate="no certificate"),
    )
    client = StatisticsClient(endpoint)
    with pytest.raises(
        StatisticsUnreadable, match=r"cannot be read: key ca\.crt is not a PEM certificate"
    ):
        await client.read()
    await client.close()


async def test_plain_text_where_tls_is_spoken() -> None:
    async def answer(request: web.BaseRequest) -> web.Response:
        return page()

    async with served(answer) as client:
        url = client._endpoint.url.replace("http://", "https://")
        wrong = StatisticsClient(replace(client._endpoint, url=url))
        with pytest.raises(StatisticsUnreadable, match="TLS failed: check that the port speaks"):
            await wrong.read()
        await wrong.close()
