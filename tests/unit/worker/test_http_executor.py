"""Services as handlers, among them the sample: requests, answers, time-outs, cancels."""

from __future__ import annotations

import asyncio
import re
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from taskqueue.limits import LONGEST_RETRY_SECONDS
from taskqueue.worker.executor import AttemptResult, Execution
from taskqueue.worker.executors.http import HttpError, HttpExecutor, HttpTarget
from tests.unit.worker.children import PATIENCE, attempt
from tests.unit.worker.hostile_ends import BODIES, assert_published

SAMPLE = Path(__file__).parents[3] / "examples/executors/http/service.py"


class Caller:
    """An executor that serves every handler by one service, and the results it gave."""

    def __init__(self, url: str, name: str = "*", grace: float = 5.0) -> None:
        self.executor = HttpExecutor(
            [HttpTarget.parse(f"{name}={url}")],
            asyncio.get_running_loop(),
            kill_grace_seconds=grace,
        )
        self.results: asyncio.Queue[AttemptResult] = asyncio.Queue()

    def start(self, payload: dict[str, Any] | None = None, **changes: Any) -> Execution:
        return self.executor.start(attempt(payload=payload, **changes), self.results.put_nowait)

    async def result(self) -> AttemptResult:
        return await asyncio.wait_for(self.results.get(), PATIENCE)

    async def run(self, payload: dict[str, Any] | None = None, **changes: Any) -> AttemptResult:
        self.start(payload, **changes)
        return await self.result()


@asynccontextmanager
async def service(
    handle: Callable[[web.Request], Awaitable[web.StreamResponse]], **how: Any
) -> AsyncIterator[Caller]:
    """A service that answers every request with ``handle``, and a caller of it."""
    server = web.Server(handle, handler_cancellation=True)  # type: ignore[arg-type]
    runner = web.ServerRunner(server, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    caller = Caller(f"http://127.0.0.1:{runner.addresses[0][1]}/run", **how)
    try:
        yield caller
    finally:
        await caller.executor.close()
        await runner.cleanup()


async def test_payload_and_attempt_go_in_and_the_object_comes_out() -> None:
    async def echo(request: web.Request) -> web.Response:
        ours = {k: v for k, v in request.headers.items() if k.startswith("Taskqueue-")}
        return web.json_response(
            {
                "method": request.method,
                "path": request.raw_path,
                "payload": await request.json(),
                "about": ours,
                "type": request.content_type,
            }
        )

    async with service(echo) as caller:
        about = {"fence": 7, "scheduled_time": datetime(2026, 1, 2, 12, tzinfo=UTC)}
        result = await caller.run({"a": "ä"}, handler="pack/all", uid="order 7\r\nä", **about)
    assert result.error is None
    assert result.result is not None
    assert result.result["about"].pop("Taskqueue-Checkpoint-Url").startswith("http://127.0.0.1:")
    assert result.result == {
        "method": "POST",
        "path": "/run/pack%2Fall",
        "payload": {"a": "ä"},
        "about": {
            "Taskqueue-Task": "shop/a",
            "Taskqueue-Uid": "order 7%0D%0A%C3%A4",
            "Taskqueue-Attempt": "1",
            "Taskqueue-Max-Attempts": "3",
            "Taskqueue-Fence": "7",
            "Taskqueue-Scheduled-Time": "2026-01-02T12:00:00+00:00",
            "Taskqueue-Timeout-Seconds": "30",
        },
        "type": "application/json",
    }


@pytest.mark.parametrize(
    ("answer", "result"),
    [
        (web.Response(status=204), None),
        (web.Response(text="fine"), None),
        (web.json_response([1]), None),
        (web.json_response({"a": 1}, status=201), {"a": 1}),
        (web.Response(body=b' {"a": -9223372036854775808}\n'), {"a": -(2**63)}),
    ],
)
async def test_what_success_brings(answer: web.Response, result: dict[str, Any] | None) -> None:
    async def handle(request: web.Request) -> web.Response:
        return answer

    async with service(handle) as caller:
        told = await caller.run()
    assert (told.error, told.result) == (None, result)


@pytest.mark.parametrize(
    ("status", "retryable"),
    [(400, False), (404, False), (422, False), (301, False)]
    + [(status, True) for status in (408, 425, 429, 500, 503, 599)],
)
async def test_which_failures_are_retried(status: int, retryable: bool) -> None:
    async def handle(request: web.Request) -> web.Response:
        return web.Response(status=status, text="no pixels\nmore", headers={"Location": "/"})

    async with service(handle) as caller:
        error = (await caller.run()).error
    assert error is not None
    assert (error.type, error.retryable) == ("HttpStatus", retryable)
    assert re.match(rf"http://127.*/run/f answered {status} .*: no pixels$", error.message)


@pytest.mark.parametrize(
    ("value", "low", "high"),
    [
        (lambda: "12", 12, 12),
        (lambda: formatdate(time.time() + 3600, usegmt=True), 2000, 3600),
        (lambda: "soon", None, None),
    ],
    ids=["seconds", "a date", "neither"],
)
async def test_retry_after(value: Callable[[], str], low: float | None, high: float | None) -> None:
    async def handle(request: web.Request) -> web.Response:
        return web.Response(status=429, headers={"Retry-After": value()})

    async with service(handle) as caller:
        after = (await caller.run()).retry_after_seconds
    assert after is None if low is None or high is None else low <= (after or 0) <= high


async def test_nobody_answers(unused_tcp_port: int) -> None:
    caller = Caller(f"http://127.0.0.1:{unused_tcp_port}/run")
    error = (await caller.run()).error
    await caller.executor.close()
    assert error is not None
    assert (error.type, error.retryable) == ("HttpUnreachable", True)
    assert f"no answer from http://127.0.0.1:{unused_tcp_port}/run/f" in error.message


async def test_a_connection_that_breaks_and_an_answer_that_is_too_large() -> None:
    async def handle(request: web.Request) -> web.StreamResponse:
        if (await request.json())["how"] == "break":
            assert request.transport is not None
            request.transport.abort()
        return web.json_response({"text": "x" * 1_100_000})

    async with service(handle) as caller:
        broken = (await caller.run({"how": "break"})).error
        large = (await caller.run({"how": "large"})).error
    assert broken is not None
    assert large is not None
    assert (broken.type, broken.retryable) == ("HttpUnreachable", True)
    assert (large.type, large.retryable) == ("ResultTooLarge", False)


@pytest.mark.parametrize("how", ["answers", "hangs"])
async def test_a_cancel_closes_the_connection_and_sends_a_delete(how: str) -> None:
    seen: asyncio.Queue[str] = asyncio.Queue()

    async def handle(request: web.Request) -> web.Response:
        about = [request.headers[f"Taskqueue-{name}"] for name in ("Uid", "Attempt")]
        await seen.put(" ".join([request.method, request.path, *about]))
        if request.method == "DELETE" and how == "answers":
            return web.Response(status=204)
        try:
            await asyncio.sleep(1000)
        except asyncio.CancelledError:
            await seen.put(f"{request.method} closed")
            raise
        return web.Response()

    async with service(handle, grace=0.2) as caller:
        execution = caller.start()
        assert await seen.get() == "POST /run/f u 1"
        execution.cancel()
        error = (await caller.result()).error
        assert error is not None
        assert error.type == "Cancelled"
        told = {await asyncio.wait_for(seen.get(), PATIENCE) for _ in range(2)}
        assert told == {"POST closed", "DELETE /run/f u 1"}
        execution.cancel()  # harmless
        second = caller.start()
        assert await asyncio.wait_for(seen.get(), PATIENCE)
        second.cancel()
        assert second.kill(), "it waits for no answer to the DELETE"
        await caller.result()


async def test_nothing_is_deleted_for_a_message_that_has_no_uid() -> None:
    seen: asyncio.Queue[str] = asyncio.Queue()

    async def handle(request: web.Request) -> web.Response:
        await seen.put(request.method)
        await asyncio.sleep(1000)
        return web.Response()

    async with service(handle) as caller:
        execution = caller.start(uid="")
        assert await seen.get() == "POST"
        execution.cancel()
        assert (await caller.result()).error is not None
        assert seen.empty()


async def test_a_connection_that_was_idle_is_not_relied_upon(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("taskqueue.worker.executors.http._IDLE_SECONDS", 0.01)
    callers: list[object] = []

    async def handle(request: web.Request) -> web.Response:
        assert request.transport is not None
        callers.append(request.transport.get_extra_info("peername"))
        return web.Response()

    async with service(handle) as caller:
        await caller.run()
        await asyncio.sleep(0.1)
        await caller.run()
    assert callers[0] != callers[1]


@pytest.mark.parametrize("how", ["refuses", "says", "stammers"])
async def test_what_may_be_secret_in_the_address_stays_here(how: str, unused_tcp_port: int) -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        first = b"HTTP/1.1 500 No" if how == "says" else b"What?"
        writer.write(first + b"\r\nContent-Length: 0\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", unused_tcp_port)
    if how == "refuses":
        server.close()
    caller = Caller(f"http://me:hush@127.0.0.1:{unused_tcp_port}/run?key=hush")
    error = (await caller.run()).error
    await caller.executor.close()
    server.close()
    assert error is not None
    assert f"http://127.0.0.1:{unused_tcp_port}/run/f" in error.message
    assert "hush" not in error.message


async def test_a_name_of_its_own_and_one_that_is_not_served() -> None:
    async def handle(request: web.Request) -> web.Response:
        return web.json_response({"path": request.path})

    async with service(handle, name="f") as caller:
        assert (await caller.run()).result == {"path": "/run"}
        error = (await caller.run(handler="g")).error
        assert error is not None
        assert error.type == "UnknownHandler"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("http://127.0.0.1/", "names no handler"),
        ("f=ftp://127.0.0.1/", "names no http:// address"),
        ("f=http://[::1", "Invalid IPv6"),
        ("f=http://127.0.0.1:port/", "port"),
        ("f=http://example.com/", "--http-anywhere"),
        ("f=http://10.0.0.1/", "not an address of this pod"),
    ],
)
def test_wrong_options(text: str, words: str) -> None:
    with pytest.raises(HttpError) as told:
        HttpTarget.parse(text)
    assert words in str(told.value)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:80", "127.1.2.3", "[::1]:8000"])
def test_addresses_of_the_pod(host: str) -> None:
    assert HttpTarget.parse(f"f=http://{host}/x").url == f"http://{host}/x"


def test_the_name_goes_before_a_query() -> None:
    target = HttpTarget.parse("*=http://127.0.0.1:8000/run/?tenant=a")
    assert target.url_for("pack") == "http://127.0.0.1:8000/run/pack?tenant=a"


def test_anywhere_if_that_is_said() -> None:
    assert HttpTarget.parse("f=https://example.com/x", anywhere=True).name == "f"


# The sample.


@pytest.fixture
async def sample(unused_tcp_port: int) -> AsyncIterator[tuple[Caller, asyncio.StreamReader]]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(SAMPLE), str(unused_tcp_port), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    assert (await process.stdout.readline()).startswith(b"serving")
    caller = Caller(f"http://127.0.0.1:{unused_tcp_port}/run")
    yield caller, process.stdout
    await caller.executor.close()
    process.terminate()
    assert await asyncio.wait_for(process.wait(), PATIENCE) == 0


async def test_the_sample(sample: tuple[Caller, asyncio.StreamReader]) -> None:
    caller, output = sample
    told = await caller.run({"name": "Ada"}, handler="greet")
    assert told.result == {"greeting": "Hello, Ada!", "attempt": 1}
    busy = await caller.run({"name": "later"}, handler="greet")
    assert busy.error is not None
    assert (busy.error.retryable, busy.retry_after_seconds) == (True, 2)
    assert (await caller.run({"name": "later"}, handler="greet", attempt=2)).error is None
    for handler in ("greet", "pack"):
        error = (await caller.run({}, handler=handler)).error
        assert error is not None
        assert not error.retryable
    execution = caller.start({}, handler="wait")
    assert await asyncio.wait_for(output.readline(), PATIENCE) == b"waiting\n"
    later = caller.start({}, handler="wait", attempt=2)
    assert await asyncio.wait_for(output.readline(), PATIENCE) == b"waiting\n"
    execution.cancel()
    assert await asyncio.wait_for(output.readline(), PATIENCE) == b"stopped\n"
    assert (await caller.result()).error is not None
    later.cancel()
    assert await asyncio.wait_for(output.readline(), PATIENCE) == b"stopped\n"
    assert (await caller.result()).error is not None


@pytest.mark.parametrize("name", BODIES)
@pytest.mark.parametrize("status", [200, 400, 503])
async def test_whatever_a_service_answers_is_an_outcome(name: str, status: int) -> None:
    async def handle(request: web.Request) -> web.Response:
        return web.Response(status=status, body=BODIES[name], headers={"Retry-After": "9" * 400})

    async with service(handle) as caller:
        result = await caller.run()
    assert_published(result)
    assert (result.error is None) or status != 200 or not result.error.retryable
    assert result.retry_after_seconds == (None if status == 200 else LONGEST_RETRY_SECONDS)


@pytest.mark.parametrize("handler", ["..", ".", ""])
async def test_a_name_that_is_a_step_in_a_path_reaches_nothing(handler: str) -> None:
    paths: list[str] = []

    async def record(request: web.Request) -> web.Response:
        paths.append(request.raw_path)
        return web.Response()

    async with service(record) as caller:
        error = (await caller.run(handler=handler)).error
    assert error is not None
    assert error.type == "UnknownHandler"
    assert not paths
