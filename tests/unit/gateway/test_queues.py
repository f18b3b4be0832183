"""TaskQueues, TaskSchedules, direct messages, results and history over HTTP."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from taskqueue.archive.rows import ArchivedTask
from taskqueue.client.history import HistoryPage
from taskqueue.direct.errors import NotConfirmed, Unroutable
from taskqueue.results.binary import BinaryResult
from tests.unit.gateway.harness import NAMESPACE, RunningGateway, Scene, new_task

QUEUES = f"/v1/namespaces/{NAMESPACE}/taskqueues"
SCHEDULES = f"/v1/namespaces/{NAMESPACE}/taskschedules"
REFERENCE = {
    "key": f"{NAMESPACE}/images/u/1-0",
    "sizeBytes": 3,
    "contentType": "text/html",
    "sha256": "0" * 64,
}


def put(scene: Scene, plural: str, name: str, spec: dict[str, Any], **status: Any) -> None:
    metadata = {"name": name, "namespace": NAMESPACE}
    scene.run(scene.api.put(plural, {"metadata": metadata, "spec": spec, "status": status}))


@pytest.mark.parametrize(
    ("act", "policy"),
    [("hold", "Hold"), ("hold?drain=true", "HoldAndDrain"), ("resume", "None")],
)
def test_queues_are_held_and_resumed(
    scene: Scene, gateway: RunningGateway, act: str, policy: str
) -> None:
    put(scene, "taskqueues", "images", {"broker": {"connectionSecret": {"name": "rabbit"}}})
    answer = gateway.request("POST", f"{QUEUES}/images/{act}")
    assert answer.json()["spec"]["stopPolicy"] == policy
    assert gateway.request("GET", f"{QUEUES}/images").json() == answer.json()
    assert gateway.request("GET", QUEUES).json()["items"] == [answer.json()]


def test_a_queue_says_why_it_has_as_many_workers(scene: Scene, gateway: RunningGateway) -> None:
    spec = {"broker": {"connectionSecret": {"name": "r"}}, "scaling": {"maxReplicas": 3}}
    put(scene, "taskqueues", "scaled", spec, scaling="2 of 3: 20 waiting", desiredReplicas=2)
    view = gateway.request("GET", f"{QUEUES}/scaled/scaling").json()
    assert view["explanation"] == "2 of 3: 20 waiting"
    assert view["scaling"] == {"maxReplicas": 3}
    assert view["status"]["desiredReplicas"] == 2


@pytest.mark.parametrize(("act", "suspend"), [("pause", True), ("resume", False)])
def test_schedules_are_paused_and_resumed(
    scene: Scene, gateway: RunningGateway, act: str, suspend: bool
) -> None:
    put(scene, "taskschedules", "nightly", {"schedules": ["0 0 * * *"]})
    answer = gateway.request("POST", f"{SCHEDULES}/nightly/{act}")
    assert answer.json()["spec"]["suspend"] is suspend


class Producer:
    """Records what is sent, or fails."""

    def __init__(self, error: Exception | None = None) -> None:
        self.sent: list[Any] = []
        self.error = error

    async def send(self, *place: str, **more: Any) -> None:
        if self.error is not None:
            raise self.error
        self.sent.append((*place, more))


def use(monkeypatch: pytest.MonkeyPatch, gateway: RunningGateway, producer: Producer) -> None:
    async def found(own: object, key: object) -> Producer:
        return producer

    monkeypatch.setattr(gateway.services.producers, "producer", found)


def test_a_direct_message_is_sent(gateway: RunningGateway, monkeypatch: pytest.MonkeyPatch) -> None:
    producer = Producer()
    use(monkeypatch, gateway, producer)
    body = {"payload": {"to": "a"}, "handler": "mail", "correlationId": "c"}
    answer = gateway.request("POST", f"{QUEUES}/mails/messages", json=body)
    assert (answer.status_code, answer.json()) == (202, {"queue": "shop/mails"})
    options = {"handler": "mail", "correlation_id": "c"}
    assert producer.sent == [("shop", "mails", {"to": "a"}, options)]
    wrong = gateway.request("POST", f"{QUEUES}/mails/messages", json={"to": "a"})
    assert wrong.status_code == 422


@pytest.mark.parametrize(
    ("error", "status"),
    [(Unroutable("no queue"), 404), (NotConfirmed("late", confirmed=0), 503)],
)
def test_a_message_that_is_not_in_its_queue_is_no_success(
    gateway: RunningGateway, monkeypatch: pytest.MonkeyPatch, error: Exception, status: int
) -> None:
    use(monkeypatch, gateway, Producer(error))
    answer = gateway.request("POST", f"{QUEUES}/mails/messages", json={})
    assert (answer.status_code, answer.json()["detail"]) == (status, str(error))


def test_the_result_of_a_task_is_json_or_bytes(
    scene: Scene, gateway: RunningGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def read(*place: object) -> BinaryResult:
        return BinaryResult(b"<b>", "text/html")

    monkeypatch.setattr(gateway.services.results, "read", read)
    name = gateway.tasks("POST", json=new_task()).json()["metadata"]["name"]
    early = gateway.tasks("GET", f"/{name}/result")
    assert (early.status_code, early.json()["reason"]) == (409, "NotSucceeded")
    scene.run(scene.api.set_status(NAMESPACE, name, phase="Succeeded", result={"a": 1}))
    assert gateway.tasks("GET", f"/{name}/result").json() == {"a": 1}
    scene.run(scene.api.set_status(NAMESPACE, name, phase="Succeeded", resultRef=REFERENCE))
    stored = gateway.tasks("GET", f"/{name}/result")
    assert (stored.content, stored.headers["Content-Type"]) == (b"<b>", "text/html; charset=utf-8")
    # A handler's page is not one of the gateway's site.
    assert stored.headers["Content-Disposition"] == "attachment"


def test_history_and_results_of_deleted_tasks_come_from_the_archive(
    gateway: RunningGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    ended = ArchivedTask(
        uid="abc",
        namespace=NAMESPACE,
        queue="images",
        name="t",
        handler="h",
        phase="Succeeded",
        reason="",
        message="",
        submitted_by="ada",
        attempts=1,
        completed=datetime(2026, 1, 1, tzinfo=UTC),
        result={"a": 1},
    )

    async def find_address(*place: object) -> str:
        return "postgresql://archive"

    async def read(address: str, wanted: Any, *, page: str, limit: int) -> HistoryPage:
        asked.append((wanted, page, limit))
        return HistoryPage((ended,), "next")

    monkeypatch.setattr(gateway.services.history, "find_address", find_address)
    monkeypatch.setattr(gateway.services.history, "read", read)
    path = f"/v1/namespaces/{NAMESPACE}"
    query = (
        "queue=images&phase=Failed&phase=Succeeded&since=2026-01-01T00:00:00Z&continue=p&limit=7"
    )
    found = gateway.request("GET", f"{path}/history?{query}").json()
    assert found["continue"] == "next"
    assert (found["items"][0]["uid"], found["items"][0]["submittedBy"]) == ("abc", "ada")
    wanted, page, limit = asked[0]
    assert (wanted.phases, page, limit) == (("Failed", "Succeeded"), "p", 7)
    no_zone = gateway.request("GET", f"{path}/history?queue=images&since=2026-01-01T00:00:00")
    assert no_zone.status_code == 422
    result = gateway.request("GET", f"{path}/results/abc?queue=images")
    assert result.json() == {"a": 1}
    assert asked[-1][0].uid == "abc"
