"""The environment table: every variable, its default, and what is said when it is wrong."""

from __future__ import annotations

import socket

import pytest

from taskqueue.logs import LogFormat
from taskqueue.worker import settings as module
from taskqueue.worker.settings import HandlerExecutor, SettingsError, WorkerSettings

LEAST = {
    "TASKQUEUE_NAMESPACE": "shop",
    "TASKQUEUE_QUEUE": "thumbnails",
    "TASKQUEUE_BROKER_URI": "amqp://me:secret@rabbit/tasks",
}


def test_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "available_cpus", lambda: 6)
    settings = WorkerSettings.from_environment(LEAST)
    assert (settings.namespace, settings.queue) == ("shop", "thumbnails")
    assert settings.broker.address == "rabbit:5672/tasks"
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
    broker = settings.broker
    assert broker.address == "rabbit:5673/v"
    assert (broker.username, broker.password) == ("me", "secret")
    assert (broker.ca_certificate, broker.client_certificate, broker.client_key) == (
        "ca",
        "cert",
        "key",
    )
    assert broker.tls
    assert (settings.slots, settings.pod, settings.grace_seconds) == (7, "pod-1", 0.5)
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
        ({"TASKQUEUE_HEALTH_PORT": "70000"}, "TASKQUEUE_HEALTH_PORT"),
        ({"TASKQUEUE_LOG_FORMAT": "xml"}, "TASKQUEUE_LOG_FORMAT is 'xml': give json or text"),
        ({"TASKQUEUE_LOG_LEVEL": "loud"}, "TASKQUEUE_LOG_LEVEL is 'LOUD'"),
        ({"TASKQUEUE_ATTEMPT_TIMEOUT_SECONDS": "0"}, "TASKQUEUE_ATTEMPT_TIMEOUT_SECONDS"),
        ({"TASKQUEUE_MAX_DELIVERIES": "0"}, "TASKQUEUE_MAX_DELIVERIES"),
        ({"TASKQUEUE_EXECUTOR": "fiber"}, "TASKQUEUE_EXECUTOR is 'fiber': give process or thread"),
        ({"TASKQUEUE_KILL_GRACE_SECONDS": "-1"}, "TASKQUEUE_KILL_GRACE_SECONDS"),
        ({"TASKQUEUE_CHILD_MEMORY_MIB": "1G"}, "TASKQUEUE_CHILD_MEMORY_MIB is '1G'"),
    ],
)
def test_an_error_names_the_variable(change: dict[str, str], message: str) -> None:
    with pytest.raises(SettingsError) as told:
        WorkerSettings.from_environment({**LEAST, **change})
    assert message in str(told.value)
    assert "secret" not in str(told.value)


def test_the_password_is_not_shown() -> None:
    assert "secret" not in repr(WorkerSettings.from_environment(LEAST))
