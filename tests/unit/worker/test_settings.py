"""The worker's settings: every variable, its default, its errors and its documentation."""

from __future__ import annotations

import socket
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from taskqueue.logs import LogFormat
from taskqueue.model.broker_environment import BROKER_DIRECTORY_VARIABLE, BROKER_VARIABLES
from taskqueue.worker import settings as module
from taskqueue.worker.settings import HandlerExecutor, WorkerSettings, variables_of
from taskqueue.worker.settings_table import rows, with_table
from taskqueue.worker.variables import SettingsError

PAGE = Path(__file__).parents[3] / "docs" / "workers.md"

LEAST = {
    "TASKQUEUE_NAMESPACE": "shop",
    "TASKQUEUE_QUEUE": "thumbnails",
    "TASKQUEUE_BROKER_URI": "amqp://me:secret@rabbit/tasks",
}


def test_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "available_cpus", lambda: 6)
    settings = WorkerSettings.from_environment(LEAST)
    assert (settings.namespace, settings.queue) == ("shop", "thumbnails")
    assert settings.broker.read().address == "rabbit:5672/tasks"
    assert settings.pod == socket.gethostname()
    assert settings.slots == 6
    assert (settings.grace_seconds, settings.drained_seconds) == (25, 60)
    assert settings.health_port == 8081
    assert (settings.log_format, settings.log_level) == (None, "INFO")
    assert settings.direct_timeout_seconds == 300
    assert settings.direct_max_deliveries == 3
    assert settings.executor is HandlerExecutor.PROCESS
    assert settings.kill_grace_seconds == 5
    assert (settings.child_memory_mib, settings.child_max_tasks, settings.child_max_mib) == (
        0,
        0,
        0,
    )


def test_every_variable_is_read() -> None:
    settings = WorkerSettings.from_environment(
        {
            **LEAST,
            "TASKQUEUE_BROKER_URI": "",
            "TASKQUEUE_BROKER_HOST": "rabbit",
            "TASKQUEUE_BROKER_PORT": "5673",
            "TASKQUEUE_BROKER_USERNAME": "me",
            "TASKQUEUE_BROKER_PASSWORD": "secret",
            "TASKQUEUE_BROKER_VHOST": "v",
            "TASKQUEUE_BROKER_CA_CERT": "ca",
            "TASKQUEUE_BROKER_TLS_CERT": "cert",
            "TASKQUEUE_BROKER_TLS_KEY": "key",
            "TASKQUEUE_CONCURRENCY": "7",
            "POD_NAME": "pod-1",
            "TASKQUEUE_INSTALLATION": "team-a",
            "TASKQUEUE_GRACE_SECONDS": "0.5",
            "TASKQUEUE_DRAINED_SECONDS": "1.5",
            "TASKQUEUE_HEALTH_PORT": "0",
            "TASKQUEUE_LOG_FORMAT": "text",
            "TASKQUEUE_LOG_LEVEL": "debug",
            "TASKQUEUE_ATTEMPT_TIMEOUT_SECONDS": "9",
            "TASKQUEUE_MAX_DELIVERIES": "5",
            "TASKQUEUE_EXECUTOR": "Thread",
            "TASKQUEUE_KILL_GRACE_SECONDS": "1.5",
            "TASKQUEUE_CHILD_MEMORY_MIB": "512",
            "TASKQUEUE_CHILD_MAX_TASKS": "100",
            "TASKQUEUE_CHILD_MAX_MIB": "400",
        }
    )
    broker = settings.broker.read()
    assert broker.address == "rabbit:5673/v"
    assert (broker.username, broker.password) == ("me", "secret")
    assert (broker.ca_certificate, broker.client_certificate, broker.client_key) == (
        "ca",
        "cert",
        "key",
    )
    assert broker.tls
    assert (settings.slots, settings.pod, settings.grace_seconds) == (7, "pod-1", 0.5)
    assert settings.installation == "team-a"
    assert (settings.health_port, settings.log_format) == (0, LogFormat.TEXT)
    assert settings.log_level == "DEBUG"
    assert (settings.direct_timeout_seconds, settings.direct_max_deliveries) == (9, 5)
    assert (settings.executor, settings.kill_grace_seconds) == (HandlerExecutor.THREAD, 1.5)
    assert settings.child_memory_mib == 512
    assert (settings.child_max_tasks, settings.child_max_mib) == (100, 400)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"TASKQUEUE_NAMESPACE": ""}, "TASKQUEUE_NAMESPACE is not set"),
        ({"TASKQUEUE_QUEUE": ""}, "TASKQUEUE_QUEUE is not set"),
        ({"TASKQUEUE_BROKER_URI": ""}, "neither TASKQUEUE_BROKER_URI nor TASKQUEUE_BROKER_HOST"),
        ({"TASKQUEUE_BROKER_URI": "http://x"}, "TASKQUEUE_BROKER_URI must begin with amqp://"),
        (
            {"TASKQUEUE_BROKER_URI": "", "TASKQUEUE_BROKER_HOST": "rabbit"},
            "TASKQUEUE_BROKER_USERNAME is missing",
        ),
        ({"TASKQUEUE_BROKER_TLS_CERT": "cert"}, "TASKQUEUE_BROKER_TLS_KEY is missing"),
        ({"TASKQUEUE_CONCURRENCY": "0"}, "TASKQUEUE_CONCURRENCY is '0': give a whole number"),
        ({"TASKQUEUE_CONCURRENCY": "two"}, "TASKQUEUE_CONCURRENCY is 'two'"),
        ({"TASKQUEUE_CONCURRENCY": "1.5"}, "TASKQUEUE_CONCURRENCY is '1.5'"),
        ({"TASKQUEUE_GRACE_SECONDS": "-1"}, "TASKQUEUE_GRACE_SECONDS is '-1': give a number"),
        ({"TASKQUEUE_GRACE_SECONDS": "nan"}, "TASKQUEUE_GRACE_SECONDS"),
        ({"TASKQUEUE_HEALTH_PORT": "70000"}, "give a whole number from 0 to 65535"),
        ({"TASKQUEUE_LOG_FORMAT": "xml"}, "TASKQUEUE_LOG_FORMAT is 'xml': give json or text"),
        ({"TASKQUEUE_LOG_LEVEL": "loud"}, "TASKQUEUE_LOG_LEVEL is 'loud': give one of DEBUG,"),
        ({"TASKQUEUE_ATTEMPT_TIMEOUT_SECONDS": "0"}, "is '0': give a number from 0.1"),
        ({"TASKQUEUE_MAX_DELIVERIES": "0"}, "TASKQUEUE_MAX_DELIVERIES"),
        ({"TASKQUEUE_EXECUTOR": "fiber"}, "TASKQUEUE_EXECUTOR is 'fiber': give process or thread"),
        ({"TASKQUEUE_KILL_GRACE_SECONDS": "-1"}, "TASKQUEUE_KILL_GRACE_SECONDS"),
        ({"TASKQUEUE_CHILD_MEMORY_MIB": "1G"}, "TASKQUEUE_CHILD_MEMORY_MIB is '1G'"),
    ],
)
def test_an_error_names_the_variable(change: dict[str, str], message: str) -> None:
    with pytest.raises(SettingsError) as raised:
        WorkerSettings.from_environment({**LEAST, **change})
    assert message in str(raised.value)
    assert "secret" not in str(raised.value)


def test_the_password_is_not_shown() -> None:
    assert "secret" not in repr(WorkerSettings.from_environment(LEAST))


def test_every_broker_variable_of_the_contract_is_declared() -> None:
    (broker,) = [each for each in fields(WorkerSettings) if each.name == "broker"]
    names = [*BROKER_VARIABLES, BROKER_DIRECTORY_VARIABLE]
    assert [variable.name for variable in variables_of(broker)] == names


def test_a_worker_starts_with_what_its_files_say(tmp_path: Path) -> None:
    (tmp_path / "uri").write_text("amqp://you:new@rabbit/tasks")
    known = WorkerSettings.from_environment({**LEAST, BROKER_DIRECTORY_VARIABLE: str(tmp_path)})
    assert known.broker.read().password == "new"
    (tmp_path / "uri").write_text("http://you:new@rabbit")
    with pytest.raises(SettingsError, match="key uri must begin with amqp://") as raised:
        WorkerSettings.from_environment({**LEAST, BROKER_DIRECTORY_VARIABLE: str(tmp_path)})
    assert str(tmp_path) in str(raised.value)


def test_the_table_shows_defaults_with_their_units() -> None:
    defaults = {name: default for name, _, default in rows()}
    assert defaults["TASKQUEUE_QUEUE"] == "required"
    assert defaults["TASKQUEUE_GRACE_SECONDS"] == "25 s"
    assert defaults["TASKQUEUE_CHILD_MEMORY_MIB"] == "0 MiB: no limit"
    assert defaults["TASKQUEUE_HEALTH_PORT"] == "8081"
    assert defaults["TASKQUEUE_LOG_LEVEL"] == "`INFO`"


def test_the_table_in_the_documentation_is_the_declared_one() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page == with_table(page), "run: make settings"


def test_reading_settings_imports_nothing_slow() -> None:
    slow = {"argparse", "asyncio", "pydantic"}
    code = f"import sys, taskqueue.worker.settings; print({slow!r} & set(sys.modules))"
    run = [sys.executable, "-c", code]
    loaded = subprocess.run(
        run,
        check=True,
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(PAGE.parents[1] / "operator")},
    ).stdout
    assert loaded.strip() == "set()"
