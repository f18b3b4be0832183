"""The finished Tasks that exist, as they are listed."""

from collections.abc import Mapping
from typing import Any, cast

from taskqueue.controller.tasks.finished_tasks import FinishedTask, finished_tasks
from taskqueue.kubernetes.client import ApiClient


def task(uid: str) -> FinishedTask:
    return FinishedTask(
        uid=uid,
        queue=("ns", "q"),
        completed=200.0,
        name=f"name-{uid}",
        ttl=7,
    )


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
    assert found == [task("a"), task("b")]
    assert len(pages.asked) == 3
    assert "status.phase!=Running" in pages.asked[0]["fieldSelector"]
    assert "status.phase!=Succeeded" not in pages.asked[0]["fieldSelector"]
