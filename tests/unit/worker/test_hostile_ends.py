"""However a handler ends, in whichever executor: one outcome that can be published."""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
import sys
from collections.abc import Iterator
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskqueue import Context, Fail, Retry, Snooze
from taskqueue.limits import LONGEST_SNOOZE_SECONDS
from taskqueue.worker import outcome
from taskqueue.worker.executor import AttemptResult
from taskqueue.worker.executors.function import FunctionExecutor
from taskqueue.worker.outcome import not_stored, raised, succeeded
from taskqueue.worker.sdk import HandlerRegistry
from tests.unit.worker.children import PATIENCE, attempt, children
from tests.unit.worker.hostile_ends import NAMES, assert_published, end_of

FINAL = {name for name in NAMES if name.startswith(("raises:fail", "returns:"))} | {"raises:groups"}
#: What becomes of these is the encoder's matter.
ENCODED = {
    "returns:evil-dict",
    "returns:evil-text",
    "returns:field-missing",
    "returns:deep-at-orjsons-limit",
    "returns:deep-below-orjsons-limit",
}


def assert_ended_as(name: str, result: AttemptResult) -> None:
    result = not_stored(result, direct=False)  # as the runtime does
    assert_published(result)
    if name in ENCODED:
        return
    if name.startswith("raises:snooze"):
        assert result.error is None
        assert result.snooze_seconds is not None
        assert 0 <= result.snooze_seconds <= LONGEST_SNOOZE_SECONDS
        return
    assert result.error is not None
    assert result.error.retryable == (name not in FINAL), result.error


class Loop:
    """Handlers of both kinds that run in this process, on one loop of the test's."""

    def __init__(self) -> None:
        self.runner = asyncio.Runner()
        registry = HandlerRegistry()
        registry.register(lambda payload: end_of(payload["end"]), name="thread", thread=True)

        async def coroutine(payload: dict[str, Any]) -> Any:
            return end_of(payload["end"])

        registry.register(coroutine, name="async")
        self.executor = FunctionExecutor(registry, self.runner.get_loop())

    def run(self, kind: str, name: str) -> AttemptResult:
        return self.runner.run(self._run(kind, name))

    async def _run(self, kind: str, name: str) -> AttemptResult:
        ended = asyncio.get_running_loop().create_future()
        self.executor.start(attempt(kind, {"end": name}), ended.set_result)
        async with asyncio.timeout(PATIENCE):
            result: AttemptResult = await ended
            return result

    def close(self) -> None:
        self.runner.run(self.executor.close())
        self.runner.close()


@pytest.fixture(scope="module")
def loop() -> Iterator[Loop]:
    one = Loop()
    yield one
    one.close()


@pytest.mark.parametrize("kind", ["thread", "async"])
@pytest.mark.parametrize("name", NAMES)
def test_every_end_in_the_workers_process_is_an_outcome(loop: Loop, kind: str, name: str) -> None:
    assert_ended_as(name, loop.run(kind, name))


async def test_every_end_in_a_child_is_an_outcome_and_leaves_the_child_usable() -> None:
    async with children(lambda payload: [end_of(payload["end"]), os.getpid()]) as nursery:
        for name in NAMES:
            result = await nursery.run({"end": name})
            assert_published(result)
            if name.startswith("raises:"):
                assert_ended_as(name, result)
        assert len(nursery.pool.children) == 1


def exceptions() -> st.SearchStrategy[Any]:
    texts = st.text(st.characters(), max_size=50) | st.just("\ud800")
    numbers = (
        st.floats()
        | st.integers()
        | st.decimals()
        | st.fractions()
        | texts
        | st.none()
        | st.binary()
    )
    plain = st.builds(
        lambda kind, *args: kind(*args),
        st.sampled_from(
            [ValueError, OSError, KeyError, SystemExit, KeyboardInterrupt, Fail, Retry]
        ),
        texts | numbers,
    )
    changed = st.builds(
        _changed, plain, st.sampled_from(["type", "after", "args", "__notes__"]), numbers
    )
    return st.recursive(
        plain | changed,
        lambda inner: st.builds(BaseExceptionGroup, texts, st.lists(inner, min_size=1, max_size=3)),
        max_leaves=5,
    )


def _changed(error: BaseException, name: str, value: Any) -> BaseException:
    with contextlib.suppress(TypeError):  # args takes what can be iterated only
        setattr(error, name, value)
    return error


@given(exceptions(), st.floats(0, 1e6))
def test_every_exception_is_a_result_that_can_be_published(
    error: BaseException, seconds: float
) -> None:
    assert_published(raised(error, seconds))


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(), max_size=20)
    | st.binary(max_size=5)
    | st.decimals()
    | st.complex_numbers()
    | st.just(object()),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(), max_size=5) | st.integers(), inner, max_size=4)
        | st.frozensets(st.integers(), max_size=2)
    ),
    max_leaves=10,
)


@given(VALUES)
def test_every_value_is_a_result_that_can_be_published(value: Any) -> None:
    result = succeeded(value, 0.1, handler="f")
    assert_published(result)
    assert result.error is None or not result.error.retryable


@pytest.mark.parametrize("where", ["encodable", "describe_traceback", "cut", "decode_own"])
def test_an_end_that_cannot_be_described_is_an_outcome_all_the_same(
    monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def fail(*_: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(outcome, where, fail)
    for result in (raised(ValueError("bad"), 0.1), succeeded(object(), 0.1), succeeded({}, 0.1)):
        assert_published(result)


@pytest.mark.parametrize("after", [5, 2.5, Decimal("2.5"), Fraction(5, 2), True])
def test_any_number_is_a_time_to_wait(after: Any) -> None:
    assert Retry(after=after).after == float(after)


@pytest.mark.parametrize("after", ["5", b"5", [5], object(), 1j, {}])
def test_what_is_no_number_is_refused_where_it_is_raised(after: Any) -> None:
    with pytest.raises(TypeError, match=r"Retry\(after=...\): give a number .*not "):
        Retry(after=after)


@pytest.mark.parametrize("after", [-1, float("nan"), float("inf"), Decimal("NaN"), 10**400])
def test_a_number_that_is_no_time_is_refused_where_it_is_raised(after: Any) -> None:
    with pytest.raises(ValueError, match="Retry"):
        Retry(after=after)


@pytest.mark.parametrize("seconds", [-1, 2592001, float("nan"), float("inf"), 10**400])
def test_a_snooze_that_is_no_time_is_refused_where_it_is_raised(seconds: Any) -> None:
    with pytest.raises(ValueError, match="Snooze"):
        Snooze(seconds)


@pytest.mark.parametrize("seconds", ["5", None, [5], 1j])
def test_a_snooze_that_is_no_number_is_refused_where_it_is_raised(seconds: Any) -> None:
    with pytest.raises(TypeError, match=r"Snooze\(seconds\): give a number .*not "):
        Snooze(seconds)


@pytest.mark.parametrize("kind", [404, None, ValueError, b"Bad", ["Bad"]])
def test_a_type_that_is_no_text_is_refused_where_it_is_raised(kind: Any) -> None:
    with pytest.raises(TypeError, match=r"Fail\(type=...\): give a str, not "):
        Fail("bad", type=kind)


@pytest.mark.parametrize(("percent", "message"), [("5", ""), (b"5", ""), (5, 404), (None, None)])
def test_progress_that_cannot_be_reported_is_refused_where_it_is_reported(
    percent: Any, message: Any
) -> None:
    context = Context(
        task="shop/a", uid="u", queue="q", attempt=1, max_attempts=3, timeout_seconds=30
    )
    with pytest.raises(TypeError, match="progress"):
        context.progress(percent, message)
    assert context.latest_progress is None


def test_any_number_is_progress() -> None:
    context = Context(
        task="shop/a", uid="u", queue="q", attempt=1, max_attempts=3, timeout_seconds=30
    )
    context.progress(Decimal("12.5"))  # type: ignore[arg-type]
    assert context.latest_progress is not None
    assert context.latest_progress.percent == 12.5


@pytest.mark.skipif(sys.platform != "linux", reason="children need Linux")
async def test_a_child_that_writes_to_its_connection_fails_its_attempt_and_is_replaced() -> None:
    def handler(payload: dict[str, Any]) -> int:
        for fd in map(int, os.listdir("/proc/self/fd")):
            with contextlib.suppress(OSError):
                if stat.S_ISSOCK(os.fstat(fd).st_mode):
                    os.write(fd, bytes(payload.get("bytes", [])))
        return os.getpid()

    nonsense = ([3, 0, 0, 0, 1, 7], [255] * 9, [4, 0, 0, 0, 2, 91, 93], [3, 0, 0, 0, 2, 91, 93])
    async with children(handler) as nursery:
        for data in nonsense:
            before = await nursery.value()
            nursery.start({"bytes": data})
            kind, message = await nursery.error()
            assert kind == "ChildDied"
            assert "leave file descriptors alone" in message
            assert await nursery.value() != before
