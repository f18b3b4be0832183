"""The samples of examples/executors, served by a real worker as their manifests say."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from taskqueue.contract.command import WorkerCommand
from taskqueue.contract.outcome import EventKind
from taskqueue.model.command import CommandKind
from tests.integration.worker.harness import Harness
from tests.integration.worker.process import PATIENCE, ROOT

pytestmark = pytest.mark.broker

SAMPLES = ROOT / "examples" / "executors"


def manifest(name: str, file: str = "taskqueue.yaml") -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((SAMPLES / name / file).read_text())
    return loaded


def worker_arguments(name: str, **places: str) -> list[str]:
    """The arguments of the worker's container, with paths and ports of this machine."""
    container = manifest(name)["spec"]["workers"]["template"]["spec"]["containers"][0]
    worker, *rest = container["args"]
    arguments: list[str] = rest
    assert worker == "worker"
    for there, here in places.items():
        assert any(there in each for each in arguments)
        arguments = [each.replace(there, here) for each in arguments]
    return arguments


def task(name: str) -> tuple[str, dict[str, Any]]:
    spec = manifest(name, "task.yaml")["spec"]
    return spec["handler"], spec["payload"]


async def test_the_command(harness: Harness) -> None:
    arguments = worker_arguments("command", **{"/scripts": str(SAMPLES / "command")})
    worker = await harness.ready_worker(arguments=arguments, TASKQUEUE_KILL_GRACE_SECONDS="2")
    event = await harness.outcome(await harness.publish(*task("command")))
    assert (event.kind, event.result) == (EventKind.SUCCEEDED, {"words": 5})
    event = await harness.outcome(await harness.publish("count-words", {}))
    assert event.error is not None
    assert (event.error.type, event.error.retryable) == ("ExitCode", False)
    token = await harness.publish("count-words", {"text": "wait"})
    await worker.logged("handler.output", where=lambda line: "waiting" in line["text"])
    await harness.send_commands(WorkerCommand(CommandKind.CANCEL, token=token, uid="u"))
    assert (await harness.outcome(token)).kind is EventKind.CANCELLED
    await worker.logged("handler.output", where=lambda line: line["text"] == "cleaned up")
    token = await harness.publish("count-words", {"text": "wait"}, timeout_seconds=1)
    event = await harness.outcome(token)
    assert event.error is not None
    assert event.error.type == "Timeout"
    worker.terminate()
    assert await worker.ended() == 0
    await harness.until_ready(0)


@pytest.fixture
async def service(unused_tcp_port: int) -> AsyncIterator[int]:
    """The sample's second container."""
    container = manifest("http")["spec"]["workers"]["template"]["spec"]["initContainers"][0]
    assert container["command"] == ["python3", "/service/service.py", "8000"]
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(SAMPLES / "http" / "service.py"),
        str(unused_tcp_port),
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    await asyncio.wait_for(process.stdout.readline(), PATIENCE)
    yield unused_tcp_port
    process.kill()
    await process.wait()


async def test_the_service(harness: Harness, service: int) -> None:
    arguments = worker_arguments("http", **{":8000": f":{service}"})
    worker = await harness.ready_worker(arguments=arguments, slots=2)
    event = await harness.outcome(await harness.publish(*task("http")))
    assert event.result == {"greeting": "Hello, Ada!", "attempt": 1}
    event = await harness.outcome(await harness.publish("greet", {"name": "later"}))
    assert event.retry_after_seconds == 2
    token = await harness.publish("wait", {})
    await harness.outcome(token, EventKind.STARTED)
    await harness.send_commands(WorkerCommand(CommandKind.CANCEL, token=token, uid="u"))
    assert (await harness.outcome(token)).kind is EventKind.CANCELLED
    worker.terminate()
    assert await worker.ended() == 0
    await harness.until_ready(0)


async def test_wrong_options_end_it_with_a_line(harness: Harness) -> None:
    worker = await harness.start_worker(arguments=["--http", "a=http://example.com/"])
    assert await worker.ended() == 1
    assert any("--http-anywhere" in line.get("text", "") for line in worker.log)


def test_the_manifests_name_the_files_they_mount() -> None:
    for name in ("command", "http"):
        generated = manifest(name, "kustomization.yaml")["configMapGenerator"]
        files = {each["name"]: each["files"] for each in generated}
        spec = manifest(name)["spec"]["workers"]["template"]["spec"]
        mounted = [each["configMap"]["name"] for each in spec["volumes"] if "configMap" in each]
        assert mounted == list(files)
        for names in files.values():
            assert all(Path(SAMPLES / name / each).exists() for each in names)
