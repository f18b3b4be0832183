"""The commands on Tasks: what they choose, what they ask, what they make of a Task."""

import io
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskqueue.cli import tasks
from taskqueue.cli.errors import CommandFailed
from taskqueue.cli.kubectl import Kubectl
from taskqueue.cli.main import main
from taskqueue.cli.selection import PHASES, Filter, duration
from taskqueue.cli.text_table import span, table
from taskqueue.client.new_task import RETRY_OF, retry_of

NOW = 1_800_000_000.0


def task(name: str = "t", **status: Any) -> dict[str, Any]:
    created = status.pop("created", "2027-01-15T07:00:00Z")
    return {
        "metadata": {
            "namespace": "shop",
            "name": name,
            "uid": f"uid-{name}",
            "creationTimestamp": created,
        },
        "spec": {"queue": "q", "handler": "h", "payload": {"n": 1}},
        "status": {"phase": "Pending", **status},
    }


class FakeKubectl:
    """Stands for kubectl: a list of Tasks, and what was asked of it."""

    def __init__(self, *found: dict[str, Any]) -> None:
        self.found = list(found)
        self.patched: list[str] = []
        self.created: list[dict[str, Any]] = []
        self.refused: set[str] = set()
        self.queue: dict[str, Any] | None = None

    def objects(self, _: str, *names: str, arguments: Sequence[str] = ()) -> list[dict[str, Any]]:
        self.arguments = list(arguments)
        return [one for one in self.found if not names or one["metadata"]["name"] in names]

    def patch(self, _: str, one: dict[str, Any], change: dict[str, Any]) -> None:
        assert change == {"spec": {"cancel": True}}
        if one["metadata"]["name"] in self.refused:
            raise CommandFailed("forbidden: ask for a role")
        self.patched.append(one["metadata"]["name"])

    def create(self, body: dict[str, Any]) -> dict[str, Any]:
        self.created.append(body)
        return {"metadata": {"name": f"{body['metadata']['generateName']}x", "namespace": "shop"}}

    def watch(
        self, _: str, name: str, namespace: str, *, seconds: float | None
    ) -> Iterator[dict[str, Any]]:
        yield from self.found

    def object(self, _: str, name: str, namespace: str) -> dict[str, Any] | None:
        return self.queue

    def logs(self, arguments: Sequence[str], namespace: str) -> Iterator[str]:
        self.arguments = list(arguments)
        yield from ()

    each = Kubectl.each


@pytest.fixture
def kubectl(monkeypatch: pytest.MonkeyPatch) -> FakeKubectl:
    fake = FakeKubectl()
    monkeypatch.setattr(tasks, "api_of", lambda options: fake)
    return fake


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("5m", 300), ("1h30m", 5400), ("2d", 172_800)]
)
def test_durations(text: str, seconds: float) -> None:
    assert duration(text) == seconds


@given(seconds=st.floats(0, 1e9))
def test_a_span_is_short_and_never_more_than_it_was(seconds: float) -> None:
    text = span(seconds)
    assert len(text) <= 9
    assert 0 <= seconds - duration(text) < max(0.05 * seconds, 61)


@given(
    rows=st.lists(st.lists(st.text(max_size=9), min_size=3, max_size=3), max_size=5),
)
def test_no_text_of_a_task_moves_the_cursor(rows: list[list[str]]) -> None:
    lines = table(["A", "B", "C"], rows)
    assert len(lines) == 1 + len(rows)
    assert all(line.isprintable() for line in lines)


def test_filters_must_all_match() -> None:
    failed = task(
        phase="Failed", reason="RetriesExhausted", history=[{"attempt": 1, "reason": "OSError"}]
    )
    assert Filter().matches(failed, NOW)
    good = [
        Filter(queue="q", handler="h", phases=("Failed", "Cancelled")),
        Filter(reason="RetriesExhausted", older_than=3600),
        Filter(reason="OSError"),
    ]
    bad = [
        Filter(queue="other"),
        Filter(handler="other"),
        Filter(phases=("Pending",)),
        Filter(reason="ValueError"),
        Filter(queue="q", older_than=3601),
    ]
    assert all(one.matches(failed, NOW) for one in good)
    assert not any(one.matches(failed, NOW) for one in bad)


def test_the_api_server_leaves_out_what_it_can(kubectl: FakeKubectl) -> None:
    main(["get", "--queue", "q", "--phase", "Failed", "--reason", "OSError"])
    assert kubectl.arguments == ["--field-selector=spec.queue=q,status.phase=Failed"]
    main(["get", "--phase", "Failed", "--phase", "Pending", "-l", "a=b"])
    assert kubectl.arguments == ["--selector=a=b"]


@pytest.mark.parametrize("verb", ["cancel", "retry"])
def test_nothing_is_done_to_all_tasks_by_mistake(
    verb: str, kubectl: FakeKubectl, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([verb])
    assert ended.value.code == 2
    assert "give names of Tasks, or a filter" in capsys.readouterr().err


def test_many_are_asked_about(
    kubectl: FakeKubectl, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    kubectl.found = [task(f"t{index}") for index in range(11)]
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))  # a pipe is nobody who answers
    assert main(["cancel", "--queue", "q"]) == 1
    assert "nothing done; --yes does not ask" in capsys.readouterr().err
    assert not kubectl.patched
    assert main(["cancel", "--queue", "q", "--dry-run"]) == 0
    assert "would cancel 11" in capsys.readouterr().err
    assert not kubectl.patched
    assert main(["cancel", "--queue", "q", "--yes"]) == 0
    assert len(kubectl.patched) == 11


def test_what_is_refused_is_said_and_the_others_are_done(
    kubectl: FakeKubectl, capsys: pytest.CaptureFixture[str]
) -> None:
    kubectl.found = [task("a"), task("b"), task("c", phase="Succeeded")]
    kubectl.refused = {"a"}
    assert main(["cancel", "a", "b", "c"]) == 1
    assert kubectl.patched == ["b"]
    said = capsys.readouterr().err
    assert "a: forbidden: ask for a role" in said
    assert "cancel: 1 done, 1 not" in said


def test_a_retry_is_a_new_task_with_the_same_work(kubectl: FakeKubectl) -> None:
    ended = task("resize-1", phase="Failed")
    ended["spec"] |= {"cancel": True, "startAfter": "2026-01-01T00:00:00Z", "priority": 5}
    ended["metadata"] |= {
        "labels": {"team": "web", RETRY_OF: "resize-0"},
        "annotations": {"note": "x", "kubectl.kubernetes.io/last-applied-configuration": "{}"},
    }
    kubectl.found = [ended, task("waits")]
    assert main(["retry", "resize-1", "waits"]) == 0
    (made,) = kubectl.created
    assert made["spec"] == {"queue": "q", "handler": "h", "payload": {"n": 1}, "priority": 5}
    assert made["metadata"] == {
        "generateName": "resize-1-retry-",
        "namespace": "shop",
        "labels": {"team": "web", RETRY_OF: "resize-1"},
        "annotations": {"note": "x", RETRY_OF: "resize-1"},
    }


def test_a_long_name_is_no_label(kubectl: FakeKubectl) -> None:
    name = "n" * 253
    made = retry_of(task(name, phase="Failed"))["metadata"]
    assert RETRY_OF not in made["labels"]
    assert made["annotations"][RETRY_OF] == name
    assert len(made["generateName"]) < 253 - 5


@pytest.mark.parametrize("payload", ["[1]", "x", "@/nowhere", '"text"'])
def test_a_payload_that_is_no_object_is_wrong_usage(
    payload: str, kubectl: FakeKubectl, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["submit", "q", "h", payload])
    assert ended.value.code == 2
    assert "payload" in capsys.readouterr().err
    assert not kubectl.created


def test_the_payload_may_come_from_standard_input(
    kubectl: FakeKubectl, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO('{"a": 1}'))
    assert main(["submit", "q", "h", "-", "--label", "team=web", "--priority", "-3"]) == 0
    (made,) = kubectl.created
    assert made["spec"] == {"queue": "q", "handler": "h", "payload": {"a": 1}, "priority": -3}
    assert made["metadata"] == {"generateName": "q-", "labels": {"team": "web"}}


STORED = {"key": "shop/q/uid/1-0", "sizeBytes": 100_000, "contentType": "image/png"}


@pytest.mark.parametrize(
    ("status", "printed", "said"),
    [
        ({"result": {"n": 1}}, '{"n": 1}\n', "Succeeded"),
        ({"resultRef": STORED}, "", "100000 bytes of image/png, is in the store under shop/q/uid"),
        ({}, "", "Succeeded"),
    ],
)
def test_whoever_waits_has_the_result_or_is_told_where_it_is(
    kubectl: FakeKubectl,
    capsys: pytest.CaptureFixture[str],
    status: dict[str, Any],
    printed: str,
    said: str,
) -> None:
    kubectl.found = [task(), task(phase="Succeeded", **status)]
    assert main(["submit", "q", "h", "--wait"]) == 0
    shown = capsys.readouterr()
    assert shown.out == printed
    assert said in shown.err


@pytest.mark.parametrize("name", ["pod/x", "", "-x", "task/"])
def test_what_is_no_task_is_wrong_usage(name: str, kubectl: FakeKubectl) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["get", "--", name])
    assert ended.value.code == 2


@pytest.mark.parametrize(
    ("queue", "more"),
    [
        (None, []),
        ({"spec": {}}, []),
        ({"spec": {"workers": {"container": "tasks"}}}, ["--container=tasks"]),
    ],
)
def test_the_log_is_that_of_the_container_with_the_worker(
    kubectl: FakeKubectl, queue: dict[str, Any] | None, more: list[str]
) -> None:
    kubectl.found = [task(phase="Running", attempts=1, worker="q-worker-1")]
    kubectl.queue = queue
    assert main(["logs", "t"]) == 0
    assert kubectl.arguments == ["q-worker-1", *more]


def test_a_log_line_of_another_attempt_is_not_shown() -> None:
    line = {"event": "handler.output", "uid": "u", "attempt": 2, "time": "T", "level": "info"}
    text = json.dumps({**line, "text": "halfway\x1b[2J"})
    assert tasks._log_line(text, "u", 2, raw=False) == "T info    halfway\\x1b[2J"
    assert tasks._log_line(text, "u", 1, raw=False) is None
    assert tasks._log_line(text, "v", 2, raw=False) is None
    assert tasks._log_line("not JSON", "u", 2, raw=False) is None
    assert tasks._log_line("[1]", "u", 2, raw=False) is None


@pytest.mark.parametrize("phase", PHASES)
def test_every_task_can_be_shown(
    phase: str, kubectl: FakeKubectl, capsys: pytest.CaptureFixture[str]
) -> None:
    kubectl.found = [task(phase=phase), task("bare") | {"status": None}]
    assert main(["get", "-o", "wide"]) == 0
    assert main(["describe", "t"]) == 0
    shown = capsys.readouterr().out
    assert phase in shown
    assert "bare" in shown


def test_a_retry_from_all_namespaces_is_created_in_its_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """``kubectl create`` has no --all-namespaces."""
    program = tmp_path / "kubectl"
    listed = json.dumps({"kind": "List", "items": [task(phase="Failed", reason="OSError")]})
    program.write_text(
        f"#!{sys.executable}\nimport sys\n"
        f"open({str(tmp_path / 'asked')!r}, 'a').write(' '.join(sys.argv[1:]) + '\\n')\n"
        f"print({listed!r} if sys.argv[1] == 'get' else sys.stdin.read().replace("
        """'"generateName"', '"name"'))\n"""
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["retry", "-A", "--reason", "OSError"]) == 0
    listing, creating = (tmp_path / "asked").read_text().splitlines()
    assert "--all-namespaces" in listing
    assert creating.split()[:3] == ["create", "-n", "shop"]


def test_without_kubectl_it_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert main(["get"]) == 1
    assert "there is no kubectl in PATH" in capsys.readouterr().err
