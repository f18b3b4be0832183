"""Tasks that sleep for a while, for tests that replace or kill the workers which run them."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from random import Random

from tests.chaos.run_counter import RunCounter
from tests.e2e.api import Body
from tests.e2e.harness import FINISHED, Harness


def submit(harness: Harness, prefix: str, count: int, longest: float) -> list[str]:
    """Create Tasks of 0.2 s to ``longest``."""
    random = Random(prefix)
    payloads = [{"seconds": round(random.uniform(0.2, longest), 2)} for _ in range(count)]
    with ThreadPoolExecutor(8) as pool:
        names = [f"{prefix}-{number}" for number in range(count)]
        return list(
            pool.map(lambda name, one: harness.task(name, "nap", payload=one), names, payloads)
        )


def finished(harness: Harness, names: Iterable[str]) -> list[Body]:
    """Return the statuses of those of these Tasks that have finished."""
    last = (harness.tasks.versions(name)[-1:] for name in names)
    statuses = [one[0]["status"] for one in last if one]
    return [status for status in statuses if status["phase"] in FINISHED]


def wait_finished(harness: Harness, names: list[str], count: int) -> None:
    """Return when ``count`` of these Tasks have finished."""
    harness.until(
        lambda: len(finished(harness, names)) >= count, what=f"{count} finished", seconds=90
    )


@contextmanager
def steady_load(harness: Harness, prefix: str, waiting: int, longest: float) -> Iterator[list[str]]:
    """Have so many unfinished Tasks at any time within the block; yield the names of all so far."""
    names: list[str] = []
    stopped = threading.Event()

    def feed() -> None:
        while not stopped.is_set():
            if len(names) - len(finished(harness, names)) < waiting:
                names.extend(submit(harness, f"{prefix}-{len(names)}", 8, longest))
            else:
                stopped.wait(0.1)

    with ThreadPoolExecutor(1) as pool:
        feeding = pool.submit(feed)
        try:
            yield names
        finally:
            stopped.set()
        feeding.result()


def wait_all_have_worked(harness: Harness, names: list[str]) -> None:
    """Return when each of the workers that are there has finished one of these Tasks."""

    def worked() -> bool:
        workers = {status["worker"] for status in finished(harness, list(names))}
        return {pod["metadata"]["name"] for pod in harness.pods()} <= workers

    harness.until(worked, what="a Task finished by each worker")


def assert_no_attempt_failed(harness: Harness, names: list[str]) -> list[Body]:
    """Fail unless each succeeded with its first attempt, and ended once; return the statuses."""
    statuses = harness.all_finished(names, seconds=90)
    for name, status in zip(names, statuses, strict=True):
        assert (status["phase"], status["attempts"]) == ("Succeeded", 1), name
        assert [one["outcome"] for one in status["history"]] == ["Succeeded"], name
        versions = [one["status"] for one in harness.tasks.versions(name)]
        assert [one for one in versions if one["phase"] in FINISHED] == [status], name
    return statuses


def repeated(harness: Harness, run_counter: RunCounter, names: list[str]) -> int:
    """Return how many runs were seen beyond one of each Task.

    A pod that is removed takes its log with it, so the last lines may be missing; those of the pods
    that are still there are waited for.
    """
    there = {pod["metadata"]["name"] for pod in harness.pods()}
    workers = {
        last["metadata"]["uid"]: last["status"]["worker"]
        for name in names
        for last in harness.tasks.versions(name)[-1:]
    }
    harness.until(
        lambda: all(run_counter.runs[uid] for uid, pod in workers.items() if pod in there),
        what="each seen running",
    )
    return sum(max(run_counter.runs[uid] - 1, 0) for uid in workers)
