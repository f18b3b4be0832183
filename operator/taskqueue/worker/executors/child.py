"""A child process that runs sync handlers, one attempt at a time.

It lives until the worker closes the connection: it receives attempts, and sends outcomes, and
progress and log lines while a handler runs. Handlers run in the main thread; the worker enforces
time limits and memory limits.

A cancel is a frame and then a SIGTERM. The signal makes the handler raise `Cancelled` at its next
bytecode, so that its ``finally`` blocks run. A SIGTERM without that frame is not the worker's (such
as one to every process of a container, whose running attempts may finish) and has no effect.
An exception must not come in the middle of a frame: while one is sent, the signal waits.

What an attempt does to this process is undone before its outcome is sent, or the outcome says why
that is not possible, and the worker replaces this process; see `process_state`.
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

from taskqueue.results.reference import StoredResult
from taskqueue.worker import log_setup
from taskqueue.worker.executor import AttemptResult
from taskqueue.worker.executors import child_protocol
from taskqueue.worker.executors.memory import OwnMemory
from taskqueue.worker.executors.process_state import ProcessState, stop_timers
from taskqueue.worker.outcome import describe_traceback, encoded_result, raised
from taskqueue.worker.sdk import (
    Cancelled,
    Context,
    Handler,
    HandlerRegistry,
    Progress,
    mark_cancelled,
)

#: Exit codes of a child, besides 0: its start hook failed; it cannot reach its worker.
EXIT_UNUSABLE = 70
EXIT_CUT_OFF = 74


def serve(connection: socket.socket, registry: HandlerRegistry, *, report_memory: bool) -> NoReturn:
    """Run attempts until the worker closes the connection; then end this process.

    Args:
        connection: to the worker, blocking.
        registry: the handlers.
        report_memory: report with each outcome how much memory this process holds.
    """
    child = Child(connection, registry, report_memory=report_memory)
    code = child.run()
    for stream in (sys.stdout, sys.stderr):
        # Its reader may have ended, or the handler has closed it.
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


class Child:
    """Runs attempts for the worker; there is one in a child process."""

    def __init__(
        self, connection: socket.socket, registry: HandlerRegistry, *, report_memory: bool
    ) -> None:
        self._connection = connection
        self._registry = registry
        self._memory = OwnMemory() if report_memory else None
        self._reader = child_protocol.FrameReader()
        self._inbox: deque[tuple[int, bytes]] = deque()
        #: Of the running attempt; None: a signal interrupts nothing.
        self._context: _ChildContext | None = None
        self._main_thread = threading.get_ident()
        self._lock = threading.Lock()
        #: The main thread is sending: a frame must not be cut in two.
        self._sending = False
        self._later: list[tuple[bytes, Context | None]] = []
        #: A signal arrived that has not been handled yet.
        self._signalled = False
        self._forked = False
        self._mask: set[int] = set()

    def run(self) -> int:
        """Run attempts until the connection is closed, and return the exit code."""
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
        log_setup.send_lines(self._send_line, lambda: self.fields)
        try:
            for hook in self._registry.start_hooks:
                hook()
        except BaseException as error:
            self.send(
                child_protocol.frame(child_protocol.UNUSABLE, describe_traceback(error).encode())
            )
            return EXIT_UNUSABLE
        log_setup.ensure()
        state = ProcessState()
        self.send(child_protocol.frame(child_protocol.STARTED))
        while (attempt := self._next_attempt()) is not None:
            self.send(
                child_protocol.frame(child_protocol.OUTCOME, self._run_attempt(attempt, state))
            )
        for hook in reversed(self._registry.stop_hooks):
            try:
                hook()
            except BaseException:
                logging.getLogger("taskqueue.worker").exception("hook.failed")
        return 0

    def send(self, data: bytes, *, of: Context | None = None) -> None:
        """Send a frame to the worker, from any thread.

        Args:
            data: the frame.
            of: the attempt it is about: dropped once that has ended. The worker would take it for
                one of the next attempt.
        """
        if self._forked:
            return
        if threading.get_ident() != self._main_thread:
            with self._lock:
                self._write(data, of)
            return
        if self._sending:  # a signal handler or finalizer of the user's, while we send
            self._later.append((data, of))
            return
        self._sending = True
        try:
            with self._lock:
                self._write(data, of)
                while self._later:
                    self._write(*self._later.pop(0))
        finally:
            self._sending = False
        if self._signalled:
            self._raise_if_cancelled()

    @property
    def fields(self) -> dict[str, Any]:
        """The log fields of the running attempt."""
        context = self._context
        if context is None:
            return {}
        return _log_fields(context)

    def _run_attempt(self, body: bytes, state: ProcessState) -> bytes:
        """Run an attempt, undo what it did to this process, and return the body of its outcome."""
        name, payload, about = child_protocol.decode_attempt(body)
        context = _ChildContext(self, about)
        result, seconds = self._call(self._registry[name], payload, context)
        if self._forked:
            os._exit(1 if isinstance(result, AttemptResult) else 0)  # a process the handler forked
        leftover = state.restore(handler=name, **_log_fields(context))
        if isinstance(result, StoredResult):
            encoded = child_protocol.encode_result(result)
            self.send(child_protocol.frame(child_protocol.RESULT, encoded))
            result = None
        return child_protocol.encode_outcome(
            result, seconds, mib=self._memory_mib(), leftover=leftover
        )

    def _call(
        self, handler: Handler, payload: dict[str, Any], context: _ChildContext
    ) -> tuple[AttemptResult | StoredResult | bytes | None, float]:
        """Call the handler; return its encoded result or its failure, and how long it ran.

        Nothing of an exception is kept: its frames would hold what the handler had opened.
        """
        begun = time.perf_counter()
        try:
            try:
                self._context = context  # from here on a signal may raise Cancelled
                self._raise_if_cancelled()
                value = handler(payload, context)
            finally:
                self._context = None
            seconds = time.perf_counter() - begun
            result = encoded_result(value, seconds, handler=handler.name)
            del value
            stop_timers()
        except BaseException as error:
            # A second time: the cancel may have arrived just before the first.
            self._context = None
            with contextlib.suppress(BaseException):
                stop_timers()
            if self._forked:
                traceback.print_exc()
            seconds = time.perf_counter() - begun
            return raised(error, seconds), seconds
        return result, seconds

    def _memory_mib(self) -> float | None:
        return None if self._memory is None else self._memory.mib()

    def _next_attempt(self) -> bytes | None:
        """Wait for an attempt and return it; None: the worker closed the connection."""
        while True:
            while self._inbox:
                kind, body = self._inbox.popleft()
                if kind == child_protocol.ATTEMPT:
                    return body
                # A cancel that arrived too late.
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
            self._raise_if_cancelled()

    def _raise_if_cancelled(self) -> None:
        """Raise Cancelled in the handler if the worker has cancelled its attempt.

        Has an effect inside an attempt only: there the main thread is the only reader.
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
                pass  # nothing has arrived
        if any(kind == child_protocol.CANCEL for kind, _ in self._inbox):
            self._inbox.clear()
            mark_cancelled(context)
            raise Cancelled

    def _write(self, data: bytes, of: Context | None) -> None:
        if of is not None and of is not self._context:
            return
        try:
            self._connection.sendall(data)
        except OSError:
            # The worker has ended, or the handler closed what it did not open.
            os._exit(EXIT_CUT_OFF)

    def _send_line(self, line: bytes) -> None:
        self.send(child_protocol.frame(child_protocol.LOG, line[: child_protocol.LOG_LINE_BYTES]))

    def _before_fork(self) -> None:
        # A signal for the new process must wait until that has its own handler.
        self._mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

    def _after_fork(self) -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)

    def _become_grandchild(self) -> None:
        """In a process that the handler forked: sever it from the worker."""
        self._forked = True
        self._context = None
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)
        self._connection.close()
        log_setup.write_directly()


class _ChildContext(Context):
    """A context that sends progress to the worker."""

    __slots__ = ("_child",)

    def __init__(self, child: Child, fields: dict[str, Any]) -> None:
        super().__init__(**fields, save=self._send_checkpoint)
        self._child = child

    def _send_checkpoint(self, encoded: bytes) -> None:
        self._child.send(child_protocol.frame(child_protocol.CHECKPOINT, encoded), of=self)

    def progress(self, percent: float | None = None, message: str = "") -> None:
        super().progress(percent, message)
        latest = self.latest_progress or Progress(None, "")
        encoded = child_protocol.encode_progress(latest)
        self._child.send(child_protocol.frame(child_protocol.PROGRESS, encoded), of=self)


def _log_fields(context: Context) -> dict[str, Any]:
    return {"task": context.task, "uid": context.uid, "attempt": context.attempt}
