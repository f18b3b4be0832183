"""Whatever the API server answers: latest statuses, fair turns, each callback once.

Time is virtual.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import cast

from hypothesis import given, settings
from hypothesis import strategies as st

from taskqueue.kubernetes.client import ApiClient
from taskqueue.kubernetes.status_updater import (
    CONCURRENCY,
    StatusUpdater,
    WriteRefused,
    WriteResult,
    Written,
)
from tests.unit.controller.virtual_time import VirtualLoop
from tests.unit.kubernetes.fake_status_api import Answer, FakeStatusApi, path_of

#: How long a status of a namespace without failures may take, in seconds, whatever three others
#: answer: some answers that never come (15 s each), and some pauses of all writes (10 s each).
BOUND_SECONDS = 120.0
#: By then everything has been tried often enough.
END_SECONDS = 50_000.0
DRAIN_SECONDS = 5.0

FAILURES = st.builds(
    Answer,
    status=st.sampled_from([0, 401, 403, 409, 429, 429, 500, 502, 503, -1]),
    seconds=st.sampled_from([0.01, 0.01, 0.3, 15.0]),
    retry_after=st.sampled_from([None, None, 0.0, 1.0, 30.0, 86_400.0]),
)
REFUSALS = st.builds(
    Answer,
    status=st.sampled_from([400, 404, 413, 422, 500]),
    message=st.just("etcdserver: request is too large"),
)
ANSWERS = st.one_of(FAILURES, FAILURES, st.just(Answer()), REFUSALS)


@dataclass
class Put:
    path: str
    number: int
    at: float
    results: list[tuple[float, WriteResult]] = field(default_factory=list)


@dataclass(frozen=True)
class Script:
    """What is answered to the writes of an object: these, and then always the last."""

    answers: list[Answer]
    last: Answer


@dataclass(frozen=True)
class Burst:
    """Statuses of neighbouring objects, put at once."""

    pause: float
    namespace: int
    first: int
    count: int
    urgent: bool


@dataclass(frozen=True)
class Case:
    """What is put, and how the objects of namespaces 1 to 3 are answered, by turns."""

    bursts: list[Burst]
    scripts: list[list[Script]]


SCRIPTS = st.builds(
    Script,
    answers=st.lists(ANSWERS, max_size=4),
    last=st.one_of(st.just(Answer()), FAILURES),
)
CASES = st.builds(
    Case,
    bursts=st.lists(
        st.builds(
            Burst,
            pause=st.sampled_from([0.0, 0.005, 0.5, 7.0, 20.0]),
            namespace=st.integers(0, 3),
            first=st.sampled_from([0, 0, 5, 20]),
            count=st.sampled_from([1, 1, 6, 20]),
            urgent=st.booleans(),
        ),
        min_size=1,
        max_size=12,
    ),
    scripts=st.lists(st.lists(SCRIPTS, min_size=1, max_size=4), min_size=3, max_size=3),
)


class Play:
    """Plays a case; namespace 0 is answered with success only."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.api = FakeStatusApi()
        self.updater = StatusUpdater(cast(ApiClient, self.api), random=lambda: 0.5)
        self.puts: list[Put] = []

    def path(self, namespace: int, name: int) -> str:
        path = path_of(f"n{namespace}", name)
        if namespace and path not in self.api.always:
            scripts = self.case.scripts[namespace - 1]
            script = scripts[name % len(scripts)]
            self.api.answers[path] = deque(script.answers)
            self.api.always[path] = script.last
        return path

    async def put_all(self) -> None:
        loop = asyncio.get_running_loop()
        for burst in self.case.bursts:
            if burst.pause:
                await asyncio.sleep(burst.pause)
            for name in range(burst.first, burst.first + burst.count):
                put = Put(self.path(burst.namespace, name), len(self.puts), loop.time())
                self.puts.append(put)

                def on_result(result: WriteResult, put: Put = put) -> None:
                    put.results.append((loop.time(), result))

                body = b"%d" % put.number
                self.updater.put(put.path, body, on_result, urgent=burst.urgent)

    async def run(self, *, seconds: float) -> float:
        """Put everything, and return how long a drain took that began after at most so long."""
        running = asyncio.create_task(self.updater.run())
        loop = asyncio.get_running_loop()
        await self.put_all()
        end = loop.time() + seconds
        while any(self.can_be_written(put) for put in self.last.values()):
            await asyncio.sleep(min(100.0, end - loop.time()))
            if loop.time() >= end:
                break
        begun = loop.time()
        await self.updater.drain(DRAIN_SECONDS)
        took = loop.time() - begun
        assert not running.done()
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running
        return took

    @property
    def last(self) -> dict[str, Put]:
        """The last status of each object."""
        return {put.path: put for put in self.puts}

    def fails_always(self, path: str) -> bool:
        return not self.api.always.get(path, Answer()).accepts

    def can_be_written(self, put: Put) -> bool:
        return not put.results and not self.fails_always(put.path)


@contextmanager
def virtual_loop() -> Iterator[VirtualLoop]:
    logging.disable()
    loop = VirtualLoop()
    try:
        yield loop
        assert not loop.problems, loop.problems
    finally:
        loop.die()
        logging.disable(logging.NOTSET)


def check_results(play: Play) -> None:
    """Each callback is called at most once, with a write of its status or a later one."""
    for put in play.puts:
        assert len(put.results) <= 1, f"{put} has two results"
        for _, result in put.results:
            if isinstance(result, Written):
                assert result.version >= put.number, f"{put} is not in what was written"
            else:
                assert isinstance(result, WriteRefused)


@settings(max_examples=200, deadline=None)
@given(case=CASES)
def test_all_is_written_that_can_be_and_failures_hold_up_nobody_else(case: Case) -> None:
    play = Play(case)
    with virtual_loop() as loop:
        loop.run_until_complete(play.run(seconds=END_SECONDS))
    check_results(play)
    for put in play.puts:
        assert not play.can_be_written(put), f"{put} has no result"
        if "/n0/" in put.path:
            took = put.results[0][0] - put.at
            assert took <= BOUND_SECONDS, f"a namespace without failures waited {took} s"
    for path, put in play.last.items():
        if put.results and isinstance(put.results[0][1], Written):
            assert play.api.written[path] == put.number, "not the latest status"
    assert play.api.most_in_flight <= CONCURRENCY
    assert play.api.most_failing_in_flight <= CONCURRENCY // 4
    left = [path for path, put in play.last.items() if not put.results]
    assert len(play.updater) == len(left) >= play.updater.failing


@settings(max_examples=200, deadline=None)
@given(case=CASES, seconds=st.sampled_from([0.0, 0.02, 1.0, 40.0]))
def test_drain_ends_and_has_written_what_could_be(case: Case, seconds: float) -> None:
    play = Play(case)
    with virtual_loop() as loop:
        took = loop.run_until_complete(play.run(seconds=seconds))
    assert took <= DRAIN_SECONDS + 0.1
    check_results(play)
    if not any(burst.namespace for burst in case.bursts):
        assert took <= 0.1 * len(play.puts)
        assert not len(play.updater)
