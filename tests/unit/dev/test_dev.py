"""`taskqueue dev` as people use it: one process for all tests, and another for what ends it."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from taskqueue.client import TaskCancelled, TaskClient
from tests.unit.dev.desk import Desk

MODULE = """
import time
from dataclasses import dataclass
from taskqueue import Context, task

@dataclass
class Resize:
    url: str
    width: int = 100

@task
def resize(image: Resize, ctx: Context) -> dict:
    ctx.progress(50, "half of it")
    return {"width": image.width, "attempt": ctx.attempt}

@task
def slow(payload: dict) -> None:
    time.sleep(60)

@task
def merge(payload: dict) -> dict:
    return payload
"""

MANIFESTS = """
apiVersion: v1
kind: ConfigMap
metadata: {name: defaults}
data: {payload: '{"a": 1, "b": 1}'}
---
apiVersion: taskqueue.dev/v1alpha1
kind: Task
metadata: {name: merged}
spec:
  queue: work
  handler: merge
  payload: {b: 2}
  payloadFrom: [{configMapKeyRef: {name: defaults, key: payload}}]
---
apiVersion: taskqueue.dev/v1alpha1
kind: Task
metadata: {name: wrong}
spec: {queue: work, handler: merge, priorty: 1}
---
kind: Secret
metadata: {name: rabbit}
"""


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    folder = tmp_path_factory.mktemp("dev")
    (folder / "shop.py").write_text(MODULE)
    (folder / "tasks.yaml").write_text(MANIFESTS)
    desk = Desk(folder, "shop", "-f", "tasks.yaml")
    try:
        yield desk
    finally:
        assert desk.stop() == 0


def test_submit_waits_for_the_result_of_a_desk(desk: Desk) -> None:
    done = desk.run("submit", "work", "resize", '{"url": "a", "width": 7}', "--wait")
    assert (done.returncode, json.loads(done.stdout)) == (0, {"width": 7, "attempt": 1})


def test_files_are_applied_and_what_is_refused_is_said(desk: Desk) -> None:
    desk.until(lambda: "merged" in desk.text and "Succeeded" in desk.text)
    shown = desk.run("get", "merged", "-o", "json")
    assert json.loads(shown.stdout)["items"][0]["status"]["result"] == {"a": 1, "b": 2}
    assert "priorty" in desk.text
    assert "Secret/rabbit ignored" in desk.text


def test_payload_that_does_not_match_fails_with_its_fields(desk: Desk) -> None:
    done = desk.run("submit", "work", "resize", "{}", "--wait")
    assert done.returncode == 1
    assert "url: Field required" in done.stderr


def test_commands_on_tasks_work_on_a_desk(desk: Desk) -> None:
    assert desk.run("submit", "work", "slow", "--name", "nap").returncode == 0
    desk.until(lambda: "Running    nap" in desk.text)
    assert "attempt 1" in desk.run("why", "nap").stdout
    assert desk.run("cancel", "nap").returncode == 0
    desk.until(lambda: "Cancelled  nap" in desk.text)
    assert "Cancelled" in desk.run("describe", "nap").stdout
    assert "created" in desk.run("retry", "merged").stdout
    assert desk.run("hold", "work").returncode == 0
    assert "held" in desk.run("why", retried_while_held(desk)).stdout
    assert desk.run("resume", "work").returncode == 0


def retried_while_held(desk: Desk) -> str:
    made = desk.run("retry", "merged").stdout
    return made.split()[0].partition("/")[2]


def test_client_library_works_on_a_desk(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TASKQUEUE_DEV", desk.url)
    with TaskClient() as client:
        handle = client.submit("work", "merge", {"x": 1}, name="by-program")
        assert handle.result(timeout=60) == {"x": 1}
        assert client.submit("work", "merge", {"x": 1}, name="by-program").uid == handle.uid
        sleeping = client.submit("work", "slow")
        sleeping.cancel()
        with pytest.raises(TaskCancelled):
            sleeping.wait(timeout=60)


@pytest.mark.parametrize(
    ("name", "value"),
    [("Origin", "https://example.org"), ("Sec-Fetch-Site", "cross-site"), ("Host", "a.example")],
)
def test_web_pages_are_refused(desk: Desk, name: str, value: str) -> None:
    request = urllib.request.Request(f"{desk.url}/apis/taskqueue.dev/v1alpha1/tasks")  # noqa: S310
    request.add_header(name, value)
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request)  # noqa: S310
    assert refused.value.code == 403
    refused.value.close()


def test_nothing_is_coloured_in_a_pipe(desk: Desk) -> None:
    assert "\033" not in desk.text


def test_change_of_the_module_is_followed_and_tasks_are_kept(tmp_path: Path) -> None:
    module = tmp_path / "shop.py"
    module.write_text("def broken(:\n")
    desk = Desk(tmp_path, "shop")
    try:
        desk.until(lambda: "SyntaxError" in desk.text and "waits" in desk.text)
        module.write_text(MODULE)
        assert desk.url
        assert desk.run("submit", "work", "slow", "--name", "kept").returncode == 0
        desk.until(lambda: "Running    kept" in desk.text)
        module.write_text(MODULE.replace("time.sleep(60)", 'return {"new": True}'))
        desk.until(lambda: "Succeeded  kept" in desk.text)
        assert "has changed" in desk.text
        status = json.loads(desk.run("get", "kept", "-o", "json").stdout)["items"][0]["status"]
        assert (status["attempts"], status["result"]) == (1, {"new": True})
    finally:
        assert desk.stop() == 0
