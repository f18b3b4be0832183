"""However a handler ends, in whatever executor: one outcome that can be published, a free slot."""

from __future__ import annotations

import asyncio
import base64
import shlex
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from hypothesis import given, settings
from hypothesis import strategies as st

from taskqueue.contract import outcome
from taskqueue.contract.outcome import AttemptEvent
from taskqueue.worker.attempt_events import event_of, kind_of
from taskqueue.worker.executor import AttemptResult, Execution
from taskqueue.worker.executors.function import FunctionExecutor
from taskqueue.worker.sdk import HandlerRegistry
from tests.fuzz.cases import FEW, MANY, fewer
from tests.fuzz.ends import ENDS, end
from tests.fuzz.json_documents import bodies
from tests.unit.worker.children import attempt, children
from tests.unit.worker.fakes import work
from tests.unit.worker.test_command_executor import shell
from tests.unit.worker.test_http_executor import service

PATIENCE = 20


async def run_async(payload: dict[str, Any]) -> Any:
    return end(payload["end"])


def run_sync(payload: dict[str, Any]) -> Any:
    return end(payload["end"])


class Attempts:
    """Starts attempts by an executor, and sees that each ends once."""

    def __init__(self, start: Callable[..., Execution]) -> None:
        self._start = start

    async def run(self, payload: dict[str, Any]) -> AttemptResult:
        results: list[AttemptResult] = []
        ended = asyncio.Event()

        def done(result: AttemptResult) -> None:
            results.append(result)
            ended.set()

        self._start(attempt("f", payload), done)
        async with asyncio.timeout(PATIENCE):
            await ended.wait()
        await asyncio.sleep(0)
        (result,) = results
        return result


def check(result: AttemptResult) -> None:
    """Publish the result of an attempt, and read it as the operator does."""
    message = work()
    published = event_of(message, kind_of(result), worker="pod-1", result=result)
    read: AttemptEvent = outcome.decode(published.body)
    assert read.token == message.token
    if result.error is None:  # unless the result turns out to be one that cannot be published
        assert read.error is None or read.error.type == "InvalidResult"
    else:
        assert read.error is not None
    assert read.result is None or isinstance(read.result, dict)
    if read.error is not None:
        assert read.error.type
        assert len(read.error.message.encode()) < 64 * 1024


async def every_end_is_an_outcome(
    attempts: Attempts, payload: dict[str, Any], good: dict[str, Any]
) -> None:
    check(await attempts.run(payload))
    after = await attempts.run(good)
    assert after.error is None, f"the attempt after it failed: {after.error}"


GOOD = {"end": "{'n': 1}"}


@asynccontextmanager
async def functions(function: Any, **how: Any) -> AsyncIterator[Attempts]:
    registry = HandlerRegistry()
    registry.register(function, name="f", **how)
    executor = FunctionExecutor(registry, asyncio.get_running_loop())
    try:
        yield Attempts(executor.start)
    finally:
        await executor.close()


@asynccontextmanager
async def coroutines() -> AsyncIterator[Attempts]:
    async with functions(run_async) as attempts:
        yield attempts


@asynccontextmanager
async def threads() -> AsyncIterator[Attempts]:
    async with functions(run_sync, thread=True) as attempts:
        yield attempts


@asynccontextmanager
async def child_processes() -> AsyncIterator[Attempts]:
    async with children(run_sync) as nursery:
        yield Attempts(nursery.executor.start)


@asynccontextmanager
async def commands() -> AsyncIterator[Attempts]:
    """A program that writes what its payload says to standard output, and ends so."""
    program = (
        "import base64, json, os, sys; p = json.load(sys.stdin); "
        "sys.stdout.buffer.write(base64.b64decode(p['body'])); sys.stdout.flush(); "
        "os._exit(p['code'])"
    )
    async with shell(shlex.join([sys.executable, "-S", "-c", program])) as made:
        yield Attempts(made.executor.start)


@asynccontextmanager
async def services() -> AsyncIterator[Attempts]:
    """A service that answers what its payload says."""

    async def answer(request: web.Request) -> web.Response:
        payload = await request.json()
        body = base64.b64decode(payload["body"])
        return web.Response(
            status=payload["code"], body=body, headers={"Content-Type": payload["type"]}
        )

    async with service(answer) as caller:
        yield Attempts(caller.executor.start)


class Place:
    """An executor that outlives the cases of a test: each of them leaves it whole."""

    def __init__(self, made: AbstractAsyncContextManager[Attempts]) -> None:
        self._made = made
        self._runner = asyncio.Runner()

    def __enter__(self) -> Place:
        self._attempts = self._runner.run(self._made.__aenter__())
        return self

    def __exit__(self, *_: object) -> None:
        self._runner.run(self._made.__aexit__(None, None, None))
        self._runner.close()

    def check(self, payload: dict[str, Any], good: dict[str, Any]) -> None:
        self._runner.run(every_end_is_an_outcome(self._attempts, payload, good))


IN_PROCESS = {"coroutine": coroutines, "thread": threads}
#: Of a program's exit, and of a service's answer.
EXITS = st.sampled_from([0, 0, 0, 1, 64, 65, 137, 255])
STATUSES = st.sampled_from([200, 200, 200, 201, 204, 400, 404, 429, 500, 503])
TYPES = st.sampled_from(["application/json", "text/plain", "application/json; charset=utf-16", "x"])
RESULT = {"loss": 0.5, "steps": [1, 2], "name": "caf\u00e9"}
BODIES = bodies(RESULT).map(lambda body: base64.b64encode(body).decode())
GOOD_BODY = base64.b64encode(b'{"n": 1}').decode()


def _ends_in(place: Callable[[], AbstractAsyncContextManager[Attempts]], cases: settings) -> None:
    with Place(place()) as executor:

        @cases
        @given(text=ENDS)
        def run(text: str) -> None:
            executor.check({"end": text}, GOOD)

        run()


@pytest.mark.parametrize("kind", IN_PROCESS)
def test_every_end_in_this_process_is_an_outcome(kind: str) -> None:
    _ends_in(IN_PROCESS[kind], fewer(FEW, 2))


def test_every_end_in_a_child_is_an_outcome() -> None:
    _ends_in(child_processes, fewer(FEW, 5))


def _answers_of_a_program(cases: settings) -> None:
    good = {"body": GOOD_BODY, "code": 0}
    with Place(commands()) as executor:

        @cases
        @given(body=BODIES, code=EXITS)
        def run(body: str, code: int) -> None:
            executor.check({"body": body, "code": code}, good)

        run()


def _answers_of_a_service(cases: settings) -> None:
    good = {"body": GOOD_BODY, "code": 200, "type": "application/json"}
    with Place(services()) as executor:

        @cases
        @given(body=BODIES, code=STATUSES, type=TYPES)
        def run(body: str, code: int, type: str) -> None:
            executor.check({"body": body, "code": code, "type": type}, good)

        run()


def test_whatever_a_program_prints_is_an_outcome() -> None:
    _answers_of_a_program(fewer(FEW, 20))


def test_whatever_a_service_answers_is_an_outcome() -> None:
    _answers_of_a_service(fewer(FEW, 5))


@pytest.mark.long
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("kind", [*IN_PROCESS, "child", "program", "service"])
def test_many_new_ends_are_outcomes(kind: str) -> None:
    match kind:
        case "child":
            _ends_in(child_processes, fewer(MANY, 2))
        case "program":
            _answers_of_a_program(fewer(MANY, 20))
        case "service":
            _answers_of_a_service(fewer(MANY, 5))
        case _:
            _ends_in(IN_PROCESS[kind], MANY)
