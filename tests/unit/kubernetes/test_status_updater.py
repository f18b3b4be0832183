import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import orjson
import pytest

from taskqueue.kubernetes.client import METADATA
from taskqueue.kubernetes.status_updater import StatusUpdater, WriteRefused, WriteResult, Written
from tests.unit.kubernetes.fake_api import FakeApi, eventually, serve


class Case:
    def __init__(self, api: FakeApi, writer: StatusUpdater) -> None:
        self.api = api
        self.writer = writer
        self.results: dict[str, list[WriteResult]] = {}

    def put(self, name: str, value: int, *, urgent: bool = False) -> None:
        results = self.results.setdefault(f"{name}={value}", [])
        self.writer.put(f"/{name}", orjson.dumps({"value": value}), results.append, urgent=urgent)

    def written(self) -> list[tuple[str, int]]:
        return [(path.strip("/"), body["value"]) for path, body in self.api.patches]


@asynccontextmanager
async def writing(*, concurrency: int = 2, open_gate: bool = False) -> AsyncIterator[Case]:
    api = FakeApi()
    if open_gate:
        api.gate.set()
    async with serve(api, max_connections=concurrency) as client:
        writer = StatusUpdater(client, concurrency=concurrency)
        task = asyncio.create_task(writer.run())
        try:
            yield Case(api, writer)
        finally:
            api.gate.set()
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


async def test_status_is_written_and_its_callback_called_once() -> None:
    async with writing(open_gate=True) as case:
        case.put("a", 1)
        await eventually(lambda: case.results["a=1"] == [Written()])
        assert case.written() == [("a", 1)]
        assert len(case.writer) == 0


async def test_status_of_an_object_that_cannot_be_read_is_written_once() -> None:
    deep = b'{"f:a":' * 1100 + b"1" + b"}" * 1100
    async with writing(open_gate=True) as case:
        case.api.answer_text = (
            b'{"metadata":{"generation":3,"managedFields":[{"fieldsV1":' + deep + b"}],"
            b'"resourceVersion":"7"}}'
        )
        case.put("a", 1)
        await eventually(lambda: case.results["a=1"] == [Written(3, 7)])
        assert case.written() == [("a", 1)]
        assert case.api.accepted == [METADATA]


async def test_only_the_latest_status_is_written_and_all_callbacks_called() -> None:
    async with writing() as case:
        case.put("a", 1)
        await eventually(lambda: case.api.under_way == 1)
        for value in (2, 3, 4):
            case.put("a", value)
        case.api.gate.set()
        await eventually(lambda: all(case.results[f"a={n}"] == [Written()] for n in (1, 2, 3, 4)))
        assert case.written() == [("a", 1), ("a", 4)]


async def test_writes_of_one_object_never_overlap() -> None:
    async with writing(concurrency=4) as case:
        case.put("a", 1)
        await eventually(lambda: case.api.under_way == 1)
        case.put("a", 2, urgent=True)
        await asyncio.sleep(0.05)
        assert case.api.most_under_way == 1
        case.api.gate.set()
        await eventually(lambda: case.results["a=2"] == [Written()])
        assert case.api.most_under_way == 1


async def test_writes_run_concurrently_up_to_the_limit() -> None:
    async with writing(concurrency=3) as case:
        for number in range(10):
            case.put(f"o{number}", 1)
        await eventually(lambda: case.api.under_way == 3)
        await asyncio.sleep(0.05)
        assert case.api.most_under_way == 3


async def test_urgent_statuses_go_first() -> None:
    async with writing(concurrency=1) as case:
        case.put("first", 1)
        await eventually(lambda: case.api.under_way == 1)
        case.put("slow", 1)
        case.put("raised", 1)
        case.put("done", 1, urgent=True)
        case.put("raised", 2, urgent=True)
        case.api.gate.set()
        await case.writer.drain(5)
        assert case.written() == [("first", 1), ("done", 1), ("raised", 2), ("slow", 1)]


async def test_urgent_statuses_do_not_starve_the_others() -> None:
    async with writing(concurrency=1) as case:
        case.put("first", 1)
        await eventually(lambda: case.api.under_way == 1)
        case.put("slow", 1)
        for number in range(40):
            case.put(f"done{number}", 1, urgent=True)
        case.api.gate.set()
        await case.writer.drain(5)
        place = case.written().index(("slow", 1))
        assert 10 <= place <= 16


@pytest.mark.parametrize("status", [400, 404, 413, 422])
async def test_permanent_refusal_ends_as_write_refused(status: int) -> None:
    async with writing(open_gate=True) as case:
        case.api.answers.append((status, {}))
        case.put("a", 1)
        await eventually(lambda: case.results["a=1"] == [WriteRefused(status, "as asked")])
        assert len(case.api.patches) == 1


@pytest.mark.parametrize("status", [401, 403, 409, 429, 500, 503, 504])
async def test_transient_error_is_retried_with_the_latest_status(status: int) -> None:
    async with writing() as case:
        case.api.answers.append((status, {}))
        case.put("a", 1)
        await eventually(lambda: case.api.under_way == 1)
        case.put("a", 2)
        case.api.gate.set()
        await eventually(lambda: case.results["a=1"] == case.results["a=2"] == [Written()])
        assert case.written() == [("a", 1), ("a", 2)]


async def test_429_pauses_all_writes_as_long_as_asked() -> None:
    async with writing(concurrency=2) as case:
        case.api.answers.append((429, {"Retry-After": "1"}))
        case.put("a", 1)
        await eventually(lambda: case.api.under_way == 1)
        case.api.gate.set()
        await eventually(lambda: len(case.api.patches) == 1)
        case.put("b", 1)
        await asyncio.sleep(0.5)
        assert len(case.api.patches) == 1
        await eventually(lambda: case.results["a=1"] == case.results["b=1"] == [Written()])


async def test_drain_returns_when_everything_is_written() -> None:
    async with writing(open_gate=True) as case:
        for number in range(50):
            case.put(f"o{number}", 1)
        await case.writer.drain(10)
        assert len(case.api.patches) == 50


async def test_failing_callback_does_not_stop_the_updater() -> None:
    async with writing(open_gate=True) as case:

        def fail(_: WriteResult) -> None:
            raise RuntimeError("boom")

        case.writer.put("/bad", b"{}", fail)
        case.put("good", 1)
        await eventually(lambda: case.results["good=1"] == [Written()])
        case.put("later", 1)
        await eventually(lambda: case.results["later=1"] == [Written()])
