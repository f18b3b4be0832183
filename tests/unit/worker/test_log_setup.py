"""What an application sets up for logging is kept, and the worker's events come all the same."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

OWN = """
from taskqueue.logs import EventLog, LogFormat
from taskqueue.worker import log_setup
own = EventLog("taskqueue.worker")
log_setup.begin()
"""

SPEAK = """
log_setup.install(LogFormat.JSON, level="INFO")
own.info("task.started", task="a")
own.debug("task.debugged")
logging.getLogger("shop").info("spoken")
logging.getLogger("shop").warning("shouted")
"""


def lines_of(application: str, folder: Path, after: str = SPEAK) -> list[str]:
    """Run a program that sets up logging like an application, and return what it writes."""
    done = subprocess.run(
        [sys.executable, "-c", f"import logging, logging.config, sys\n{OWN}{application}{after}"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=True,
    )
    return done.stdout.splitlines()


def events(lines: list[str]) -> list[str]:
    """Those in the worker's form, by their words."""
    return [json.loads(line)["event"] for line in lines if line.startswith("{")]


def test_an_application_without_a_set_up_has_its_lines_in_the_workers_form(tmp_path: Path) -> None:
    lines = lines_of("", tmp_path)
    assert events(lines) == ["task.started", "spoken", "shouted"]
    assert len(lines) == 3


@pytest.mark.parametrize("stream", ["sys.stderr", "sys.stdout", "open('/dev/stderr', 'w')"])
def test_lines_of_its_own_handler_are_not_written_twice(stream: str, tmp_path: Path) -> None:
    setup = f"logging.basicConfig(level='INFO', format='MINE %(message)s', stream={stream})\n"
    lines = lines_of(setup, tmp_path)
    assert [line for line in lines if "MINE" in line] == ["MINE spoken", "MINE shouted"]
    assert events(lines) == ["task.started"]


def test_a_level_that_it_leaves_as_python_has_it_is_its_own_where_it_writes(tmp_path: Path) -> None:
    lines = lines_of("logging.basicConfig(format='MINE %(message)s')\n", tmp_path)
    assert sorted(lines[-1:] + events(lines)) == ["MINE shouted", "task.started"]


@pytest.mark.parametrize("name", ["", "shop"])
def test_a_level_that_it_sets_is_kept(name: str, tmp_path: Path) -> None:
    lines = lines_of(f"logging.getLogger({name!r}).setLevel('WARNING')\n", tmp_path)
    assert events(lines) == ["task.started", "shouted"]


def test_a_logger_with_a_handler_of_its_own_is_not_written_twice(tmp_path: Path) -> None:
    setup = "logging.getLogger('shop').addHandler(logging.StreamHandler())\n"
    lines = lines_of(setup, tmp_path)
    assert lines[1:] == ["spoken", "shouted"]
    assert events(lines) == ["task.started"]


def test_a_handler_that_writes_elsewhere_is_kept_and_gets_the_workers_events(
    tmp_path: Path,
) -> None:
    lines = lines_of("logging.getLogger().addHandler(logging.FileHandler('log'))\n", tmp_path)
    assert events(lines) == ["task.started", "spoken", "shouted"]
    assert (tmp_path / "log").read_text() == "task.started\nspoken\nshouted\n"


DICT = """
logging.config.dictConfig({
    "version": 1,
    "formatters": {"mine": {"format": "MINE %(message)s"}},
    "handlers": {"out": {"class": "logging.StreamHandler", "formatter": "mine"}},
    "root": {"level": "INFO", "handlers": ["out"]},
})
"""


def test_a_set_up_that_disables_existing_loggers_does_not_disable_the_workers(
    tmp_path: Path,
) -> None:
    lines = lines_of(DICT, tmp_path)
    assert [line for line in lines if "MINE" in line] == ["MINE spoken", "MINE shouted"]
    assert events(lines) == ["task.started"]


@pytest.mark.parametrize(
    "setup", [DICT, "logging.basicConfig(force=True, format='MINE %(message)s')\n"]
)
def test_what_a_later_set_up_takes_from_the_worker_is_put_back(setup: str, tmp_path: Path) -> None:
    later = f"log_setup.install(LogFormat.JSON)\n{setup}\nlog_setup.ensure()\nown.info('a.done')\n"
    assert events(lines_of("", tmp_path, later)) == ["a.done"]


HANDLER = "from taskqueue import on_start, task\n@task\ndef f(payload): ...\n"
SETUP = "logging.basicConfig(level='INFO', format='MINE %(message)s')\n"
SPOKEN = "logging.getLogger('shop').info('spoken'); print('printed', flush=True)"


@pytest.mark.skipif(sys.platform != "linux", reason="children need Linux")
@pytest.mark.parametrize("log_format", ["json", "text"])
@pytest.mark.parametrize("where", ["at import", "in a start hook"])
def test_the_same_holds_in_a_child(where: str, log_format: str, tmp_path: Path) -> None:
    first = SETUP if where == "at import" else ""
    hook = "" if first else "\n@on_start\ndef set_up(): " + SETUP.replace(")\n", ", force=True)\n")
    speak = f"\n@on_start\ndef speak():\n    {SPOKEN}\n"
    # What the first hooks set up is looked at when the last has run.
    late = "import threading\nthreading.Timer(1, lambda: logging.getLogger('shop').info('late'))"
    module = (
        f"import logging\n{first}{HANDLER}{hook}{speak}    {late.replace(chr(10), '; ')}.start()\n"
    )
    (tmp_path / "shop_logs.py").write_text(module)
    worker = subprocess.Popen(
        [sys.executable, "-m", "taskqueue", "worker", "shop_logs"],
        cwd=tmp_path,
        env={
            **os.environ,
            "TASKQUEUE_NAMESPACE": "shop",
            "TASKQUEUE_QUEUE": "q",
            "TASKQUEUE_BROKER_URI": "amqp://u:p@127.0.0.1:1/",
            "TASKQUEUE_HEALTH_PORT": "0",
            "TASKQUEUE_GRACE_SECONDS": "0",
            "TASKQUEUE_LOG_FORMAT": log_format,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        assert worker.stdout is not None
        lines = []
        for line in worker.stdout:
            lines.append(line.rstrip("\n"))
            if "late" in line:
                break
        worker.send_signal(signal.SIGTERM)
        lines += worker.communicate(timeout=60)[0].splitlines()
    finally:
        worker.kill()
    assert lines.count("MINE late") == 1
    assert not [line for line in lines if "late" in line and line != "MINE late"]
    assert any("worker.started" in line and "MINE" not in line for line in lines)
    if first:
        assert lines.count("MINE spoken") == 1
        assert len([line for line in lines if "spoken" in line]) == 1
    captured = [line for line in lines if "printed" in line]
    assert ("handler.output" in captured[0]) == (log_format == "json")
