"""When a worker should be restarted, and what the probes answer over HTTP."""

from __future__ import annotations

import asyncio

import pytest

from taskqueue.worker.health import RECONNECT_SECONDS, HealthServer, unhealthy


@pytest.mark.parametrize(
    ("unregistered_seconds", "busy", "stuck", "word"),
    [
        (0.0, 0, 0, None),
        (0.0, 2, 1, None),
        (RECONNECT_SECONDS - 1, 0, 0, None),
        (RECONNECT_SECONDS + 1, 0, 0, "no consumer"),
        (RECONNECT_SECONDS + 1, 1, 1, "no consumer"),
        (RECONNECT_SECONDS + 1, 2, 1, None),  # a restart would kill the one that runs
        (0.0, 2, 2, "all 2 slots"),
    ],
)
def test_why_a_worker_is_restarted(
    unregistered_seconds: float, busy: int, stuck: int, word: str | None
) -> None:
    why = unhealthy(unregistered_seconds=unregistered_seconds, busy=busy, stuck=stuck, slots=2)
    assert (why is None) if word is None else (why is not None and word in why)


async def ask(port: int, request: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    answer = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    return answer


async def test_the_answers() -> None:
    wrong: list[str] = []
    server = HealthServer(
        healthy=lambda: wrong[0] if wrong else None,
        ready=lambda: "no consumer yet",
        counters=lambda: {"messages_total": 7},
    )
    port = await server.start(0, host="127.0.0.1")
    fine = await ask(port, b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
    assert fine.startswith(b"HTTP/1.1 200 OK\r\n")
    assert fine.endswith(b"\r\n\r\nok\n")
    wrong.append("all slots are stuck")
    failing = await ask(port, b"GET /healthz?verbose HTTP/1.1\r\n\r\n")
    assert failing.startswith(b"HTTP/1.1 503 ")
    assert failing.endswith(b"all slots are stuck\n")
    assert (await ask(port, b"GET /readyz HTTP/1.1\r\n\r\n")).endswith(b"no consumer yet\n")
    numbers = await ask(port, b"GET /metrics HTTP/1.1\r\n\r\n")
    assert numbers.startswith(b"HTTP/1.1 200 OK\r\n")
    assert numbers.endswith(b"# TYPE messages_total counter\nmessages_total 7\n")
    assert (await ask(port, b"GET / HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.1 404 ")
    assert (await ask(port, b"nonsense\r\n\r\n")).startswith(b"HTTP/1.1 404 ")
    server.close()
