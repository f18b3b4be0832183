"""The worker's settings, read once from environment variables; the broker's, for each connection.

Each setting is declared once, at its field of `WorkerSettings`: name of the variable, what it
accepts, default, unit and meaning. Reading, errors, ``--help`` and the table in docs/workers.md
(`settings_table`) all come from that declaration. The operator's Deployment sets the variables; by
hand they work the same. No other module of the worker reads the environment.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from enum import StrEnum
from typing import Any

from taskqueue.amqp.parameters import BrokerConfigurationError
from taskqueue.defaults import (
    DEFAULT_ATTEMPT_SECONDS,
    DEFAULT_DELIVERIES,
    DEFAULT_INSTALLATION,
)
from taskqueue.limits import DRAINED_SECONDS
from taskqueue.logs import LogFormat
from taskqueue.model.broker_environment import BROKER_DIRECTORY_VARIABLE
from taskqueue.worker.broker_source import BrokerSource
from taskqueue.worker.cpus import available_cpus
from taskqueue.worker.result_settings import RESULT_VARIABLES, ResultSettings
from taskqueue.worker.variables import SettingsError, Variable, integer, number, read_from

_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")


class HandlerExecutor(StrEnum):
    """Where a sync handler runs."""

    PROCESS = "process"
    THREAD = "thread"

    @classmethod
    def default(cls) -> HandlerExecutor:
        """Return PROCESS on Linux; other systems lack what it needs."""
        return cls.PROCESS if sys.platform == "linux" else cls.THREAD


class Leftovers(StrEnum):
    """What becomes of a child in which an attempt has left threads or open files."""

    REPLACE = "replace"
    KEEP = "keep"


def _executor(text: str) -> HandlerExecutor:
    try:
        executor = HandlerExecutor(text.lower())
    except ValueError:
        raise ValueError("give process or thread") from None
    if executor is HandlerExecutor.PROCESS and sys.platform != "linux":
        raise ValueError("that needs Linux, give thread")
    return executor


def _leftovers(text: str) -> Leftovers:
    try:
        return Leftovers(text.lower())
    except ValueError:
        raise ValueError("give replace or keep") from None


def _log_format(text: str) -> LogFormat:
    try:
        return LogFormat(text.lower())
    except ValueError:
        raise ValueError("give json or text") from None


def _log_level(text: str) -> str:
    level = text.upper()
    if level not in _LEVELS:
        raise ValueError(f"give one of {', '.join(_LEVELS)}")
    return level


DIRECT_TIMEOUT = Variable(
    "TASKQUEUE_ATTEMPT_TIMEOUT_SECONDS",
    "timeout of messages without a Task",
    number(lowest=0.1),
    unit="s",
)
DIRECT_MAX_DELIVERIES = Variable(
    "TASKQUEUE_MAX_DELIVERIES", "attempts of messages without a Task", integer(lowest=1)
)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSettings:
    """Holds what a worker needs to know."""

    namespace: str = field(
        metadata=read_from(Variable("TASKQUEUE_NAMESPACE", "namespace of the TaskQueue"))
    )
    queue: str = field(metadata=read_from(Variable("TASKQUEUE_QUEUE", "name of the TaskQueue")))
    broker: BrokerSource = field(
        metadata=read_from(
            Variable(
                "TASKQUEUE_BROKER_URI",
                "`amqp://user:password@host/vhost`, or `amqps://` for TLS",
                default="this or `TASKQUEUE_BROKER_HOST` is required",
            ),
            Variable("TASKQUEUE_BROKER_HOST", "host, instead of the URI"),
            Variable("TASKQUEUE_BROKER_PORT", "port; with `_HOST`", default="5672, with TLS 5671"),
            Variable("TASKQUEUE_BROKER_USERNAME", "user; required with `_HOST`"),
            Variable("TASKQUEUE_BROKER_PASSWORD", "password; required with `_HOST`"),
            Variable("TASKQUEUE_BROKER_VHOST", "virtual host; with `_HOST`", default="`/`"),
            Variable(
                "TASKQUEUE_BROKER_TLS",
                "`true`: TLS without a client certificate; with `_HOST`",
                default="off",
            ),
            Variable(
                "TASKQUEUE_BROKER_CA_CERT",
                "PEM text of the authority to trust",
                default="the system's authorities",
            ),
            Variable("TASKQUEUE_BROKER_TLS_CERT", "PEM text of the client certificate"),
            Variable("TASKQUEUE_BROKER_TLS_KEY", "PEM text of the client certificate's key"),
            Variable(
                BROKER_DIRECTORY_VARIABLE,
                "directory with the keys of the broker's Secret as files (`uri`, `host`, `port`, "
                "`username`, `password`, `vhost`, `tls`, `ca.crt`, `tls.crt`, `tls.key`), which "
                "are read again for each connection and count before the variables above",
                default="none",
            ),
        )
    )
    results: ResultSettings = field(
        default_factory=ResultSettings, metadata=read_from(*RESULT_VARIABLES)
    )
    slots: int = field(
        default_factory=lambda: available_cpus(),
        metadata=read_from(
            Variable(
                "TASKQUEUE_CONCURRENCY",
                "slots: attempts run at once",
                integer(lowest=1),
                default="CPUs of the container (its cgroup limit, rounded up)",
            )
        ),
    )
    executor: HandlerExecutor = field(
        default_factory=HandlerExecutor.default,
        metadata=read_from(
            Variable(
                "TASKQUEUE_EXECUTOR",
                "where sync handlers run: `process` or `thread`",
                _executor,
                default="`process`; `thread` where the system is not Linux",
            )
        ),
    )
    kill_grace_seconds: float = field(
        default=5.0,
        metadata=read_from(
            Variable(
                "TASKQUEUE_KILL_GRACE_SECONDS",
                "time between SIGTERM and SIGKILL of an attempt that is being stopped; time limit "
                "of a DELETE to a service",
                number(),
                unit="s",
            )
        ),
    )
    child_memory_mib: int = field(
        default=0,
        metadata=read_from(
            Variable(
                "TASKQUEUE_CHILD_MEMORY_MIB",
                "an attempt whose process holds more is killed; a handler's `memory_mib` takes "
                "precedence",
                integer(),
                default="no limit",
                unit="MiB",
            )
        ),
    )
    child_max_tasks: int = field(
        default=0,
        metadata=read_from(
            Variable(
                "TASKQUEUE_CHILD_MAX_TASKS",
                "attempts after which a child process is replaced",
                integer(),
                default="never",
            )
        ),
    )
    child_max_mib: int = field(
        default=0,
        metadata=read_from(
            Variable(
                "TASKQUEUE_CHILD_MAX_MIB",
                "a child process that holds more after an attempt is replaced",
                integer(),
                default="never",
                unit="MiB",
            )
        ),
    )
    child_leftovers: Leftovers = field(
        default=Leftovers.REPLACE,
        metadata=read_from(
            Variable(
                "TASKQUEUE_CHILD_LEFTOVERS",
                "a child process in which an attempt has left threads or open files: `replace` or "
                "`keep`",
                _leftovers,
            )
        ),
    )
    grace_seconds: float = field(
        default=25.0,
        metadata=read_from(
            Variable(
                "TASKQUEUE_GRACE_SECONDS",
                "how long running attempts may continue after SIGTERM",
                number(),
                unit="s",
            )
        ),
    )
    drained_seconds: float = field(
        default=DRAINED_SECONDS,
        metadata=read_from(
            Variable(
                "TASKQUEUE_DRAINED_SECONDS",
                "how long a drained worker waits for SIGTERM before it exits by itself",
                number(),
                unit="s",
            )
        ),
    )
    health_port: int = field(
        default=8081,
        metadata=read_from(
            Variable(
                "TASKQUEUE_HEALTH_PORT",
                "port of `/healthz`, `/readyz` and `/metrics`; 0: none",
                integer(highest=65535),
            )
        ),
    )
    log_format: LogFormat | None = field(
        default=None,
        metadata=read_from(
            Variable(
                "TASKQUEUE_LOG_FORMAT",
                "`json` or `text`",
                _log_format,
                default="text on a terminal, else json",
            )
        ),
    )
    log_level: str = field(
        default="INFO",
        metadata=read_from(
            Variable(
                "TASKQUEUE_LOG_LEVEL",
                ", ".join(f"`{level}`" for level in _LEVELS),
                _log_level,
            )
        ),
    )
    direct_timeout_seconds: float = field(
        default=float(DEFAULT_ATTEMPT_SECONDS),
        metadata=read_from(
            DIRECT_TIMEOUT,
        ),
    )
    direct_max_deliveries: int = field(
        default=DEFAULT_DELIVERIES,
        metadata=read_from(
            DIRECT_MAX_DELIVERIES,
        ),
    )
    limits_directory: str = field(
        default="",
        metadata=read_from(
            Variable(
                "TASKQUEUE_LIMITS_DIRECTORY",
                "directory with the two settings above as files of their names, which are read "
                "again when they change",
                default="none",
            )
        ),
    )
    installation: str = field(
        default=DEFAULT_INSTALLATION,
        metadata=read_from(
            Variable(
                "TASKQUEUE_INSTALLATION",
                "installation of the operator that serves the TaskQueue: what that one understands "
                "decides how events are written",
            )
        ),
    )
    pod: str = field(
        default_factory=socket.gethostname,
        metadata=read_from(
            Variable(
                "POD_NAME", "name of this worker in outcomes and heartbeats", default="host name"
            )
        ),
    )
    node: str = field(
        default="",
        metadata=read_from(
            Variable("NODE_NAME", "the node it runs on, for `status.workers`", default="empty")
        ),
    )

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> WorkerSettings:
        """Read the variables; an empty one counts as not set.

        Raises:
            SettingsError: one is missing or wrong.
        """
        texts = {name: text for name, text in environment.items() if text != ""}
        values: dict[str, Any] = {}
        for each in fields(cls):
            if each.name == "broker":
                values[each.name] = _broker(texts)
                continue
            if each.name == "results":
                values[each.name] = ResultSettings.read(texts)
                continue
            (variable,) = variables_of(each)
            if variable.name in texts:
                values[each.name] = variable.read(texts[variable.name])
            elif is_required(each):
                raise SettingsError(f"{variable.name} is not set: give the {variable.meaning}")
        return cls(**values)

    @property
    def secret_directories(self) -> tuple[str, ...]:
        """With the files of Secrets: of the broker, and of the store of results."""
        results = "" if self.results.source is None else self.results.source.directory
        return tuple(one for one in (self.broker.directory, results) if one)

    def drop_variables(self) -> None:
        """Forget credentials that came in variables, in a process that does not connect."""
        self.broker.drop_variables()
        if self.results.source is not None:
            self.results.source.drop_variables()


def variables_of(setting: Field[Any]) -> tuple[Variable, ...]:
    """Return the variables that a field of `WorkerSettings` is read from."""
    variables: tuple[Variable, ...] = setting.metadata["variables"]
    return variables


def is_required(setting: Field[Any]) -> bool:
    """Return whether a field of `WorkerSettings` has no default."""
    return setting.default is MISSING and setting.default_factory is MISSING


def _broker(texts: Mapping[str, str]) -> BrokerSource:
    source = BrokerSource(texts, texts.get(BROKER_DIRECTORY_VARIABLE, ""))
    try:
        source.read()
    except BrokerConfigurationError as error:
        raise SettingsError(str(error)) from None
    return source
