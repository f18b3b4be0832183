"""The worker's settings, read once from environment variables.

The operator's Deployment sets them; by hand they work the same. Each error names the variable and
says what it should be. No other module of the worker reads the environment.
"""

from __future__ import annotations

import re
import socket
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeVar

from taskqueue.amqp.parameters import BrokerConfigurationError, BrokerParameters
from taskqueue.limits import DEFAULT_ATTEMPT_SECONDS, DEFAULT_DELIVERIES, DRAINED_SECONDS
from taskqueue.logs import LogFormat
from taskqueue.model.worker_environment import BROKER_VARIABLES
from taskqueue.worker.cpus import available_cpus

N = TypeVar("N", int, float)

_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")


class HandlerExecutor(StrEnum):
    """Where a sync handler runs."""

    PROCESS = "process"
    THREAD = "thread"

    @classmethod
    def default(cls) -> HandlerExecutor:
        """Return PROCESS where there are the means for it, which is on Linux."""
        return cls.PROCESS if sys.platform == "linux" else cls.THREAD


#: For the help of the command line: every variable that is read, and what it means.
VARIABLES = {
    "TASKQUEUE_NAMESPACE": "namespace of the TaskQueue; required",
    "TASKQUEUE_QUEUE": "name of the TaskQueue; required",
    "TASKQUEUE_BROKER_URI": "amqp://user:password@host/vhost; or _HOST, _PORT, _USERNAME, "
    "_PASSWORD, _VHOST, _TLS, _CA_CERT, _TLS_CERT, _TLS_KEY",
    "TASKQUEUE_CONCURRENCY": "slots: attempts run at once; the CPUs of the container",
    "TASKQUEUE_EXECUTOR": "where sync handlers run: process (default) or thread",
    "TASKQUEUE_KILL_GRACE_SECONDS": "between SIGTERM and SIGKILL of an attempt; 5",
    "TASKQUEUE_CHILD_MEMORY_MIB": "an attempt whose process holds more is killed; no limit",
    "TASKQUEUE_CHILD_MAX_TASKS": "attempts after which a child process is replaced; never",
    "TASKQUEUE_CHILD_MAX_MIB": "a child process that holds more after an attempt is replaced; "
    "never",
    "TASKQUEUE_GRACE_SECONDS": "how long attempts may go on after SIGTERM to the worker; 25",
    "TASKQUEUE_DRAINED_SECONDS": "how long a drained worker waits for SIGTERM before it ends; 60",
    "TASKQUEUE_ATTEMPT_TIMEOUT_SECONDS": "time-out of messages without a Task; 300",
    "TASKQUEUE_MAX_DELIVERIES": "attempts of messages without a Task; 3",
    "TASKQUEUE_HEALTH_PORT": "serves /healthz and /readyz; 8081, 0: none",
    "TASKQUEUE_LOG_FORMAT": "json or text; text on a terminal",
    "TASKQUEUE_LOG_LEVEL": "DEBUG, INFO, WARNING, ERROR; INFO",
    "POD_NAME": "what outcomes call this worker; the host name",
    "NODE_NAME": "of the pod",
}


class SettingsError(ValueError):
    """A variable is missing or wrong; the text names it and says what it should be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSettings:
    """What a worker needs to know."""

    namespace: str
    """TASKQUEUE_NAMESPACE: namespace of the TaskQueue."""

    queue: str
    """TASKQUEUE_QUEUE: name of the TaskQueue."""

    broker: BrokerParameters
    """TASKQUEUE_BROKER_URI, or _HOST, _PORT, _USERNAME, _PASSWORD, _VHOST and the TLS texts."""

    pod: str
    """POD_NAME: what outcomes call this worker; the host name by default."""

    node: str = ""
    """NODE_NAME: of the pod."""

    slots: int
    """TASKQUEUE_CONCURRENCY: attempts run at once; by default the CPUs of the container."""

    grace_seconds: float = 25.0
    """TASKQUEUE_GRACE_SECONDS: how long running attempts may go on after SIGTERM."""

    drained_seconds: float = DRAINED_SECONDS
    """TASKQUEUE_DRAINED_SECONDS: how long a worker drained on order waits for its SIGTERM before it
    ends by itself."""

    health_port: int = 8081
    """TASKQUEUE_HEALTH_PORT: where /healthz and /readyz are served; 0: nowhere."""

    log_format: LogFormat | None = None
    """TASKQUEUE_LOG_FORMAT: json or text; by default text on a terminal, else json."""

    log_level: str = "INFO"
    """TASKQUEUE_LOG_LEVEL: DEBUG, INFO, WARNING or ERROR."""

    executor: HandlerExecutor = field(default_factory=lambda: HandlerExecutor.default())
    """TASKQUEUE_EXECUTOR: where sync handlers run that say nothing else: process or thread."""

    kill_grace_seconds: float = 5.0
    """TASKQUEUE_KILL_GRACE_SECONDS: between SIGTERM and SIGKILL of an attempt that is to end."""

    child_memory_mib: int = 0
    """TASKQUEUE_CHILD_MEMORY_MIB: an attempt in a child process that holds more is killed; 0: no
    limit. A handler's own ``memory_mib`` goes before."""

    child_max_tasks: int = 0
    """TASKQUEUE_CHILD_MAX_TASKS: attempts after which a child process is replaced; 0: never."""

    child_max_mib: int = 0
    """TASKQUEUE_CHILD_MAX_MIB: a child process that holds more after an attempt is replaced; 0:
    never."""

    direct_timeout_seconds: float = DEFAULT_ATTEMPT_SECONDS
    """TASKQUEUE_ATTEMPT_TIMEOUT_SECONDS: time-out of a direct message; a Task brings its own."""

    direct_max_deliveries: int = DEFAULT_DELIVERIES
    """TASKQUEUE_MAX_DELIVERIES: attempts of a direct message; a Task brings its own."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> WorkerSettings:
        """Read the variables; an empty one counts as not set.

        Raises:
            SettingsError: one is missing or wrong.
        """
        values = {name: value for name, value in environment.items() if value != ""}
        return cls(
            namespace=_required(values, "TASKQUEUE_NAMESPACE", "the namespace of the TaskQueue"),
            queue=_required(values, "TASKQUEUE_QUEUE", "the name of the TaskQueue"),
            broker=_broker(values),
            pod=values.get("POD_NAME") or socket.gethostname(),
            node=values.get("NODE_NAME", ""),
            slots=_number(values, "TASKQUEUE_CONCURRENCY", int, available_cpus, lowest=1),
            grace_seconds=_number(values, "TASKQUEUE_GRACE_SECONDS", float, lambda: 25.0),
            drained_seconds=_number(
                values, "TASKQUEUE_DRAINED_SECONDS", float, lambda: DRAINED_SECONDS
            ),
            health_port=_number(values, "TASKQUEUE_HEALTH_PORT", int, lambda: 8081, highest=65535),
            log_format=_log_format(values),
            log_level=_log_level(values),
            executor=_executor(values),
            kill_grace_seconds=_number(values, "TASKQUEUE_KILL_GRACE_SECONDS", float, lambda: 5.0),
            child_memory_mib=_number(values, "TASKQUEUE_CHILD_MEMORY_MIB", int, lambda: 0),
            child_max_tasks=_number(values, "TASKQUEUE_CHILD_MAX_TASKS", int, lambda: 0),
            child_max_mib=_number(values, "TASKQUEUE_CHILD_MAX_MIB", int, lambda: 0),
            direct_timeout_seconds=_number(
                values,
                "TASKQUEUE_ATTEMPT_TIMEOUT_SECONDS",
                float,
                lambda: float(DEFAULT_ATTEMPT_SECONDS),
                lowest=0.1,
            ),
            direct_max_deliveries=_number(
                values, "TASKQUEUE_MAX_DELIVERIES", int, lambda: DEFAULT_DELIVERIES, lowest=1
            ),
        )


def _required(values: Mapping[str, str], name: str, meaning: str) -> str:
    if name not in values:
        raise SettingsError(f"{name} is not set: give {meaning}")
    return values[name]


def _broker(values: Mapping[str, str]) -> BrokerParameters:
    secret = {key: values[name] for name, key in BROKER_VARIABLES.items() if name in values}
    if "uri" not in secret and "host" not in secret:
        raise SettingsError(
            "neither TASKQUEUE_BROKER_URI nor TASKQUEUE_BROKER_HOST is set: "
            "give amqp://user:password@host/vhost, or the host"
        )
    try:
        return BrokerParameters.from_mapping(secret)
    except BrokerConfigurationError as problem:
        raise SettingsError(_in_variables(str(problem))) from None


def _in_variables(text: str) -> str:
    """Return an error about keys of a Secret as one about variables."""
    for name, key in BROKER_VARIABLES.items():
        text = re.sub(rf"\bkeys? {re.escape(key)}(?![\w.])", name, text)
    return text


def _number(
    values: Mapping[str, str],
    name: str,
    kind: type[N],
    default: Callable[[], N],
    *,
    lowest: float = 0,
    highest: float = 1_000_000,
) -> N:
    if name not in values:
        return default()
    try:
        number = kind(values[name])
    except ValueError:
        number = None
    if number is None or not lowest <= number <= highest:
        word = "a whole number" if kind is int else "a number"
        raise SettingsError(f"{name} is {values[name]!r}: give {word}, at least {lowest:g}")
    return number


def _executor(values: Mapping[str, str]) -> HandlerExecutor:
    word = values.get("TASKQUEUE_EXECUTOR")
    if word is None:
        return HandlerExecutor.default()
    try:
        executor = HandlerExecutor(word.lower())
    except ValueError:
        raise SettingsError(f"TASKQUEUE_EXECUTOR is {word!r}: give process or thread") from None
    if executor is HandlerExecutor.PROCESS and sys.platform != "linux":
        raise SettingsError("TASKQUEUE_EXECUTOR is 'process', which needs Linux: give thread")
    return executor


def _log_format(values: Mapping[str, str]) -> LogFormat | None:
    word = values.get("TASKQUEUE_LOG_FORMAT")
    if word is None:
        return None
    try:
        return LogFormat(word.lower())
    except ValueError:
        raise SettingsError(f"TASKQUEUE_LOG_FORMAT is {word!r}: give json or text") from None


def _log_level(values: Mapping[str, str]) -> str:
    word = values.get("TASKQUEUE_LOG_LEVEL", "INFO").upper()
    if word not in _LEVELS:
        raise SettingsError(f"TASKQUEUE_LOG_LEVEL is {word!r}: give one of {', '.join(_LEVELS)}")
    return word
