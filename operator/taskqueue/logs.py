"""Structured logs for operator and worker: an event's name first, everything else in fields.

``EventLog`` is what the code calls: ``log.info("task.failed", namespace="shop", task="a")``.
``configure`` sets the format once, at the operator's entry point: one JSON object a line in the
cluster, ``name key=value`` on a terminal. A worker, whose process is an application's too, has
`taskqueue.worker.log_setup` instead. Standard library only, so that a worker starts fast.
Payloads, results and secrets never go into a field.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, TextIO

#: Attribute of a `logging.LogRecord` that holds the fields of an event.
FIELDS = "fields"

#: Libraries whose routine messages are not about tasks.
_QUIET = {"pika": logging.CRITICAL, "asyncio": logging.WARNING, "kopf": logging.WARNING}


class LogFormat(StrEnum):
    """The format of log lines."""

    JSON = "json"
    TEXT = "text"

    @classmethod
    def default(cls, stream: TextIO) -> LogFormat:
        """Return TEXT for a terminal, JSON for anything else."""
        return cls.TEXT if stream.isatty() else cls.JSON


class EventLog:
    """A logger of named events with fields; a field that is None is left out."""

    __slots__ = ("_logger",)

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)

    @property
    def verbose(self) -> bool:
        """Whether `debug` writes anything; check it where the fields are costly."""
        return self._logger.isEnabledFor(logging.DEBUG)

    def debug(self, event: str, /, **fields: Any) -> None:
        """Log what only a developer wants to see."""
        if self._logger.isEnabledFor(logging.DEBUG):
            self._logger.debug(event, extra={FIELDS: fields})

    def info(self, event: str, /, **fields: Any) -> None:
        """Log what an operator of the system wants to see."""
        self._logger.info(event, extra={FIELDS: fields})

    def warning(self, event: str, /, exc_info: BaseException | None = None, **fields: Any) -> None:
        """Log what may need a person; the work goes on."""
        self._logger.warning(event, extra={FIELDS: fields}, exc_info=exc_info)

    def error(self, event: str, /, exc_info: BaseException | None = None, **fields: Any) -> None:
        """Log what needs a person."""
        self._logger.error(event, extra={FIELDS: fields}, exc_info=exc_info)


class JsonFormatter(logging.Formatter):
    """One JSON object a line: event, time, level, logger, then the fields."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line; a value JSON does not know is written as its text."""
        line: dict[str, Any] = {
            "event": record.getMessage(),
            "time": _utc(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
        }
        for name, value in _fields(record).items():
            line.setdefault(name, value)
        if record.exc_info and record.exc_info[0] is not None:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str, ensure_ascii=False)


class TextFormatter(logging.Formatter):
    """``event key=value …`` after the time of day and the level, for people at a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, and the traceback below it."""
        parts = [self.formatTime(record, "%H:%M:%S"), f"{record.levelname:7}", record.getMessage()]
        parts += [f"{name}={_quoted(value)}" for name, value in _fields(record).items()]
        text = " ".join(parts)
        if record.exc_info and record.exc_info[0] is not None:
            text += "\n" + self.formatException(record.exc_info)
        return text


def configure(
    log_format: LogFormat | None = None, *, level: str = "INFO", stream: TextIO | None = None
) -> None:
    """Send every log line of the process to ``stream`` (standard error) in one format.

    Called once by the operator's entry point. ``level`` is a name of `logging`.
    """
    target = sys.stderr if stream is None else stream
    handler = logging.StreamHandler(target)
    handler.setFormatter(formatter(log_format, target))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    quieten_libraries()


def formatter(log_format: LogFormat | None, stream: TextIO) -> logging.Formatter:
    """Return the formatter of a format; None: that of the stream."""
    chosen = LogFormat.default(stream) if log_format is None else log_format
    return JsonFormatter() if chosen is LogFormat.JSON else TextFormatter()


def quieten_libraries() -> None:
    """Silence libraries where they would repeat what our events say; a level that is set holds."""
    for name, level in _QUIET.items():
        logger = logging.getLogger(name)
        if logger.level == logging.NOTSET:
            logger.setLevel(level)


def _fields(record: logging.LogRecord) -> Mapping[str, Any]:
    fields: Mapping[str, Any] = getattr(record, FIELDS, {})
    return {name: value for name, value in fields.items() if value is not None}


def _quoted(value: Any) -> str:
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if not text or set(text) & set(' "=\n') else text


def _utc(seconds: float) -> str:
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    return f"{whole}.{int(seconds % 1 * 1000):03d}Z"
