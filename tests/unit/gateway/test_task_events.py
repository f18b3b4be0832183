"""Server-sent events of a Task, also through a restart of the gateway."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import orjson
import requests

from tests.unit.gateway.harness import NAMESPACE, RunningGateway, Scene, new_task

Event = tuple[str, str, Any]


def events(answer: requests.Response) -> Iterator[Event]:
    """Yield id, kind and data of each event."""
    fields: dict[str, str] = {}
    for line in answer.iter_lines(chunk_size=1, decode_unicode=True):
        if line:
            name, _, value = line.partition(": ")
            fields[name] = value
        elif "data" in fields:
            yield fields.get("id", ""), fields["event"], orjson.loads(fields["data"])
            fields = {}


def submitted(gateway: RunningGateway) -> str:
    name: str = gateway.tasks("POST", json=new_task()).json()["metadata"]["name"]
    return name


def opened(gateway: RunningGateway, name: str, last_id: str = "") -> requests.Response:
    headers = {"Last-Event-ID": last_id} if last_id else {}
    return gateway.tasks("GET", f"/{name}/events", headers=headers, stream=True)


def test_status_progress_and_result_come_as_events(scene: Scene, gateway: RunningGateway) -> None:
    name = submitted(gateway)
    with opened(gateway, name) as answer:
        assert answer.headers["Content-Type"].startswith("text/event-stream")
        stream = events(answer)
        assert next(stream)[1:] == ("status", _data(scene, name, phase="Pending"))
        scene.run(scene.api.set_status(NAMESPACE, name, phase="Running"))
        assert next(stream)[1] == "status"
        scene.run(scene.api.set_status(NAMESPACE, name, phase="Running", progress={"percent": 40}))
        _, kind, data = next(stream)
        assert (kind, data["status"]["progress"]) == ("progress", {"percent": 40})
        scene.run(scene.api.set_status(NAMESPACE, name, phase="Succeeded", result={"a": 1}))
        last, kind, data = next(stream)
        assert (kind, data["status"]["result"]) == ("result", {"a": 1})
        assert list(stream) == []
    assert opened(gateway, name, last).status_code == 204


def _data(scene: Scene, name: str, **status: Any) -> dict[str, Any]:
    uid = scene.api.objects["tasks", NAMESPACE, name]["metadata"]["uid"]
    return {"name": name, "uid": uid, "status": {"observedGeneration": -1, **status}}


def test_streams_go_on_through_a_restart_of_the_gateway(scene: Scene) -> None:
    first = scene.gateway()
    names = [submitted(first) for _ in range(20)]
    streams = [opened(first, name) for name in names]
    reading = [events(stream) for stream in streams]
    ids = [next(each)[0] for each in reading]
    first.stop()
    assert [list(each) for each in reading] == [[] for _ in names]
    for name in names[:10]:  # while no gateway is there
        scene.run(scene.api.set_status(NAMESPACE, name, phase="Succeeded"))
    second = scene.gateway()
    again = [events(opened(second, name, last)) for name, last in zip(names, ids, strict=True)]
    assert [next(each)[1] for each in again[:10]] == ["result"] * 10
    for name in names[10:]:
        scene.run(scene.api.set_status(NAMESPACE, name, phase="Failed"))
    # What they had before is not sent again: the first event is the end.
    assert [next(each)[1] for each in again[10:]] == ["result"] * 10
    second.stop()


def test_a_deleted_task_ends_its_stream_with_gone(scene: Scene, gateway: RunningGateway) -> None:
    name = submitted(gateway)
    with opened(gateway, name) as answer:
        stream = events(answer)
        last = next(stream)[0]
        scene.run(scene.api.remove("tasks", NAMESPACE, name))
        _, kind, data = next(stream)
        assert (kind, data["reason"]) == ("gone", "NotFound")
        assert list(stream) == []
    assert opened(gateway, name).status_code == 404
    gateway.tasks("POST", json={**new_task(), "metadata": {"name": name}})
    replaced = opened(gateway, name, last)
    assert replaced.status_code == 410


def test_a_caller_who_may_not_watch_is_told_so(scene: Scene, gateway: RunningGateway) -> None:
    scene.api.allow("getter", NAMESPACE, ("get", "tasks"))
    name = submitted(gateway)
    answer = gateway.tasks("GET", f"/{name}/events", token="getter", stream=True)
    found = [(kind, data["reason"]) for _, kind, data in events(answer) if kind == "problem"]
    assert found == [("problem", "Forbidden")]
