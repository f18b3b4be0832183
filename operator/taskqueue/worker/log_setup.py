"""The worker's log beside the application's: what an application sets up for logging is kept.

* The worker's own events (the logger ``taskqueue.worker``) always go to standard error, in the
  worker's form. The application's handlers at the root get them too, unless they write to standard
  output or error: nothing stands there twice.
* A record of the application is written there by the worker only where no handler of the
  application's does, at its logger or above, whatever the level of that handler: what it does not
  write is not wanted.
* ``TASKQUEUE_LOG_LEVEL`` is the level of the loggers below ``taskqueue``, and of the root where the
  application has set none and writes nothing itself. Any level that it has set holds.

A child process has the same handlers, by its fork. Ours sends lines to the worker, which writes
them. Those of the application that write to standard output or error go on writing there, while
what else is written to it may be captured: lines of a log are not a handler's output.

Setting up logging later, in a start hook, may remove our handlers and disable our loggers: `ensure`
puts them back.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TextIO

from taskqueue import logs

#: What the worker itself logs to.
_OWN = "taskqueue.worker"

#: The parent of that, of a context's logger and of the clients'.
_PACKAGE = "taskqueue"

#: Standard output and error, as device and inode; in a child also the pipe that stands for them.
_outputs: set[tuple[int, int]] = set()

#: In a child whose output is captured: what 1 and 2 were before.
_kept: dict[int, TextIO] = {}


class _UnsetLevel(int):
    """The root's level as Python sets it: another object of its value is the application's."""


class WorkerLogHandler(logging.StreamHandler[TextIO]):
    """Writes what is the worker's to write to standard error; from a child, through the worker.

    Attributes:
        send: sends a line to the worker; None: this process is the worker.
        fields: those of the attempt that runs in this child.
        package_level: of the loggers below ``taskqueue``.
    """

    def __init__(self, log_format: logs.LogFormat | None = None, level: str = "INFO") -> None:
        super().__init__(sys.stderr)
        self.addFilter(_is_ours_to_write)
        self.setFormatter(logs.formatter(log_format, self.stream))
        self.package_level = level.upper()
        self.send: Callable[[bytes], None] | None = None
        self.fields: Callable[[], Mapping[str, Any]] = dict

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record, or send it; a child's lines have the fields of the attempt."""
        if self.send is None:
            super().emit(record)
            return
        try:
            if not hasattr(record, logs.FIELDS):
                setattr(record, logs.FIELDS, self.fields())
            line = self.format(record).encode("utf-8", "backslashreplace")
        except Exception:
            self.handleError(record)
            return
        self.send(line)

    def write_line(self, line: bytes) -> None:
        """Write a line that a child has formatted."""
        self.acquire()
        try:
            self.stream.write(line.decode("utf-8", "replace") + self.terminator)
            self.flush()
        finally:
            self.release()


class _RootRelay(logging.Handler):
    """Passes our own events to the root's handlers, but for those that write beside ours."""

    def emit(self, record: logging.LogRecord) -> None:
        for handler in logging.getLogger().handlers:
            if (
                record.levelno >= handler.level
                and handler is not _handler
                and not _writes_to_output(handler)
            ):
                handler.handle(record)


_handler: WorkerLogHandler | None = None
_relay = _RootRelay()


def begin() -> None:
    """Prepare for the import of the application's modules."""
    root = logging.getLogger()
    if root.level == logging.WARNING:
        root.setLevel(_UnsetLevel(logging.WARNING))
    _note_outputs()


def install(log_format: logs.LogFormat | None = None, *, level: str = "INFO") -> None:
    """Add our handler to what the application's modules have set up.

    Args:
        log_format: None: text on a terminal, else JSON.
        level: the name of a level of `logging`.
    """
    global _handler
    root = logging.getLogger()
    if isinstance(root.level, _UnsetLevel) and not any(map(_writes_to_output, root.handlers)):
        root.setLevel(level.upper())
    _handler = WorkerLogHandler(log_format, level)
    ensure()


def ensure() -> None:
    """Put back what a later set-up of the application's has removed, replaced or disabled."""
    if _handler is None:
        return
    package, own, root = map(logging.getLogger, (_PACKAGE, _OWN, None))
    for name, logger in list(root.manager.loggerDict.items()):
        if f"{name}.".startswith(f"{_PACKAGE}.") and isinstance(logger, logging.Logger):
            logger.disabled = False  # as `logging.config` does to loggers that it does not know
    own.propagate = False  # the relay does that
    for logger, handler in ((own, _handler), (own, _relay), (root, _handler)):
        if handler not in logger.handlers:
            logger.addHandler(handler)
    if package.level == logging.NOTSET:
        package.setLevel(_handler.package_level)
    logs.quieten_libraries()
    _write_to_kept_outputs()


def write_line(line: bytes) -> None:
    """Write a line that a child has formatted to our own log."""
    if _handler is not None:
        _handler.write_line(line)


def keep_outputs(outputs: Mapping[int, TextIO]) -> None:
    """In a child whose output is about to be captured: write lines of logs to these instead.

    Args:
        outputs: by descriptor, 1 and 2, what it was before.
    """
    _kept.update(outputs)


def send_lines(send: Callable[[bytes], None], fields: Callable[[], Mapping[str, Any]]) -> None:
    """In a child: have the worker write our lines.

    Args:
        send: called in any thread with a line, without its end.
        fields: returns those of the running attempt.
    """
    global _handler
    if _handler is None:
        _handler = WorkerLogHandler()
    _handler.send, _handler.fields = send, fields
    _note_outputs()
    ensure()


def write_directly() -> None:
    """In a process that a handler has forked, which has no connection: write lines ourselves."""
    if _handler is not None:
        _handler.send = None
        _handler.setStream(sys.stderr)


def _is_ours_to_write(record: logging.LogRecord) -> bool:
    """Whether no handler of the application's writes the record's logger to an output."""
    logger: logging.Logger | None = logging.getLogger(record.name)
    while logger is not None and record.name != _OWN:
        if any(
            handler is not _handler and _writes_to_output(handler) for handler in logger.handlers
        ):
            return False
        logger = logger.parent if logger.propagate else None
    return True


def _writes_to_output(handler: logging.Handler) -> bool:
    """Whether a handler writes to standard output or error, by whichever name it has opened it."""
    if not isinstance(handler, logging.StreamHandler):
        return False
    stream = handler.stream
    if stream is sys.stderr or stream is sys.stdout:
        return True
    fd = _descriptor(stream)
    return fd is not None and _identity(fd) in _outputs


def _write_to_kept_outputs() -> None:
    for handler in _application_handlers() if _kept else ():
        if isinstance(handler, logging.StreamHandler):
            kept = _kept.get(_descriptor(handler.stream) or 0)
            if kept is not None:
                handler.setStream(kept)


def _application_handlers() -> Iterator[logging.Handler]:
    root = logging.getLogger()
    for logger in (root, *root.manager.loggerDict.values()):
        if isinstance(logger, logging.Logger):
            yield from (each for each in logger.handlers if each is not _handler)


def _note_outputs() -> None:
    _outputs.update(found for fd in (1, 2) if (found := _identity(fd)) is not None)


def _descriptor(stream: object) -> int | None:
    try:
        number = stream.fileno()  # type: ignore[attr-defined]
    except (AttributeError, OSError, ValueError):  # it has none, or is closed
        return None
    return number if isinstance(number, int) else None


def _identity(fd: int) -> tuple[int, int] | None:
    try:
        found = os.fstat(fd)
    except OSError:
        return None
    return found.st_dev, found.st_ino
