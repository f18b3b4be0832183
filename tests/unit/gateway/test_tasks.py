"""Tasks over HTTP: create, find, wait, cancel, retry, delete."""

from __future__ import annotations

import threading
import uuid
from typing import Any

import pytest

from taskqueue.gateway.submit import DIGEST
from tests.unit.gateway.harness import NAMESPACE, RunningGateway, Scene, new_task


def created(gateway: RunningGateway, **more: Any) -> dict[str, Any]:
    answer = gateway.tasks("POST", json=new_task(**more))
    assert answer.status_code == 201, answer.text
    task: dict[str, Any] = answer.json()
    return task


def test_a_task_is_created_with_the_token_of_the_caller(
    scene: Scene, gateway: RunningGateway
) -> None:
    task = created(gateway, payload={"name": "Ada"})
    name = task["metadata"]["name"]
    assert name.startswith("work-")
    assert scene.api.objects["tasks", NAMESPACE, name]["spec"]["payload"] == {"name": "Ada"}
    assert scene.api.requests[-1][2] == "boss"
    assert gateway.tasks("GET", f"/{name}").json() == task


@pytest.mark.parametrize(
    ("body", "status", "word"),
    [
        ({}, 422, "spec"),
        (new_task(prio=1), 422, "prio"),
        (new_task(concurrency_key="x"), 422, "concurrency_key"),
        (new_task(queue="No Name"), 422, "queue"),
        (new_task(priority="5"), 422, "spec"),
        ({**new_task(), "status": {"phase": "Succeeded"}}, 422, "status"),
        ({**new_task(), "metadata": {"finalizers": ["x"]}}, 422, "finalizers"),
        ([], 422, "Task"),
    ],
)
def test_what_is_no_task_is_refused_with_words(
    gateway: RunningGateway, body: Any, status: int, word: str
) -> None:
    answer = gateway.tasks("POST", json=body)
    assert answer.status_code == status, answer.text
    assert word in answer.json()["detail"]
    assert answer.headers["Content-Type"] == "application/problem+json"


def test_integers_of_many_digits_are_not_changed_into_others(gateway: RunningGateway) -> None:
    body = b'{"spec": {"queue": "work", "handler": "h", "payload": {"n": 123456789012345678901}}}'
    headers = {"Content-Type": "application/json"}
    answer = gateway.tasks("POST", data=body, headers=headers)
    assert answer.status_code == 400
    assert "payload" in answer.json()["detail"]


def test_the_same_key_is_the_same_task_and_another_request_under_it_is_refused(
    gateway: RunningGateway,
) -> None:
    headers = {"Idempotency-Key": uuid.uuid4().hex}
    first = gateway.tasks("POST", json=new_task(payload={"a": 1, "b": 2}), headers=headers)
    again = gateway.tasks("POST", json=new_task(payload={"b": 2, "a": 1}), headers=headers)
    other = gateway.tasks("POST", json=new_task(queue="other"), headers=headers)
    labels = {**new_task(payload={"a": 1, "b": 2}), "metadata": {"labels": {"a": "b"}}}
    labelled = gateway.tasks("POST", json=labels, headers=headers)
    assert (first.status_code, again.status_code) == (201, 200)
    assert again.json()["metadata"]["uid"] == first.json()["metadata"]["uid"]
    assert again.headers["Idempotency-Replayed"] == "true"
    assert DIGEST in first.json()["metadata"]["annotations"]
    assert {other.status_code, labelled.status_code} == {422}
    assert other.json()["reason"] == "IdempotencyKeyReused"


def test_two_requests_with_one_key_at_once_create_one_task(
    scene: Scene, gateway: RunningGateway
) -> None:
    headers = {"Idempotency-Key": uuid.uuid4().hex}
    answers: list[Any] = []

    def submit() -> None:
        answers.append(gateway.tasks("POST", json=new_task(), headers=headers))

    threads = [threading.Thread(target=submit) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(each.status_code for each in answers) == [200] * 7 + [201]
    assert len({each.json()["metadata"]["uid"] for each in answers}) == 1


def test_a_name_is_the_same_task_or_a_conflict(gateway: RunningGateway) -> None:
    body = {**new_task(), "metadata": {"name": "named"}}
    assert gateway.tasks("POST", json=body).status_code == 201
    assert gateway.tasks("POST", json=body).status_code == 200
    other = gateway.tasks("POST", json={**new_task(priority=3), "metadata": {"name": "named"}})
    assert other.status_code == 409
    assert "priority" in other.json()["detail"]
    both = gateway.tasks("POST", json=body, headers={"Idempotency-Key": "k"})
    assert both.status_code == 422


def test_wait_answers_with_the_end_if_it_comes_in_time(
    scene: Scene, gateway: RunningGateway
) -> None:
    name = created(gateway)["metadata"]["name"]
    still = gateway.tasks("GET", f"/{name}?wait=0s")
    assert still.json()["status"]["phase"] == "Pending"
    threading.Timer(
        0.05,
        lambda: scene.run(
            scene.api.set_status(NAMESPACE, name, phase="Succeeded", result={"n": 1})
        ),
    ).start()
    ended = gateway.tasks("GET", f"/{name}?wait=60s")
    assert ended.json()["status"]["result"] == {"n": 1}
    assert gateway.tasks("GET", f"/{name}?wait=5min").status_code == 422


def test_a_caller_who_may_not_watch_still_gets_the_task_it_created(
    scene: Scene, gateway: RunningGateway
) -> None:
    scene.api.allow("writer", NAMESPACE, ("create", "tasks"))
    answer = gateway.tasks("POST", "?wait=30s", json=new_task(), token="writer")
    assert answer.status_code == 201


def test_tasks_are_listed_by_filters_in_pages(scene: Scene, gateway: RunningGateway) -> None:
    names = [
        created(gateway, queue="listed", handler=f"h{n % 2}")["metadata"]["name"] for n in range(5)
    ]
    scene.run(scene.api.set_status(NAMESPACE, names[0], phase="Failed", reason="Bad"))
    scene.run(scene.api.set_status(NAMESPACE, names[1], phase="Running"))

    def listed(query: str) -> set[str]:
        answer = gateway.tasks("GET", f"?queue=listed{query}")
        assert answer.status_code == 200, answer.text
        return {each["metadata"]["name"] for each in answer.json()["items"]}

    assert listed("") == set(names)
    assert listed("&phase=Failed&phase=Running") == set(names[:2])
    assert listed("&phase=Pending&handler=h0") == {names[2], names[4]}
    assert listed("&reason=Bad") == {names[0]}
    assert gateway.tasks("GET", "?labelSelector=,=").status_code == 400
    pages, after = [], ""
    while True:
        page = gateway.tasks("GET", f"?queue=listed&limit=2{after}").json()
        pages += [each["metadata"]["name"] for each in page["items"]]
        if "continue" not in page:
            break
        after = f"&continue={page['continue']}"
    assert sorted(pages) == sorted(names)


def test_cancel_passes_on_what_the_api_server_says(scene: Scene, gateway: RunningGateway) -> None:
    name = created(gateway)["metadata"]["name"]
    assert gateway.tasks("POST", f"/{name}/cancel").json()["spec"]["cancel"] is True
    scene.run(scene.api.set_status(NAMESPACE, name, phase="Cancelled"))
    late = gateway.tasks("POST", f"/{name}/cancel")
    assert late.status_code == 422
    assert late.json()["detail"] == "the spec of a finished Task is frozen"


def test_retry_creates_a_task_that_names_the_one_that_ended(
    scene: Scene, gateway: RunningGateway
) -> None:
    name = created(gateway, payload={"a": 1})["metadata"]["name"]
    early = gateway.tasks("POST", f"/{name}/retry")
    assert (early.status_code, early.json()["reason"]) == (409, "NotFinished")
    scene.run(scene.api.set_status(NAMESPACE, name, phase="Failed"))
    headers = {"Idempotency-Key": uuid.uuid4().hex}
    first = gateway.tasks("POST", f"/{name}/retry", headers=headers)
    again = gateway.tasks("POST", f"/{name}/retry", headers=headers)
    assert (first.status_code, again.status_code) == (201, 200)
    metadata = first.json()["metadata"]
    assert metadata["labels"]["taskqueue.dev/retry-of"] == name
    assert first.json()["spec"]["payload"] == {"a": 1}
    plain = gateway.tasks("POST", f"/{name}/retry").json()["metadata"]["name"]
    assert plain.startswith(f"{name}-retry-")


def test_a_deleted_task_is_not_found(gateway: RunningGateway) -> None:
    name = created(gateway)["metadata"]["name"]
    assert gateway.tasks("DELETE", f"/{name}").status_code == 204
    gone = gateway.tasks("GET", f"/{name}")
    assert gone.status_code == 404
    assert gone.json()["detail"] == f'tasks.taskqueue.dev "{name}" not found'


@pytest.mark.parametrize(
    "path", ["/v2", "/v1/namespaces/shop/tasks/a%2Fb", "/v1/namespaces/A/tasks"]
)
def test_paths_that_are_none_are_problems(gateway: RunningGateway, path: str) -> None:
    answer = gateway.request("GET", path)
    assert answer.status_code in (404, 422)
    assert answer.json()["status"] == answer.status_code


def test_a_fault_of_the_gateway_is_a_problem_without_its_inside(
    gateway: RunningGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(authorization: str | None) -> None:
        raise RuntimeError(f"the token is {authorization}")

    monkeypatch.setattr(gateway.services.credentials, "connection", fail)
    answer = gateway.tasks("GET")
    assert answer.status_code == 500
    assert answer.json()["reason"] == "InternalError"
    assert "boss" not in answer.text
