"""``taskqueue.testing``: handlers run as a worker runs them, with nothing installed."""

from __future__ import annotations

import asyncio
import datetime
import enum
import subprocess
import sys
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pydantic
import pytest
import yaml

from taskqueue import BinaryResult, Context, Fail, InvalidPayload, Progress, Retry
from taskqueue.limits import RESULT_BYTES, STORED_RESULT_BYTES
from taskqueue.testing import Recorded, run, run_async
from taskqueue.worker.outcome import not_stored, succeeded
from tests.e2e.guides import blocks


@dataclass
class Order:
    number: int
    tags: list[str] = field(default_factory=list)


class Receipt(pydantic.BaseModel):
    number: int
    at: datetime.datetime = datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC)


class Colour(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 3


def pack(payload: Order, ctx: Context) -> Receipt:
    ctx.progress(50, "packing")
    ctx.progress(100)
    if ctx.attempt == ctx.max_attempts:
        raise Fail("no stock", type="NoStock")
    return Receipt(number=payload.number)


async def fetch(payload: dict[str, Any], ctx: Context) -> dict[str, Any]:
    await asyncio.sleep(0)
    return {"attempt": ctx.attempt, "fence": ctx.fence, "uid": ctx.uid, "task": ctx.task}


def looks(payload: dict[str, Any], ctx: Context) -> int:
    seen = 0
    while not ctx.cancelled:
        seen += 1
    return seen


def test_a_handler_gets_its_model_and_its_result_is_that_of_the_task() -> None:
    recorded = Recorded()
    assert run(pack, {"number": 7}, recorded=recorded) == {
        "number": 7,
        "at": "2026-01-02T00:00:00Z",
    }
    assert recorded.progress == [Progress(50, "packing"), Progress(100, "")]
    assert run(pack, Order(8)) == {"number": 8, "at": "2026-01-02T00:00:00Z"}


def test_what_it_raises_is_raised() -> None:
    with pytest.raises(Fail, match="no stock"):
        run(pack, {"number": 7}, attempt=3)
    with pytest.raises(InvalidPayload, match="number"):
        run(pack, {})

    def later(payload: dict[str, Any]) -> None:
        raise Retry(after=3)

    with pytest.raises(Retry):
        run(later)


def test_the_context_says_what_the_test_says() -> None:
    assert run(fetch, attempt=2, fence=9, uid="u", task="shop/a") == {
        "attempt": 2,
        "fence": 9,
        "uid": "u",
        "task": "shop/a",
    }
    noon = datetime.datetime(2026, 1, 2, 12, tzinfo=datetime.UTC)
    assert run(lambda payload, ctx: str(ctx.scheduled_time), scheduled_time=noon) == {
        "value": str(noon)
    }
    with pytest.raises(TypeError, match="atempt"):
        run(fetch, atempt=2)  # type: ignore[call-arg]


def test_a_handler_can_be_cancelled_at_any_look() -> None:
    assert run(looks, cancelled=True) == {"value": 0}
    answers = iter([False, False, True])
    assert run(looks, cancelled=lambda: next(answers)) == {"value": 2}


async def test_an_async_test_awaits() -> None:
    loops: list[Any] = []

    async def where(payload: dict[str, Any]) -> None:
        loops.append(asyncio.get_running_loop())

    assert await run_async(where) is None
    assert loops == [asyncio.get_running_loop()]
    assert await run_async(pack, {"number": 1}) == run(pack, {"number": 1})
    with pytest.raises(RuntimeError, match="run_async"):
        run(where)


def test_the_payload_goes_through_json() -> None:
    given = {"tags": ("a",), "at": datetime.date(2026, 1, 2)}
    got: list[Any] = []
    run(lambda payload: got.append(payload), given)
    assert got == [{"tags": ["a"], "at": "2026-01-02"}]
    with pytest.raises(TypeError, match="a JSON object, not list"):
        run(looks, [1])


within_itself: dict[str, Any] = {}
within_itself["self"] = within_itself

RETURNED: list[Any] = [
    None,
    {},
    {"a": [1, 2.5, None, True, "ä"]},
    7,
    "text",
    "",
    False,
    [1, (2, 3)],
    Order(1, ["a"]),
    Receipt(number=2),
    {"order": Order(1), "receipts": [Receipt(number=2)]},
    {"at": datetime.datetime(2026, 1, 2, 3, 4, 5, 6)},
    {"at": datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.UTC)},
    {"at": datetime.time(3, 4)},
    {"id": uuid.UUID(int=5), "colour": Colour.RED, "level": Level.HIGH},
    {"a": 2**63 - 1, "b": -(2**63)},
    # What is refused:
    {"a": [2**64 - 1]},
    {"a": 2**64},
    {"a": -(2**63) - 1},
    {1: 2},
    {"not a number": float("nan")},
    Receipt(number=2**63),
    {"raw": b"\x00"},
    pytest.param(object(), id="an object"),
    {1, 2},
    1j,
    "\ud800",
    Order,
    within_itself,
    "x" * 16 * 1024,
    {"a": "ä" * (8 * 1024 - 4)},
    {"a": "ä" * (8 * 1024 - 3)},
]


@pytest.mark.parametrize("value", RETURNED, ids=lambda value: str(value)[:40] or "empty")
def test_what_is_returned_ends_as_in_a_worker(value: Any) -> None:
    expected = not_stored(succeeded(value, 0), direct=False)
    if expected.error is None:
        assert run(lambda payload: value) == expected.result
    else:
        with pytest.raises(Fail) as found:
            run(lambda payload: value)
        assert found.value.type == expected.error.type
        assert str(found.value).endswith(expected.error.message.rpartition("JSON: ")[2])


@pytest.mark.parametrize(
    "value", ["x" * RESULT_BYTES, b"\x00", BinaryResult(b"", "image/png"), bytearray(b"1")]
)
def test_with_a_store_it_returns_what_a_store_would_have(value: Any) -> None:
    stored = succeeded(value, 0).unstored
    assert stored is not None
    found = run(lambda payload: value, store=True)
    if isinstance(value, str):
        assert found == {"value": value}
    else:
        assert found == BinaryResult(stored.body, stored.content_type)


def test_the_limit_of_a_store_holds() -> None:
    with pytest.raises(Fail, match="the limit is 33554432") as found:
        run(lambda payload: bytes(STORED_RESULT_BYTES + 1), store=True)
    assert found.value.type == "ResultTooLarge"


def test_the_standard_library_is_enough() -> None:
    heavy = ["pydantic", "kopf", "kubernetes", "aiohttp", "pika", "orjson"]
    code = (
        "import sys\n"
        "from taskqueue.testing import run\n"
        "run(lambda payload: payload, {'a': 1})\n"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_guide_does_as_it_says(tmp_path: Path) -> None:
    handlers, tests = blocks("testing-handlers.md", "python")
    assert tests.word == "run"
    (tmp_path / "handlers.py").write_text(handlers.text)
    (tmp_path / "test_handlers.py").write_text(tests.text)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_handlers.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "3 passed" in done.stdout


def test_the_guide_shows_what_a_task_would_be_told() -> None:
    handlers, _ = blocks("testing-handlers.md", "python")
    names: dict[str, Any] = {}
    exec(compile(handlers.text, handlers.place, "exec", dont_inherit=True), names)  # noqa: S102
    results: list[Any] = []
    for block in blocks("testing-handlers.md", "yaml"):
        payload = yaml.safe_load(block.text)["spec"]["payload"]
        try:
            results.append(run(names["send_invoice"], payload))
        except InvalidPayload as invalid:
            results.append(str(invalid))
    (shown,) = blocks("testing-handlers.md", "")
    assert results == [{"total": 3, "due": "2026-03-01"}, " ".join(shown.text.split())]
