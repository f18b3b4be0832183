"""`kubectl taskqueue`, as people type it, against the real API server."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.harness import Harness

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module", autouse=True)
def queue(harness: Harness) -> None:
    harness.queue(scaling={"minReplicas": 1})


class Command:
    """Runs it as a plugin of kubectl: by a program of that name in PATH."""

    def __init__(self, harness: Harness, folder: Path) -> None:
        plugin = folder / "kubectl-taskqueue"
        plugin.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m taskqueue "$@"\n')
        plugin.chmod(0o755)
        kubectl, kubeconfig = harness.kubectl.command()
        folders = [str(folder), str(Path(kubectl).parent), os.environ["PATH"]]
        self._environment = {
            **os.environ,
            "PATH": os.pathsep.join(folders),
            "KUBECONFIG": kubeconfig.removeprefix("--kubeconfig="),
        }
        self._namespace = harness.namespace

    def __call__(
        self, verb: str, *words: str, code: int = 0, text: str = ""
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            ["kubectl", "taskqueue", verb, *words, "-n", self._namespace],
            input=text,
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == code, done.stderr + done.stdout
        return done


@pytest.fixture
def command(harness: Harness, tmp_path: Path) -> Command:
    return Command(harness, tmp_path)


def test_submit_waits_for_the_result(command: Command) -> None:
    done = command("submit", "q", "echo", "-", "--wait", "--timeout", "100s", text='{"a": [1]}')
    assert json.loads(done.stdout) == {"a": [1]}
    assert "Succeeded" in done.stderr
    failed = command("submit", "q", "give_up", "--wait", "--timeout", "100s", code=1)
    assert "Failed, NonRetryable" in failed.stderr
    assert failed.stdout == ""


def test_a_failed_task_is_explained_and_tried_again(command: Command, harness: Harness) -> None:
    harness.task("broken", "flaky", payload={"failures": 9}, retry={"maxAttempts": 1})
    harness.finished("broken")
    listed = command("get", "--reason", "ConnectionError").stdout
    assert "broken" in listed
    assert "RetriesExhausted" in listed
    assert "kubectl taskqueue retry broken" in command("why", "task/broken").stdout
    shown = command("describe", "broken").stdout
    assert "ConnectionError: the network is away at attempt 1" in shown
    assert "attempt 1" in command("logs", "broken").stdout
    again = command("retry", "--reason", "ConnectionError").stdout.split()[0]
    name = again.rpartition("/")[2]
    status = harness.finished(name)
    assert (status["phase"], status["reason"]) == ("Failed", "RetriesExhausted")
    labels = harness.api.request("GET", harness.path("tasks", name))["metadata"]["labels"]
    assert labels["taskqueue.dev/retry-of"] == "broken"


def test_a_held_queue_is_why_a_task_waits(command: Command, harness: Harness) -> None:
    assert "stopPolicy Hold" in command("hold", "q").stdout
    try:
        harness.task("held")
        why = command("why", "held").stdout
        assert "held is Pending" in why
        assert "kubectl taskqueue resume q" in why
        assert "1 done" in command("cancel", "held").stderr
        assert harness.finished("held")["phase"] == "Cancelled"
    finally:
        command("resume", "q")


def test_what_is_wrong_is_said_in_a_line(command: Command) -> None:
    done = command("describe", "nobody", code=1)
    assert done.stderr.startswith("taskqueue: ")
    assert '"nobody" not found' in done.stderr
    assert len(done.stderr.splitlines()) == 1
    late = command("submit", "nowhere", "echo", "--wait", "--timeout", "2s", code=124)
    assert "Blocked, QueueNotFound" in late.stderr


def test_top_shows_queues_and_their_workers(command: Command, harness: Harness) -> None:
    harness.registered(1)
    header, row = command("top", "q").stdout.splitlines()
    assert header.split()[:3] == ["NAME", "READY", "WAITING"]
    assert row.split()[:2] == ["q", "True"]
    assert "echo" in command("top", "--workers").stdout


def test_schedules_are_paused_resumed_and_run(command: Command, harness: Harness) -> None:
    body = {
        "apiVersion": "taskqueue.dev/v1alpha1",
        "kind": "TaskSchedule",
        "metadata": {"name": "yearly"},
        "spec": {
            "schedules": ["0 0 1 1 *"],
            "taskTemplate": {"spec": {"queue": "q", "handler": "echo", "payload": {"n": 1}}},
        },
    }
    path = harness.path("taskschedules")
    harness.api.request("POST", path, body)

    def status() -> dict[str, object]:
        found: dict[str, object] = harness.api.get(f"{path}/yearly").get("status") or {}
        return found

    harness.until(lambda: bool(status().get("nextTimes")), what="served")
    assert "yearly" in command("schedule", "next").stdout
    command("schedule", "pause", "yearly", "--reason", "moving")
    harness.until(lambda: status().get("paused") is True, what="paused")
    command("schedule", "resume", "yearly")
    harness.until(lambda: not status().get("paused"), what="resumed")
    made = command("schedule", "run", "yearly").stdout.split()[0].partition("/")[2]
    assert harness.finished(made)["result"] == {"n": 1}
    when = ("--from", "2026-01-01T00:00:00Z", "--to", "2026-01-02T00:00:00Z")
    command("schedule", "backfill", "yearly", *when)
    harness.until(lambda: bool(status().get("backfills")), what="backfilled")


def test_names_are_completed_and_versions_told(command: Command, harness: Harness) -> None:
    harness.task("completed-name")
    done = subprocess.run(
        [sys.executable, "-m", "taskqueue", "__complete", "why", "-n", harness.namespace, "compl"],
        env=command._environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["completed-name"]
    assert command("version").stdout.startswith("Client: ")
