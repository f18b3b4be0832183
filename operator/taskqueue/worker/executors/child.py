"""The life of a child process that runs sync handlers, one attempt at a time.

It was forked for this and lives until the worker closes the connection: attempts come in, outcomes
go back, and progress and log lines while a handler runs. Everything here is the handler's main
thread; the worker sees to time-outs, memory and the end.

A cancel is a frame and then a SIGTERM. The signal makes the handler raise `Cancelled` at its next
bytecode, so that its ``finally`` blocks run. A SIGTERM without that frame is not the worker's (such
as one to every process of a container, whose running attempts may finish) and changes nothing.
An exception must not come in the middle of a frame: while one is sent, the signal waits.
"""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections import deque
from types import FrameType
from typing import Any, NoReturn

from taskqueue import logs
from taskqueue.worker.executors import child_protocol
from taskqueue.worker.executors.memory import OwnMemory
from taskqueue.worker.outcome import encodable, encoded_result, raised
from taskqueue.worker.sdk import (
    Cancelled,
    Context,
    Fail,
    HandlerRegistry,
    Progress,
    Retry,
    mark_cancelled,
)

#: Exit codes of a child, besides 0: its start hook failed; it cannot reach its worker.
EXIT_UNUSABLE = 70
EXIT_CUT_OFF = 74

#: Characters of a traceback that reach the worker's log.
_TRACEBACK_LENGTH = 16_384


def serve(connection: socket.socket, registry: HandlerRegistry, *, tell_memory: bool) -> NoReturn:
    """Run attempts until the worker closes the connection; then end this process.

    Args:
        connection: to the worker, blocking.
        registry: the handlers.
        tell_memory: say with each outcome how much memory this process holds.
    """
    child = Child(connection, registry, tell_memory=tell_memory)
    code = child.run()
    for stream in (sys.stdout, sys.stderr):
        # Nobody may read it any more, or the handler has closed it.
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


class Child:
    """One child; there is one in a process."""

    def __init__(
        self, connection: socket.socket, registry: HandlerRegistry, *, tell_memory: bool
    ) -> None:
        self._connection = connection
        self._registry = registry
        self._memory = OwnMemory() if tell_memory else None
        self._reader = child_protocol.FrameReader()
        self._inbox: deque[tuple[int, bytes]] = deque()
        #: Of the attempt that runs; None: a signal interrupts nothing.
        self._context: _ChildContext | None = None
        self._main_thread = threading.get_ident()
        self._lock = threading.Lock()
        #: The main thread is sending: a frame must not be cut in two.
        self._sending = False
        self._later: list[bytes] = []
        #: A signal came that nobody has looked into yet.
        self._signalled = False
        self._forked = False
        self._mask: set[int] = set()

    def run(self) -> int:
        """Serve, and return the exit code."""
        faulthandler.enable(file=2)  # whatever sys.stderr is
        signal.signal(signal.SIGTERM, self._on_sigterm)
        # Not ignored: the programs a handler starts would inherit that.
        signal.signal(signal.SIGINT, lambda number, frame: None)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        os.register_at_fork(
            before=self._before_fork,
            after_in_parent=self._after_fork,
            after_in_child=self._become_grandchild,
        )
        self._log_to_worker()
        try:
            for hook in self._registry.start_hooks:
                hook()
        except BaseException as problem:
            self.send(child_protocol.frame(child_protocol.UNUSABLE, _traceback(problem).encode()))
            return EXIT_UNUSABLE
        while (attempt := self._next_attempt()) is not None:
            self.send(child_protocol.frame(child_protocol.OUTCOME, self._attempt(attempt)))
        try:
            for hook in reversed(self._registry.stop_hooks):
                hook()
        except BaseException:
            logging.getLogger("taskqueue.worker").exception("hook.failed")
        return 0

    def send(self, data: bytes) -> None:
        """Send a frame to the worker, from any thread."""
        if self._forked:
            return
        if threading.get_ident() != self._main_thread:
            with self._lock:
                self._write(data)
            return
        if self._sending:  # a signal handler or finalizer of the user's, inside of our own sending
            self._later.append(data)
            return
        self._sending = True
        try:
            with self._lock:
                self._write(data)
                while self._later:
                    self._write(self._later.pop(0))
        finally:
            self._sending = False
        if self._signalled:
            self._look_for_cancel()

    @property
    def fields(self) -> dict[str, Any]:
        """What log lines of the attempt that runs say of it."""
        context = self._context
        if context is None:
            return {}
        return {"task": context.task, "uid": context.uid, "attempt": context.attempt}

    def _attempt(self, body: bytes) -> bytes:
        """Run an attempt and return the body of its outcome."""
        name, payload, about = child_protocol.decode_attempt(body)
        handler = self._registry[name]
        context = _ChildContext(self, about)
        begun = time.perf_counter()
        try:
            try:
                self._context = context  # from here on a signal may raise Cancelled
                self._look_for_cancel()
                value = handler(payload, context)
            finally:
                self._context = None
            seconds = time.perf_counter() - begun
            result = encoded_result(value, seconds, handler=name)
        except BaseException as problem:
            # Again: the cancel may have come just before it was done the first time.
            self._context = None
            if self._forked:
                traceback.print_exc()
                os._exit(1)
            seconds = time.perf_counter() - begun
            return child_protocol.encode_outcome(
                raised(problem, seconds),
                seconds,
                traceback=None
                if isinstance(problem, (Cancelled, Fail, Retry))
                else _traceback(problem),
                mib=self._mib(),
            )
        if self._forked:
            os._exit(0)  # the handler's own child has come back from it
        return child_protocol.encode_outcome(result, seconds, mib=self._mib())

    def _mib(self) -> float | None:
        return None if self._memory is None else self._memory.mib()

    def _next_attempt(self) -> bytes | None:
        """Wait for an attempt and return it; None: the worker closed the connection."""
        while True:
            while self._inbox:
                kind, body = self._inbox.popleft()
                if kind == child_protocol.ATTEMPT:
                    return body
                # A cancel that came too late.
            try:
                data = self._connection.recv(child_protocol.CHUNK_BYTES)
            except OSError:
                return None
            if not data:
                return None
            self._inbox.extend(self._reader.feed(data))

    def _on_sigterm(self, number: int, frame: FrameType | None) -> None:
        self._signalled = True
        if not self._sending:
            self._look_for_cancel()

    def _look_for_cancel(self) -> None:
        """Raise Cancelled in the handler if the worker wants its attempt to end.

        Called inside an attempt only to any effect: in its main thread, where nobody else reads.
        """
        context = self._context
        if context is None or context.cancelled:
            return
        if self._signalled:
            self._signalled = False
            try:
                data = self._connection.recv(child_protocol.CHUNK_BYTES, socket.MSG_DONTWAIT)
                self._inbox.extend(self._reader.feed(data))
            except OSError:
                pass  # nothing has come
        if any(kind == child_protocol.CANCEL for kind, _ in self._inbox):
            self._inbox.clear()
            mark_cancelled(context)
            raise Cancelled

    def _write(self, data: bytes) -> None:
        try:
            self._connection.sendall(data)
        except OSError:
            # The worker is gone, or the handler closed what it did not open.
            os._exit(EXIT_CUT_OFF)

    def _log_to_worker(self) -> None:
        root = logging.getLogger()
        formatter = root.handlers[0].formatter if root.handlers else None
        handler = _ToWorker(self)
        handler.setFormatter(formatter)
        root.handlers[:] = [handler]

    def _before_fork(self) -> None:
        # A signal for the new process, that comes before it has its own handler, must wait.
        self._mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

    def _after_fork(self) -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)

    def _become_grandchild(self) -> None:
        """In a process the handler forked: it is the handler's own, and not ours to speak for."""
        self._forked = True
        self._context = None
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)
        self._connection.close()
        root = logging.getLogger()
        if root.handlers and isinstance(root.handlers[0], _ToWorker):
            plain = logging.StreamHandler(sys.stderr)
            plain.setFormatter(root.handlers[0].formatter)
            root.handlers[0] = plain


class _ChildContext(Context):
    """A context whose progress is told to the worker."""

    __slots__ = ("_child",)

    def __init__(self, child: Child, about: dict[str, Any]) -> None:
        super().__init__(**about)
        self._child = child

    def progress(self, percent: float | None = None, message: str = "") -> None:
        super().progress(percent, message)
        latest = self.latest_progress or Progress(None, "")
        self._child.send(
            child_protocol.frame(child_protocol.PROGRESS, child_protocol.encode_progress(latest))
        )


class _ToWorker(logging.Handler):
    """Sends formatted lines to the worker; every line has the fields of the attempt."""

    def __init__(self, child: Child) -> None:
        super().__init__()
        self._child = child

    def emit(self, record: logging.LogRecord) -> None:
        try:
            if not hasattr(record, logs.FIELDS):
                setattr(record, logs.FIELDS, self._child.fields)
            line = self.format(record).encode("utf-8", "backslashreplace")
        except Exception:
            self.handleError(record)
            return
        self._child.send(child_protocol.frame(child_protocol.LOG, line))


def _traceback(problem: BaseException) -> str:
    """Return the traceback without our own frames at its top."""
    begin = problem.__traceback__
    here = __file__
    while begin is not None and begin.tb_frame.f_code.co_filename == here and begin.tb_next:
        begin = begin.tb_next
    text = "".join(traceback.format_exception(type(problem), problem, begin))
    text = encodable(text.rstrip())
    return text if len(text) <= _TRACEBACK_LENGTH else "…" + text[-_TRACEBACK_LENGTH:]
