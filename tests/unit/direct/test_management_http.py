"""What listens at an address that others chose: its words are in no error, nor is there no end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from taskqueue.amqp.parameters import ManagementEndpoint
from taskqueue.direct import management_http
from taskqueue.direct.management_http import ManagementClient, ManagementError
from tests.unit.direct.fake_management import BROKER

CANARY = "canary7f3a"


@asynccontextmanager
async def listening(answer: bytes) -> AsyncIterator[ManagementClient]:
    """A client of a server that answers each request with these bytes, and hangs up."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(answer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    client = ManagementClient(ManagementEndpoint(url=url, username="u", broker=BROKER))
    try:
        yield client
    finally:
        await client.close()
        server.close()


async def refusal(answer: bytes) -> str:
    async with listening(answer) as client:
        with pytest.raises(ManagementError) as caught:
            await client.get("users")
    return str(caught.value)


def http(status: str = "200 OK", body: str = "", **headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n" + body).encode()


@pytest.mark.parametrize(
    "answer",
    [
        f"SSH-2.0-{CANARY}\r\n".encode(),
        f"220 {CANARY} ESMTP\r\n".encode(),
        f"-ERR {CANARY}\r\n".encode(),
        f"HTTP/1.1 599 {CANARY}\r\n\r\n".encode(),
        f"HTTP/1.1 200 OK\r\n{CANARY}\r\n\r\n".encode(),
        f"HTTP/1.1 200 OK\r\nContent-Length: {CANARY}\r\n\r\n".encode(),
        http("404 Not Found", CANARY, Content_Type="text/plain", Server=CANARY),
        http("401 " + CANARY, CANARY, WWW_Authenticate=CANARY),
        http("302 Found", Location=f"http://{CANARY}/"),
        http(body=CANARY, Content_Type=f"text/{CANARY}"),
        http(body=CANARY, Content_Type="application/json"),
        http(body=CANARY * 10, Content_Type="application/json", Content_Encoding=CANARY),
        http(X=CANARY * 2000),
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
        + CANARY.encode()
        + b"\r\n",
        b"\xff\xfe" + CANARY.encode(),
        CANARY.encode() * 10_000,
        b"",
    ],
)
async def test_an_error_quotes_nothing_of_an_answer(answer: bytes) -> None:
    assert CANARY not in await refusal(answer)


@settings(suppress_health_check=[HealthCheck.too_slow], max_examples=30, deadline=None)
@given(
    before=st.sampled_from([b"", b"HTTP/1.1 ", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 500 "]),
    noise=st.binary(max_size=30),
)
def test_an_error_quotes_no_noise(before: bytes, noise: bytes) -> None:
    text = asyncio.run(refusal(before + noise + CANARY.encode() + b"\r\n\r\n"))
    assert CANARY not in text


async def test_a_long_answer_is_not_read_to_its_end() -> None:
    body = "[" + "[]," * 700_000 + "[]]"
    text = await refusal(http(body=body, Content_Type="application/json"))
    assert f"more than {management_http.MAX_BYTES} bytes" in text


async def test_a_status_says_its_number_and_a_missing_object_is_deleted() -> None:
    async with listening(http(f"404 {CANARY}")) as client:
        await client.delete("users", "gone")
        with pytest.raises(ManagementError, match="answered 404: check") as caught:
            await client.put("users", "x", body={})
    assert caught.value.status == 404


async def test_a_name_cannot_lead_elsewhere() -> None:
    asked = bytearray()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.extend(await reader.readline())
        writer.write(http(body="{}", Content_Type="application/json"))
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    url = f"http://127.0.0.1:{port}/prefix"
    client = ManagementClient(ManagementEndpoint(url=url, username="u", broker=BROKER))
    await client.get("users", "a/../b?c#d")
    await client.close()
    server.close()
    assert asked.split()[1] == b"/prefix/api/users/a%2F..%2Fb%3Fc%23d"
