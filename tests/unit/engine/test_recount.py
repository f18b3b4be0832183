"""The finished Tasks that exist, counted for the totals."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import pytest

from taskqueue.cluster.client import ApiClient
from taskqueue.domain.task import Phase
from taskqueue.engine.recount import FinishedTask, count, finished_tasks

CREATED: Mapping[tuple[str, str], float] = {("ns", "q"): 100.0, ("ns", "other"): 100.0}


def task(uid: str, *, queue: str = "q", phase: Phase = Phase.SUCCEEDED, at: float = 200.0) -> Any:
    return FinishedTask(uid=uid, queue=("ns", queue), phase=phase, completed=at)


@pytest.mark.parametrize(
    ("tasks", "counts"),
    [
        ([task("a"), task("b")], {("ns", "q"): {Phase.SUCCEEDED: 2}}),
        (
            [task("a"), task("b", phase=Phase.FAILED), task("c", queue="other")],
            {
                ("ns", "q"): {Phase.SUCCEEDED: 1, Phase.FAILED: 1},
                ("ns", "other"): {Phase.SUCCEEDED: 1},
            },
        ),
        ([task("a"), task("counted already")], {("ns", "q"): {Phase.SUCCEEDED: 1}}),
        ([task("of a former TaskQueue", at=99.0)], {}),
        ([task("of no TaskQueue", queue="gone")], {}),
    ],
)
def test_count(tasks: list[FinishedTask], counts: Mapping[Any, Mapping[Phase, int]]) -> None:
    found = count(tasks, but=lambda uid: uid == "counted already", since=CREATED.get)
    assert found == {key: Counter(by_phase) for key, by_phase in counts.items()}


class Pages:
    def __init__(self, *pages: list[dict[str, Any]]) -> None:
        self._pages = pages
        self.asked: list[Mapping[str, str]] = []

    async def request(self, method: str, path: str, *, params: Mapping[str, str]) -> Any:
        self.asked.append(params)
        number = int(params.get("continue", "0"))
        token = str(number + 1) if number + 1 < len(self._pages) else ""
        return {"items": self._pages[number], "metadata": {"continue": token}}


def raw(uid: str) -> dict[str, Any]:
    return {
        "metadata": {
            "namespace": "ns",
            "name": f"name-{uid}",
            "uid": uid,
            "creationTimestamp": "1970-01-01T00:00:00Z",
        },
        "spec": {"queue": "q", "ttlSecondsAfterFinished": 7},
        "status": {"phase": "Succeeded", "completionTime": "1970-01-01T00:03:20.000Z"},
    }


async def test_all_pages_of_the_finished_are_read() -> None:
    pages = Pages([raw("a")], [], [raw("b")])
    found = await finished_tasks(cast(ApiClient, pages))
    assert found == [replace(task(uid), name=f"name-{uid}", ttl=7) for uid in ("a", "b")]
    assert len(pages.asked) == 3
    assert "status.phase!=Running" in pages.asked[0]["fieldSelector"]
    assert "status.phase!=Succeeded" not in pages.asked[0]["fieldSelector"]
