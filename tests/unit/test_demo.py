"""The demo's parts that need no cluster: its Tasks, its handler, its verdict, what it draws."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image
from rich.console import Console

from examples.thumbnails import contact_sheet, demo, photographs, thumbnails, verdict
from examples.thumbnails.display import describe, render
from examples.thumbnails.watching import Snapshot
from examples.thumbnails.work import (
    ICON,
    IMAGE,
    MAX_ATTEMPTS,
    MAX_WORKERS,
    NAMESPACE,
    PREVIEW,
    QUEUE,
    Job,
    jobs,
    to_yaml,
)
from taskqueue import Context, Fail
from taskqueue.api.task import TaskResource
from taskqueue.api.taskqueue import TaskQueueResource
from taskqueue.limits import RESULT_BYTES

LINE = jobs()
GOOD = LINE[0].name
BROKEN = next(job.name for job in LINE if job.broken)
T0 = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("photographs")
    photographs.copy_to(target)
    return target


@pytest.fixture
def run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, Any]], Any]:
    monkeypatch.setattr(thumbnails, "PHOTOGRAPHS", folder)
    context = Context(
        task="shop/a", uid="u", queue="q", attempt=1, max_attempts=3, timeout_seconds=30
    )
    return lambda payload: thumbnails.thumbnail(payload, context)


def payload(job: Job) -> dict[str, Any]:
    content: dict[str, Any] = job.task["spec"]["payload"]
    return content


class TestWork:
    def test_there_are_thirty_tasks_and_one_is_broken(self) -> None:
        assert len(LINE) >= 30
        assert len({job.name for job in LINE}) == len(LINE)
        assert [job.broken for job in LINE].count(True) == 1

    def test_the_yaml_holds_valid_tasks(self) -> None:
        bodies = list(yaml.safe_load_all(to_yaml(LINE)))
        assert [TaskResource.model_validate(body).metadata.name for body in bodies] == [
            job.name for job in LINE
        ]
        assert {body["spec"]["queue"] for body in bodies} == {QUEUE}
        assert {body["metadata"]["namespace"] for body in bodies} == {NAMESPACE}

    def test_the_queue_is_the_one_the_tasks_and_the_verdict_expect(self) -> None:
        body = yaml.safe_load((demo.HERE / "taskqueue.yaml").read_text())
        queue = TaskQueueResource.model_validate(body)
        assert (queue.metadata.namespace, queue.metadata.name) == (NAMESPACE, QUEUE)
        assert queue.spec.task_defaults.retry.max_attempts == MAX_ATTEMPTS
        assert queue.spec.scaling.max_replicas == MAX_WORKERS
        assert queue.spec.scaling.min_replicas == 0
        template = queue.spec.workers.template or {}
        assert template["spec"]["containers"][0]["image"] == IMAGE

    def test_the_pool_does_not_go_between_two_attempts_of_the_broken_one(self) -> None:
        spec = TaskQueueResource.model_validate(
            yaml.safe_load((demo.HERE / "taskqueue.yaml").read_text())
        ).spec
        backoff = spec.task_defaults.retry.backoff
        assert (backoff.factor, backoff.jitter) == (1, 0)
        assert backoff.initial_seconds < spec.scaling.idle_seconds_before_zero


class TestPhotographs:
    def test_all_but_one_can_be_decoded(self, folder: Path) -> None:
        assert {path.name for path in folder.iterdir()} == {*photographs.FILES, photographs.BROKEN}
        for name in photographs.FILES:
            with Image.open(folder / name) as image:
                image.load()
                assert min(image.size) > ICON.width, name

    def test_the_broken_one_looks_like_a_photograph_and_is_refused(self, folder: Path) -> None:
        with Image.open(folder / photographs.BROKEN) as image:
            assert image.format == "PNG"
            with pytest.raises(OSError, match="truncated"):
                image.load()

    def test_a_package_without_them_is_told(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(photographs, "folder", lambda: tmp_path)
        with pytest.raises(photographs.MissingPhotographs, match=r"no astronaut\.png"):
            photographs.copy_to(tmp_path / "target")


class TestHandler:
    # The one with most colours, the largest, the one that compresses worst, a flat one.
    @pytest.mark.parametrize(
        "file", ["astronaut.png", "retina.jpg", "gravel.png", "clock_motion.png"]
    )
    @pytest.mark.parametrize("variant", [PREVIEW, ICON], ids=lambda variant: variant.name)
    def test_the_result_is_a_small_thumbnail(
        self, run: Callable[[dict[str, Any]], Any], file: str, variant: Any
    ) -> None:
        result = run(payload(Job(file, variant)))
        assert len(json.dumps(result)) < RESULT_BYTES
        assert max(result["width"], result["height"]) == variant.width
        assert verdict.jpeg(finished_task(GOOD, result=result)) == base64.b64decode(result["jpeg"])
        assert all(len(colour) == 7 and colour[0] == "#" for colour in result["colours"])

    def test_the_broken_file_raises_an_error_that_names_it(
        self, run: Callable[[dict[str, Any]], Any]
    ) -> None:
        with pytest.raises(thumbnails.UnreadablePhotograph, match=photographs.BROKEN):
            run(payload(Job(photographs.BROKEN, PREVIEW)))

    @pytest.mark.parametrize("file", ["nothing.png", "../../etc/passwd", ""])
    def test_a_file_that_is_not_there_is_not_tried_again(
        self, run: Callable[[dict[str, Any]], Any], file: str
    ) -> None:
        with pytest.raises(Fail, match="no photograph"):
            run({"file": file, "width": 96, "shape": "fit"})

    def test_a_thumbnail_too_large_for_a_status_is_refused(
        self, run: Callable[[dict[str, Any]], Any]
    ) -> None:
        with pytest.raises(Fail, match="smaller width"):
            run({"file": "gravel.png", "width": 500, "shape": "fit"})


class TestVerdict:
    def test_all_well(self) -> None:
        assert verdict.problems(LINE, snapshot()) == []
        assert verdict.finished(LINE, snapshot())

    @pytest.mark.parametrize(
        ("name", "change", "complaint"),
        [
            (GOOD, {"phase": "Failed", "reason": "Boom"}, "Failed Boom"),
            (GOOD, {"phase": "Pending"}, "Pending"),
            (GOOD, {"attempts": 2}, "2 attempts"),
            (GOOD, {"conditions": []}, "condition Complete"),
            (GOOD, {"result": None}, "no result"),
            (GOOD, {"result": {"jpeg": "AAAA"}}, "no thumbnail"),
            (BROKEN, {"phase": "Succeeded", "reason": ""}, "Succeeded"),
            (BROKEN, {"phase": "Retrying", "reason": "UnreadablePhotograph"}, "Retrying"),
            (BROKEN, {"reason": "NonRetryable"}, "not Failed RetriesExhausted"),
            (BROKEN, {"attempts": 1}, "1 attempts"),
            (BROKEN, {"conditions": []}, "condition Failed"),
            (BROKEN, {"message": "something"}, "does not name"),
            (BROKEN, {"history": []}, "its history"),
            (BROKEN, {"result": {"a": 1}}, "has a result"),
        ],
    )
    def test_each_wrong_status_is_told(
        self, name: str, change: dict[str, Any], complaint: str
    ) -> None:
        whole = snapshot()
        body = whole.tasks[name].model_dump(by_alias=True)
        body["status"].update(change)
        changed = replace(whole, tasks={**whole.tasks, name: TaskResource.model_validate(body)})
        (problem,) = verdict.problems(LINE, changed)
        assert f"Task {name}" in problem
        assert complaint in problem

    def test_a_thumbnail_of_other_bytes_is_told(self) -> None:
        result = {**make_result(LINE[0]), "sha256": "0" * 64}
        (problem,) = verdict.problems(LINE, with_task(finished_task(GOOD, result=result)))
        assert "sha256" in problem

    def test_a_thumbnail_of_another_photograph_or_size_is_told(self) -> None:
        other = make_result(LINE[3])
        problems = verdict.problems(LINE, with_task(finished_task(GOOD, result=other)))
        assert len(problems) == 2

    def test_attempts_without_a_wait_or_of_another_error_are_told(self) -> None:
        hasty = broken_task(gap=0.1)
        assert "without a wait" in verdict.problems(LINE, with_task(hasty))[0]
        other = broken_task(error="WorkerLost")
        assert "Failed WorkerLost" in verdict.problems(LINE, with_task(other))[0]

    def test_a_missing_and_a_foreign_task_are_told(self) -> None:
        whole = snapshot()
        tasks = {name: task for name, task in whole.tasks.items() if name != GOOD}
        tasks["stranger"] = whole.tasks[GOOD]
        problems = verdict.problems(LINE, replace(whole, tasks=tasks))
        assert problems == [f"Task {GOOD} is not there", "Task stranger is none of the demo's"]

    @pytest.mark.parametrize("sizes", [(0,), (1, 0), (0, 3), (0, 6, 0)])
    def test_a_pool_that_did_not_come_and_go_is_told(self, sizes: tuple[int, ...]) -> None:
        (problem,) = verdict.problems(LINE, replace(snapshot(), pool_sizes=sizes))
        assert "the pool" in problem

    @pytest.mark.parametrize(
        "change",
        [
            {"replicas": 1},
            {"desiredReplicas": 1},
            {"backlog": 2},
            {"backlog": None},
            {"totals": {"succeeded": 1}},
            {"conditions": []},
        ],
    )
    def test_a_queue_that_says_otherwise_is_told(self, change: dict[str, Any]) -> None:
        (problem,) = verdict.problems(LINE, replace(snapshot(), queue=queue(**change)))
        assert "TaskQueue" in problem

    def test_it_is_not_over_before_everything_is(self) -> None:
        whole = snapshot()
        assert not verdict.finished(LINE, Snapshot())
        assert not verdict.finished(LINE, replace(whole, workers=1))
        assert not verdict.finished(LINE, replace(whole, pool_sizes=(0,)))
        assert not verdict.finished(LINE, replace(whole, queue=queue(desiredReplicas=1)))
        running = finished_task(GOOD, phase="Running")
        assert not verdict.finished(LINE, with_task(running))


class TestShowing:
    def test_one_line_says_how_it_stands(self) -> None:
        assert describe(LINE, Snapshot()) == "workers 0/0 of ? | backlog ? | no Task yet"
        assert describe(LINE, replace(snapshot(), ready_workers=1, workers=2)) == (
            "workers 1/2 of 0 | backlog 0 | 36 Succeeded, 1 Failed | "
            "broken: Failed 3/3 RetriesExhausted"
        )

    @pytest.mark.parametrize("width", [60, 120])
    def test_the_panel_shows_the_retries(self, width: int) -> None:
        retrying = broken_task(phase="Retrying", attempts=1, next_attempt=T0 + timedelta(seconds=2))
        out = io.StringIO()
        console = Console(file=out, width=width, height=40)
        console.print(render(LINE, Snapshot(), curve=[], now=T0))
        console.print(render(LINE, with_task(retrying), curve=[0, 5], now=T0))
        assert "attempt 2 in 2.0 s" in out.getvalue()
        assert max(map(len, out.getvalue().splitlines())) <= width

    def test_the_sheet_holds_every_photograph_and_the_error(self, tmp_path: Path) -> None:
        path = tmp_path / "sheet.png"
        result = make_result(Job("coffee.png", PREVIEW))
        jpeg = base64.b64decode(result["jpeg"])
        entries = [contact_sheet.Entry("coffee.png", jpeg, jpeg, result)] * 6
        entries.append(contact_sheet.Entry("cut.png", error="Failed"))
        contact_sheet.save(entries, path, subtitle="seven")
        with Image.open(path) as sheet:
            assert sheet.format == "PNG"
            assert len(sheet.getcolors(maxcolors=1 << 24) or ()) > 100


def test_the_worker_image_holds_what_the_handler_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheels = tmp_path / "downloaded"
    wheels.mkdir()
    built: list[tuple[str, Path, Path]] = []
    monkeypatch.setattr(demo, "OUTPUT", tmp_path)
    monkeypatch.setattr(demo, "download_wheels", lambda _: wheels)
    monkeypatch.setattr(demo, "build_image", lambda *arguments: built.append(arguments))
    demo.build_worker_image()
    demo.build_worker_image()
    context = tmp_path / "image"
    assert built == [(IMAGE, demo.HERE / "Containerfile", context)] * 2
    assert (context / "photographs" / photographs.BROKEN).is_file()
    assert (context / "handlers" / "thumbnails.py").is_file()
    shutil.rmtree(context)


def make_result(job: Job) -> dict[str, Any]:
    width = job.variant.width
    buffer = io.BytesIO()
    Image.linear_gradient("L").resize((width, width)).save(buffer, "JPEG")
    data = buffer.getvalue()
    return {
        "file": job.file,
        "width": width,
        "height": width,
        "original": {"width": 2 * width, "height": 2 * width},
        "colours": ["#102030", "#ffffff"],
        "quality": 75,
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "seconds": 0.1,
        "jpeg": base64.b64encode(data).decode(),
    }


def condition(kind: str) -> dict[str, Any]:
    return {"type": kind, "status": "True", "lastTransitionTime": T0, "reason": kind}


def make_task(name: str, status: dict[str, Any]) -> TaskResource:
    spec = next(job.task for job in LINE if job.name == name)["spec"]
    return TaskResource.model_validate({"metadata": {"name": name}, "spec": spec, "status": status})


def finished_task(
    name: str, *, result: dict[str, Any] | None = None, phase: str = "Succeeded"
) -> TaskResource:
    job = next(job for job in LINE if job.name == name)
    return make_task(
        name,
        {
            "phase": phase,
            "attempts": 1,
            "completionTime": T0,
            "conditions": [condition("Finished"), condition("Complete")],
            "result": result or make_result(job),
        },
    )


def broken_task(
    *,
    phase: str = "Failed",
    attempts: int = MAX_ATTEMPTS,
    gap: float = 3.0,
    error: str = "UnreadablePhotograph",
    next_attempt: datetime | None = None,
) -> TaskResource:
    message = f"{photographs.BROKEN}: image file is truncated"
    history = [
        {
            "attempt": number,
            "outcome": "Failed",
            "reason": error,
            "message": message,
            "startTime": T0 + timedelta(seconds=gap * number),
            "finishTime": T0 + timedelta(seconds=gap * number),
        }
        for number in range(1, attempts + 1)
    ]
    return make_task(
        BROKEN,
        {
            "phase": phase,
            "reason": "RetriesExhausted" if phase == "Failed" else error,
            "message": f"attempt {attempts} of {MAX_ATTEMPTS}: {error}: {message}",
            "attempts": attempts,
            "history": history,
            "nextAttemptTime": next_attempt,
            "completionTime": T0 if phase == "Failed" else None,
            "conditions": [condition("Finished"), condition("Failed")],
        },
    )


def queue(**change: Any) -> TaskQueueResource:
    body = yaml.safe_load((demo.HERE / "taskqueue.yaml").read_text())
    body["status"] = {
        "backlog": 0,
        "replicas": 0,
        "desiredReplicas": 0,
        "totals": {"succeeded": len(LINE) - 1, "failed": 1},
        "conditions": [condition("Ready")],
        **change,
    }
    return TaskQueueResource.model_validate(body)


def snapshot() -> Snapshot:
    tasks = {job.name: finished_task(job.name) for job in LINE if not job.broken}
    return Snapshot(queue(), {**tasks, BROKEN: broken_task()}, pool_sizes=(0, 2, 5, 1, 0))


def with_task(task: TaskResource) -> Snapshot:
    whole = snapshot()
    return replace(whole, tasks={**whole.tasks, task.metadata.name: task})
