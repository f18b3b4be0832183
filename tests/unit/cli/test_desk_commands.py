"""Completion, schedules, top and version: what they choose, print and ask."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import pytest

from taskqueue.cli import completion, schedules, version
from taskqueue.cli.errors import CommandFailed
from taskqueue.cli.main import main, make_parser
from taskqueue.cli.style import has_colour, paint
from taskqueue.cli.top import queue_table, worker_table


def completed(*words: str) -> list[str]:
    return completion.completions(make_parser(), words)


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["su"], ["submit"]),
        (["get", "--ph"], ["--phase"]),
        (["get", "--phase", "Fa"], ["Failed"]),
        (["get", "-o", ""], ["json", "name", "table", "wide"]),
        (["schedule", "re"], ["resume"]),
        (["completion", ""], ["bash", "fish", "zsh"]),
        (["submit", "--priority", ""], []),
        (["nope", "x", ""], []),
    ],
)
def test_words_are_completed(words: list[str], found: list[str]) -> None:
    assert completed(*words) == found


def test_names_are_asked_where_the_words_say(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Sequence[str]] = []

    def run(words: Sequence[str], **_: Any) -> Any:
        asked.append(words)
        return subprocess.CompletedProcess(words, 0, "task.taskqueue.dev/abc\ntask.x/xyz\n", "")

    monkeypatch.setattr(subprocess, "run", run)
    assert completed("why", "-n", "shop", "a") == ["abc"]
    assert asked[-1][:3] == ["kubectl", "get", "tasks.taskqueue.dev"]
    assert asked[-1][-2:] == ["-n", "shop"]
    assert completed("cancel", "abc", "") == ["xyz"]  # what is there is not offered again
    completed("get", "--queue", "")
    assert asked[-1][2] == "taskqueues.taskqueue.dev"
    completed("schedule", "pause", "")
    assert asked[-1][2] == "taskschedules.taskqueue.dev"


def test_completion_without_an_answer_is_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(words: Sequence[str], **_: Any) -> Any:
        raise FileNotFoundError

    monkeypatch.setattr(subprocess, "run", run)
    assert completed("why", "") == []


def test_kubectl_gets_the_words_and_a_directive(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["kubectl_complete-taskqueue", "sub"])
    completion.complete_for_kubectl()
    assert capsys.readouterr().out == "submit\n:4\n"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_scripts_are_sound_where_their_shell_is(
    shell: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert "taskqueue __complete" in script
    if shell == "bash":
        asked = f'{script}\ntaskqueue() {{ echo "$@" >&2; printf "submit\\nsu b\\n"; }}\n'
        asked += "COMP_WORDS=(taskqueue get su); COMP_CWORD=2; _taskqueue 2>/dev/null\n"
        asked += 'printf "%s|" "${COMPREPLY[@]}"'
        done = subprocess.run(["bash", "-c", asked], capture_output=True, text=True, check=True)
        assert done.stdout == "submit|su b|"


class FakeApi:
    """One schedule, and what was asked."""

    def __init__(self, **spec: Any) -> None:
        template = {
            "metadata": {"labels": {"a": "b"}},
            "spec": {"queue": "q", "handler": "h", "payload": {"n": 1}},
        }
        self.schedule = {
            "metadata": {
                "namespace": "shop",
                "name": "nightly",
                "uid": "u",
                "resourceVersion": "7",
            },
            "spec": {"schedules": ["0 0 * * *"], "taskTemplate": template, **spec},
            "status": {"nextTimes": ["2026-01-02T00:00:00Z"], "backfills": [{"name": "old"}]},
        }
        self.created: list[dict[str, Any]] = []
        self.patched: list[dict[str, Any]] = []

    def objects(self, kind: str, *names: str) -> list[dict[str, Any]]:
        assert kind == "taskschedules.taskqueue.dev"
        return [self.schedule]

    def create(self, body: dict[str, Any]) -> dict[str, Any]:
        self.created.append(body)
        return {"metadata": {"name": "nightly-abcde"}}

    def patch(self, kind: str, one: dict[str, Any], change: dict[str, Any]) -> None:
        assert one is self.schedule
        self.patched.append(change)


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> FakeApi:
    fake = FakeApi()
    monkeypatch.setattr(schedules, "api_of", lambda options: fake)
    return fake


def test_run_makes_a_task_of_the_template(api: FakeApi, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schedule", "run", "nightly"]) == 0
    (made,) = api.created
    assert made["spec"] == {"queue": "q", "handler": "h", "payload": {"n": 1}}
    assert made["metadata"]["labels"] == {"a": "b"}
    assert made["metadata"]["annotations"] == {"taskqueue.dev/run-of": "nightly"}
    assert capsys.readouterr().out == "task.taskqueue.dev/nightly-abcde created\n"


def test_pause_and_resume_are_annotations(api: FakeApi) -> None:
    assert main(["schedule", "pause", "nightly", "--reason", "moving"]) == 0
    assert main(["schedule", "resume", "nightly"]) == 0
    paused, resumed = (one["metadata"]["annotations"] for one in api.patched)
    assert paused == {"taskqueue.dev/paused": "moving"}
    assert resumed["taskqueue.dev/paused"] is None
    assert resumed["taskqueue.dev/resumed-at"].endswith("Z")


def test_resume_says_what_else_pauses(api: FakeApi, capsys: pytest.CaptureFixture[str]) -> None:
    api.schedule["spec"]["suspend"] = True
    assert main(["schedule", "resume", "nightly"]) == 1
    assert "spec.suspend" in capsys.readouterr().err


BACKFILL = ["schedule", "backfill", "nightly", "--to", "2026-01-02T00:00:00+01:00", "--from"]


def test_backfill_is_added_to_the_others(api: FakeApi) -> None:
    api.schedule["spec"]["backfills"] = [{"name": "present"}]
    assert main([*BACKFILL, "2026-01-01T00:00:00Z", "--allow"]) == 0
    (change,) = api.patched
    assert change["metadata"] == {"resourceVersion": "7"}
    present, made = change["spec"]["backfills"]
    assert present == {"name": "present"}
    assert (made["startTime"], made["endTime"], made["concurrencyPolicy"]) == (
        *("2026-01-01T00:00:00Z", "2026-01-01T23:00:00Z"),
        "Allow",
    )


@pytest.mark.parametrize("name", ["old", "present"])
def test_backfill_of_a_name_is_made_once(
    api: FakeApi, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    api.schedule["spec"]["backfills"] = [{"name": "present"}]
    assert main([*BACKFILL, "2026-01-01T00:00:00Z", "--backfill", name]) == 1
    assert "give another --backfill" in capsys.readouterr().err
    assert not api.patched


@pytest.mark.parametrize("begin", ["2026-01-01", "soon", "2026-01-03T00:00:00Z"])
def test_backfill_needs_times_in_order(api: FakeApi, begin: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*BACKFILL, begin])
    assert ended.value.code == 2


def test_next_times_are_shown(api: FakeApi, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schedule", "next"]) == 0
    header, row = capsys.readouterr().out.splitlines()
    assert header.split()[:3] == ["NAME", "NEXT", "IN"]
    assert row.split()[:2] == ["nightly", "2026-01-02T00:00:00Z"]


QUEUES: list[dict[str, Any]] = [
    {"metadata": {"namespace": "shop", "name": "new"}},
    {
        "metadata": {"namespace": "shop", "name": "busy"},
        "status": {
            "conditions": [{"type": "Ready", "status": "False"}],
            "pending": 5,
            "ready": 2,
            "running": 1,
            "replicas": 1,
            "desiredReplicas": 3,
            "throughputPerMinute": 12.5,
            "meanRunSeconds": 0.25,
            "totals": {"succeeded": 7, "failed": 1},
            "workers": [{"pod": "p", "slots": 4, "cpus": 2, "handlers": ["a", "b"]}],
        },
    },
]


def test_top_shows_the_longest_backlog_first() -> None:
    lines = queue_table(QUEUES, with_namespace=False, colour=False)
    assert lines[1].split() == [
        "busy",
        "False",
        "7",
        "1",
        "4",
        "1/3",
        "12.5",
        "0.25s",
        "7",
        "1",
        "0",
    ]
    assert lines[2].split() == ["new", "-", "0", "0", "0", "-", "-", "-", "0", "0", "0"]
    assert max(map(len, lines)) <= 110


def test_top_colours_what_is_not_ready() -> None:
    lines = queue_table(QUEUES, with_namespace=True, colour=True)
    assert lines[1].startswith("\033[31mshop")
    assert "\033" not in lines[2]


def test_top_shows_workers() -> None:
    assert worker_table(QUEUES, with_namespace=False)[1].split() == [
        "busy",
        "p",
        "-",
        "2",
        "4",
        "a,",
        "b",
    ]


def test_top_watches_on_a_terminal_only() -> None:
    with pytest.raises(SystemExit) as ended:
        main(["top", "--watch"])
    assert ended.value.code == 2


@pytest.mark.parametrize(
    ("client", "operator", "warns"),
    [
        ("0.1.0", "0.1.5", False),
        ("0.1.0", "0.2.0", False),
        ("0.1.0", "0.3.0", True),
        ("0.3.0", "0.1.0", True),
        ("1.0.0", "2.0.0", True),
        ("0.1.0", "dev", False),
        ("0.1.0", "", False),
    ],
)
def test_skew_is_warned_about(client: str, operator: str, warns: bool) -> None:
    assert bool(version.skew(client, operator)) is warns


@pytest.mark.parametrize(
    ("image", "tag"),
    [
        ("taskqueue-operator:0.2.0", "0.2.0"),
        ("registry:5000/x/taskqueue-operator:0.2.0@sha256:ab", "0.2.0"),
        ("registry:5000/taskqueue-operator", ""),
        ("sidecar:1.0", ""),
    ],
)
def test_version_of_the_operator_is_its_images(image: str, tag: str) -> None:
    pod = {"containers": [{"image": image}]}
    assert version.image_version({"spec": {"template": {"spec": pod}}}) == tag


def test_version_without_an_operator_to_ask(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Away:
        def objects(self, *_: Any, **__: Any) -> list[Any]:
            raise CommandFailed("no server")

    monkeypatch.setattr(version, "api_of", lambda options: Away())
    assert main(["version"]) == 1
    said = capsys.readouterr()
    assert said.out.startswith("Client: ")
    assert "no server" in said.err


def test_colours_are_for_terminals_that_want_them(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal:
        def isatty(self) -> bool:
            return True

    out: Any = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert has_colour(out)
    monkeypatch.setenv("TERM", "dumb")
    assert not has_colour(out)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    assert not has_colour(out)
    assert paint("a", "red", wanted=False) == paint("a", "", wanted=True) == "a"
