"""The finished Tasks that exist, as they are listed."""

from collections.abc import Mapping
from typing import Any, cast

import orjson
import pytest

from taskqueue.controller.tasks.finished_tasks import FinishedTask, finished_tasks
from taskqueue.kubernetes.client import OBJECT_BYTES, TABLE, ApiClient, ApiError
from tests.unit.kubernetes.fake_api import as_table


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
        self._pages = [as_table(page) for page in pages]
        self.asked: list[Mapping[str, str]] = []

    async def send(
        self, method: str, path: str, *, params: Mapping[str, str], accept: str, most_bytes: int
    ) -> bytes:
        assert (method, accept, most_bytes) == ("GET", TABLE, OBJECT_BYTES)
        self.asked.append(params)
        number = int(params.get("continue", "0"))
        table = self._pages[number]
        if number + 1 < len(self._pages):
            table["metadata"]["continue"] = str(number + 1)
        return orjson.dumps(table)

    def forget_column(self, name: str) -> None:
        for table in self._pages:
            table["columnDefinitions"] = [
                one for one in table["columnDefinitions"] if one["name"] != name
            ]


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
    found = [page async for page in finished_tasks(cast(ApiClient, pages))]
    assert found == [[task("a")], [], [task("b")]]
    assert len(pages.asked) == 3
    assert "status.phase!=Running" in pages.asked[0]["fieldSelector"]
    assert "status.phase!=Succeeded" not in pages.asked[0]["fieldSelector"]
    assert pages.asked[0]["includeObject"] == "Metadata"


@pytest.mark.parametrize("column", ["Completed", "TTL", "Queue"])
async def test_nothing_is_taken_for_finished_by_an_outdated_definition(column: str) -> None:
    """Without the column a Task would be deleted too early: it seems to have no such field."""
    pages = Pages([raw("a")])
    pages.forget_column(column)
    with pytest.raises(ApiError, match=f"no printer column {column}: apply the CRDs"):
        [page async for page in finished_tasks(cast(ApiClient, pages))]
