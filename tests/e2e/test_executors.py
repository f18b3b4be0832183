"""The samples of examples/executors, applied as their README says: programs and services."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest

from tests.e2e.api import Body, Refused
from tests.e2e.harness import Harness

pytestmark = pytest.mark.cluster

SAMPLES = Path(__file__).parents[2] / "examples" / "executors"

#: For pools that come from zero, as the samples' do.
COLD = 120


@pytest.fixture(scope="module", autouse=True)
def samples(harness: Harness) -> None:
    for name in ("command", "http"):
        harness.kubectl.ok("apply", "-n", harness.namespace, "-k", str(SAMPLES / name))


@pytest.fixture(scope="module")
def words(harness: Harness, samples: None) -> str:
    """The TaskQueue whose handler is a script, once a worker of it has run the sample's Task."""
    harness.finished("count-some-words", seconds=COLD)
    return "words"


@pytest.fixture(scope="module")
def greetings(harness: Harness, samples: None) -> str:
    """The TaskQueue whose handlers are a service's, once that has answered the sample's Task."""
    harness.finished("greet-ada", seconds=COLD)
    return "greetings"


def log_of(harness: Harness, container: str, queue: str) -> str:
    """Return what one container of a TaskQueue's workers that are still there has written."""
    text = ""
    for pod in harness.pods(queue):
        try:
            path = harness.core("pods", pod["metadata"]["name"], f"log?container={container}")
            text += harness.api.text(path)
        except Refused:  # it has just left, or has not begun
            continue
    return text


def counting(text: str, said: Callable[[], str]) -> Callable[[], int]:
    """Return how often a log says something from now on."""
    before = said().count(text)
    return lambda: said().count(text) - before


def failed_once(status: Body) -> str:
    """Return why a Task's first attempt failed, the second having succeeded."""
    assert (status["phase"], status["attempts"]) == ("Succeeded", 2), status
    first = status["history"][0]
    assert first["outcome"] == "Failed"
    return f"{first['reason']}: {first['message']}"


def pause(status: Body) -> float:
    """Return the seconds between the first attempt's end and the Task's."""
    ended, succeeded = status["history"][0]["finishTime"], status["completionTime"]
    return (datetime.fromisoformat(succeeded) - datetime.fromisoformat(ended)).total_seconds()


def test_a_script_counts_words(harness: Harness, words: str) -> None:
    status = harness.finished("count-some-words")
    assert (status["phase"], status["attempts"]) == ("Succeeded", 1)
    assert status["result"] == {"words": 5}


def test_exit_code_65_fails_the_task_at_once(harness: Harness, words: str) -> None:
    harness.task("no-text", "count-words", queue=words, payload={"words": "none"})
    status = harness.finished("no-text", seconds=COLD)
    assert (status["phase"], status["reason"], status["attempts"]) == ("Failed", "NonRetryable", 1)
    assert 'exit code 65: the payload has no "text"' in status["message"]


def test_exit_code_75_is_tried_again(harness: Harness, words: str) -> None:
    harness.task("not-yet", "count-words", queue=words, payload={"text": "not yet"})
    status = harness.finished("not-yet", seconds=COLD)
    assert failed_once(status) == "ExitCode: exit code 75: attempt 1 of 3: not yet"
    assert status["result"] == {"words": 2}


def test_a_running_script_is_cancelled_and_cleans_up(harness: Harness, words: str) -> None:
    cleaned = counting('"cleaned up"', lambda: log_of(harness, "worker", words))
    harness.task("cancelled-script", "count-words", queue=words, payload={"text": "wait"})
    harness.phase("cancelled-script", "Running", seconds=COLD)
    harness.api.patch(harness.path("tasks", "cancelled-script"), {"spec": {"cancel": True}})
    assert harness.finished("cancelled-script")["phase"] == "Cancelled"
    harness.until(lambda: cleaned() == 1, what="the script told to end")
    harness.until(lambda: not sleepers(harness, words), what="what it had started ended")


def test_a_script_that_takes_too_long_is_stopped(harness: Harness, words: str) -> None:
    cleaned = counting('"cleaned up"', lambda: log_of(harness, "worker", words))
    harness.task(
        "slow-script",
        "count-words",
        queue=words,
        payload={"text": "wait"},
        attemptTimeoutSeconds=1,
        retry={"maxAttempts": 2, "backoff": {"initialSeconds": 0}},
    )
    status = harness.finished("slow-script", seconds=COLD)
    assert (status["reason"], status["attempts"]) == ("RetriesExhausted", 2)
    assert [one["reason"] for one in status["history"]] == ["Timeout", "Timeout"]
    harness.until(lambda: cleaned() == 2, what="both runs told to end")
    harness.until(lambda: not sleepers(harness, words), what="what they had started ended")


def sleepers(harness: Harness, queue: str) -> list[str]:
    """Return the processes ``sleep 1000`` of the sample's script, in all workers of a TaskQueue."""
    look = (
        "import glob\n"
        "for path in glob.glob('/proc/[0-9]*/cmdline'):\n"
        "    try: line = open(path, 'rb').read()\n"
        "    except OSError: continue\n"
        "    if line == b'sleep\\0001000\\0': print(path)\n"
    )
    found: list[str] = []
    for pod in harness.pods(queue):
        name = pod["metadata"]["name"]
        where = ("-n", harness.namespace, name, "-c", "worker")
        found += harness.kubectl("exec", *where, "--", "python3", "-c", look).stdout.splitlines()
    return found


def test_a_service_greets(harness: Harness, greetings: str) -> None:
    status = harness.finished("greet-ada")
    assert (status["phase"], status["attempts"]) == ("Succeeded", 1)
    assert status["result"] == {"greeting": "Hello, Ada!", "attempt": 1}


@pytest.mark.parametrize(
    ("handler", "words"),
    [
        ("greet", 'the payload has no \\"name\\"'),
        ("no-such-path", "answered 404 Not Found: "),
    ],
)
def test_a_status_4xx_fails_the_task_at_once(
    harness: Harness, greetings: str, handler: str, words: str
) -> None:
    name = harness.task(f"bad-{handler}", handler, queue=greetings, payload={})
    status = harness.finished(name, seconds=COLD)
    assert (status["phase"], status["reason"], status["attempts"]) == ("Failed", "NonRetryable", 1)
    assert words in status["message"]


def test_a_status_503_is_tried_again_after_the_time_the_service_asks_for(
    harness: Harness, greetings: str
) -> None:
    harness.task(
        "later",
        "greet",
        queue=greetings,
        payload={"name": "later"},
        retry={"backoff": {"initialSeconds": 0}},
    )
    status = harness.finished("later", seconds=COLD)
    assert failed_once(status).startswith(
        "HttpStatus: http://127.0.0.1:8000/run/greet answered 503"
    )
    assert status["result"] == {"greeting": "Hello, later!", "attempt": 2}
    assert pause(status) >= 2


def test_a_request_under_way_is_cancelled_and_the_service_told(
    harness: Harness, greetings: str
) -> None:
    stopped = counting("stopped\n", lambda: log_of(harness, "service", greetings))
    harness.task("cancelled-request", "wait", queue=greetings)
    harness.phase("cancelled-request", "Running", seconds=COLD)
    harness.api.patch(harness.path("tasks", "cancelled-request"), {"spec": {"cancel": True}})
    assert harness.finished("cancelled-request")["phase"] == "Cancelled"
    harness.until(lambda: stopped() == 1, what="the service's work stopped")


def test_a_service_that_dies_under_way_fails_an_attempt_not_the_task(
    harness: Harness, greetings: str
) -> None:
    harness.task(
        "outlives-its-service",
        "wait",
        queue=greetings,
        payload={"seconds": 10},
        retry={"maxAttempts": 30, "backoff": {"initialSeconds": 1, "factor": 1}},
    )
    worker = harness.phase("outlives-its-service", "Running", seconds=COLD)["worker"]
    end = "import os, signal; os.kill(1, signal.SIGTERM)"
    where = ("-n", harness.namespace, worker, "-c", "service")
    harness.kubectl.ok("exec", *where, "--", "python3", "-c", end)
    status = harness.finished("outlives-its-service", seconds=COLD)
    assert (status["phase"], status["result"]) == ("Succeeded", {"stopped": False})
    assert {one["reason"] for one in status["history"][:-1]} == {"HttpUnreachable"}
