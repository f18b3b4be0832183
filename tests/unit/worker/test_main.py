"""What keeps a worker from starting, and its error texts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from taskqueue.worker import loading, main
from taskqueue.worker.loading import StartError, load
from taskqueue.worker.sdk import HandlerRegistry, decorators


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(tmp_path)
    fresh = HandlerRegistry()
    monkeypatch.setattr(main, "registry", fresh)
    monkeypatch.setattr(loading, "registry", fresh)
    monkeypatch.setattr(decorators, "registry", fresh)
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    return tmp_path


def test_a_missing_module(folder: Path) -> None:
    with pytest.raises(StartError, match=r"no module 'nowhere\.at_all'.*PYTHONPATH"):
        load(["nowhere.at_all"])


def test_a_module_that_misses_another_is_not_called_missing_itself(folder: Path) -> None:
    (folder / "broken.py").write_text("import nowhere\n")
    with pytest.raises(StartError, match=r"'broken' fails when it is imported.*nowhere") as raised:
        load(["broken"])
    assert "line 1" in str(raised.value)


def test_a_module_that_raises(folder: Path) -> None:
    (folder / "broken.py").write_text("1 / 0\n")
    with pytest.raises(StartError, match="ZeroDivisionError"):
        load(["broken"])


def test_a_module_without_handlers(folder: Path) -> None:
    (folder / "empty.py").write_text("")
    with pytest.raises(StartError, match="no handler is registered by empty: mark functions"):
        load(["empty"])


def test_a_payload_that_cannot_be_checked(folder: Path) -> None:
    (folder / "shop.py").write_text(
        "from taskqueue import task\n@task\ndef pack(order: 'Ordre'): ...\n"
    )
    with pytest.raises(StartError, match="'pack': the annotation 'Ordre' of its payload"):
        load(["shop"])


def test_settings_that_are_missing_end_it_with_one_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main.main(["anything"], {}) == 1
    assert capsys.readouterr().err == (
        "taskqueue worker: TASKQUEUE_NAMESPACE is not set: give the namespace of the TaskQueue\n"
    )


def start(folder: Path, module: str, **environment: str) -> subprocess.Popen[str]:
    """Start a worker for a module's text; its broker refuses connections."""
    (folder / "signalled.py").write_text(f"from taskqueue import on_start, on_stop, task\n{module}")
    return subprocess.Popen(
        [sys.executable, "-m", "taskqueue", "worker", "signalled"],
        cwd=folder,
        env={
            **os.environ,
            "TASKQUEUE_NAMESPACE": "shop",
            "TASKQUEUE_QUEUE": "q",
            "TASKQUEUE_BROKER_URI": "amqp://u:p@127.0.0.1:1/",
            "TASKQUEUE_HEALTH_PORT": "0",
            "TASKQUEUE_GRACE_SECONDS": "0",
            **environment,
        },
        stderr=subprocess.PIPE,
        text=True,
    )


REACHED = "import pathlib, time\npathlib.Path('reached').touch()\n"
FOREVER = "time.sleep(600)\n"
HANDLER = "@task\ndef f(payload): ...\n"
ASYNC_HANDLER = "@task\nasync def f(payload): ...\n"


@pytest.mark.skipif(sys.platform != "linux", reason="children need Linux")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(
    "module",
    [
        REACHED + FOREVER + HANDLER,
        HANDLER + f"@on_start\ndef begin():\n    {REACHED.replace(chr(10), '; ')}{FOREVER}",
        ASYNC_HANDLER + f"@on_start\ndef begin():\n    {REACHED.replace(chr(10), '; ')}{FOREVER}",
        HANDLER + f"@on_start\ndef begin():\n    {REACHED.replace(chr(10), '; ')}1 / 0\n",
        HANDLER + f"@on_start\ndef begin():\n    {REACHED.replace(chr(10), '; ')}\n",
    ],
    ids=["import", "hook-in-child", "hook-in-worker", "failing-hook", "broker"],
)
def test_a_signal_ends_it_in_order_from_the_first_moment(
    module: str, number: signal.Signals, tmp_path: Path
) -> None:
    worker = start(tmp_path, module)
    try:
        while not (tmp_path / "reached").exists():
            assert worker.poll() is None
            time.sleep(0.01)
        worker.send_signal(number)
        _, errors = worker.communicate(timeout=60)
    finally:
        worker.kill()
    assert worker.returncode == 0, errors


def test_a_stop_hook_that_hangs_does_not_keep_it(tmp_path: Path) -> None:
    module = ASYNC_HANDLER + REACHED + f"@on_stop\ndef end():\n    {FOREVER}"
    worker = start(tmp_path, module)
    try:
        while "worker.started" not in (worker.stderr.readline() if worker.stderr else ""):
            assert worker.poll() is None
        worker.send_signal(signal.SIGTERM)
        _, errors = worker.communicate(timeout=60)
    finally:
        worker.kill()
    assert worker.returncode == main.EXIT_FORCED
    assert "worker.end_forced" in errors
