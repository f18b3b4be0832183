"""The worker's side of one child process, and of the attempt in it."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from taskqueue.logs import EventLog
from taskqueue.results.reference import StoredResult
from taskqueue.worker import log_setup
from taskqueue.worker.executor import AttemptRequest, AttemptResult
from taskqueue.worker.executors import child_protocol
from taskqueue.worker.executors.exit_status import describe_exit, over_limit
from taskqueue.worker.executors.output import OutputPipe, merge_lines
from taskqueue.worker.executors.process_spawner import ProcessExit
from taskqueue.worker.outcome import failure
from taskqueue.worker.sdk import Progress

if TYPE_CHECKING:
    from taskqueue.worker.executors.child_pool import ChildPool

log = EventLog("taskqueue.worker")

#: A child that has closed its connection and lives on is killed after this long, in seconds. Most
#: are about to end; one that crashes may be writing its core.
_HUNG_UP_SECONDS = 1.0


class ChildExecution:
    """An attempt that runs in a child process."""

    killable = True

    __slots__ = (
        "_child",
        "attempt",
        "begun_at",
        "body",
        "cancelled",
        "done",
        "limit_mib",
        "progress",
    )

    def __init__(
        self,
        child: PooledChild,
        attempt: AttemptRequest,
        done: Callable[[AttemptResult], None],
        begun_at: float,
        limit_mib: int,
        body: bytes,
    ) -> None:
        self._child = child
        self.attempt = attempt
        self.done = done
        self.begun_at = begun_at
        self.limit_mib = limit_mib
        self.body = body
        self.progress: Progress | None = None
        self.cancelled = False

    def cancel(self) -> None:
        """Raise Cancelled in the handler; the child is killed when the grace is over."""
        if not self.cancelled:
            self.cancelled = True
            if self._child.execution is self:
                self._child.cancel()

    def move_to(self, child: PooledChild) -> None:
        """Run in another child than the one that could not start."""
        self._child = child
        child.run(self)

    def kill(self) -> bool:
        """Kill the child and its process group now."""
        self.cancelled = True
        if self._child.execution is self:
            self._child.kill()
        return True


class PooledChild:
    """Runs attempts in one child process, from the request for it until it has ended.

    Attributes:
        execution: the attempt that runs in it; None: it is free, or ends.
    """

    __slots__ = (
        "_connection",
        "_exited",
        "_is_ending",
        "_killed",
        "_last",
        "_nonsense",
        "_output",
        "_over_mib",
        "_pool",
        "_process",
        "_reader",
        "_result_at_exit",
        "_served",
        "_started",
        "_unsent",
        "_unstored",
        "_unusable",
        "execution",
    )

    def __init__(self, pool: ChildPool) -> None:
        self._pool = pool
        self._reader = child_protocol.FrameReader(child_protocol.CHILD_FRAME_BYTES)
        self.execution: ChildExecution | None = None
        #: The attempt that runs, or the last one: output belongs to it.
        self._last: AttemptRequest | None = None
        self._is_ending = False
        self._exited = False
        self._killed = False
        #: The memory it held when it was killed for exceeding its limit, in MiB.
        self._over_mib: float | None = None
        #: What it sent that is no frame of ours: nothing more is read from it.
        self._nonsense = ""
        #: Traceback of a failed start hook.
        self._unusable = ""
        #: The result of its attempt that no status takes; the outcome follows.
        self._unstored: StoredResult | None = None
        #: The outcome of its attempt, to be reported when this process has ended.
        self._result_at_exit: AttemptResult | None = None
        self._served = 0
        #: Whether its start hooks have succeeded.
        self._started = False
        #: Bytes the socket had no room for yet.
        self._unsent = b""
        self._connection, theirs = socket.socketpair()
        self._connection.setblocking(False)
        pool.loop.add_reader(self._connection, self._readable)
        fds = [theirs.detach()]
        self._output: OutputPipe | None = None
        if pool.settings.capture:
            self._output = OutputPipe(pool.loop, self._on_output)
            fds.append(self._output.writing)
        self._process = pool.spawner.child(fds, self._on_exit)
        pool.children.add(self)

    @property
    def pid(self) -> int:
        """Its process id; 0: it does not exist yet, or is about to end."""
        return 0 if self._killed else self._process.pid

    @property
    def limit_mib(self) -> int:
        """The memory limit of the attempt that runs; 0: none."""
        return 0 if self.execution is None else self.execution.limit_mib

    # Requests of the pool and of executions.

    def run(self, execution: ChildExecution) -> None:
        """Run an attempt; a child that does not exist yet reads it when it starts."""
        self.execution = execution
        self._last = execution.attempt
        self._unstored = None
        self._served += 1
        self._send(child_protocol.frame(child_protocol.ATTEMPT, execution.body))

    def cancel(self) -> None:
        """End its attempt, and then the child."""
        self._send(child_protocol.frame(child_protocol.CANCEL))
        self._process.terminate()
        self._expect_end(self._pool.settings.kill_grace_seconds)

    def kill(self) -> None:
        """Kill the child and its process group."""
        self._killed = True
        self._process.kill()

    def dismiss(self) -> None:
        """Let the child end when its attempt has."""
        self._is_ending = True
        if self.execution is None:
            self._close_writing()

    def abandon(self) -> None:
        """Kill it and close its connection; ``done`` is not called."""
        self.kill()
        self.execution = None
        self._close()

    def on_limit_exceeded(self, held_mib: float) -> None:
        """Kill the child, which holds more memory than its attempt may."""
        self._over_mib = held_mib
        self.kill()

    # Frames from the child.

    def _readable(self) -> None:
        try:
            data = self._connection.recv(child_protocol.CHUNK_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self._on_data(data)
        if not data:
            # It has ended, as the fork server reports soon; or it lives on and cannot be reached.
            self._pool.loop.remove_reader(self._connection)
            self._remove_from_idle()
            self._expect_end(_HUNG_UP_SECONDS)

    def _on_data(self, data: bytes) -> None:
        """Handle frames; a child that sends anything else is killed, and its attempt fails."""
        if self._nonsense:
            return
        try:
            for kind, body in self._reader.feed(data):
                self._on_frame(kind, body)
        except child_protocol.ProtocolError as error:
            self._nonsense = str(error)
            self._remove_from_idle()
            self.kill()

    def _on_frame(self, kind: int, body: bytes) -> None:
        if kind == child_protocol.OUTCOME:
            if self.execution is not None:
                self._on_outcome(self.execution, body)
        elif kind == child_protocol.RESULT:
            self._unstored = child_protocol.decode_result(body)
        elif kind == child_protocol.PROGRESS:
            if self.execution is not None:
                self.execution.progress = child_protocol.decode_progress(body)
        elif kind == child_protocol.CHECKPOINT:
            checkpoint = child_protocol.decode_checkpoint(body)
            if self.execution is not None and self.execution.attempt.on_checkpoint is not None:
                self.execution.attempt.on_checkpoint(checkpoint)
        elif kind == child_protocol.LOG:
            log_setup.write_line(body)
            if self._last is not None and self._last.on_output is not None:
                self._last.on_output(body.decode("utf-8", "replace"))
        elif kind == child_protocol.STARTED:
            self._started = True
            self._pool.on_child_started()
        elif kind == child_protocol.UNUSABLE:
            self._unusable = body.decode("utf-8", "replace")

    def _on_outcome(self, execution: ChildExecution, body: bytes) -> None:
        if self._output is not None:
            self._output.drain()
        outcome = child_protocol.decode_outcome(body)
        if self._unstored is not None and outcome.result.is_success:
            found = replace(outcome.result, unstored=self._unstored)
            outcome = outcome._replace(result=found)
            self._unstored = None
        leftover = "" if self._pool.settings.keep_leftovers else outcome.leftover
        if leftover and not execution.cancelled:
            log.warning(
                "child.replaced",
                reason=leftover,
                hint="the next attempt must not meet it: end it in the handler, or start or open "
                "it in an @on_start hook",
                pid=self._process.pid,
                **execution.attempt.log_fields,
            )
        if leftover or execution.cancelled:
            # `done` is called when the process has ended: what was left behind runs until then.
            self._result_at_exit = outcome.result
            self._is_ending = True
            self._close_writing()
            return
        self.execution = None
        if self._exited:
            pass  # it sent this before it ended
        elif self._is_ending or self._is_worn_out(outcome.mib):
            self._is_ending = True
            self._close_writing()
        else:
            self._pool.idle.append(self)
        execution.done(outcome.result)

    def _is_worn_out(self, mib: float | None) -> bool:
        settings = self._pool.settings
        return (settings.max_tasks > 0 and self._served >= settings.max_tasks) or (
            settings.max_mib > 0 and mib is not None and mib > settings.max_mib
        )

    def _on_output(self, lines: list[str]) -> None:
        fields = {} if self._last is None else self._last.log_fields
        keep = None if self._last is None else self._last.on_output
        for text in merge_lines(lines):
            if keep is not None:
                keep(text)
            log.info("handler.output", text=text, pid=self._process.pid, **fields)

    # Its end.

    def _on_exit(self, status: ProcessExit) -> None:
        """Finish its attempt: the process has ended, and its process group."""
        self._exited = True
        while self._read_remaining():
            pass
        self._close()
        failed_to_start = self._has_failed_to_start(status)
        execution, self.execution = self.execution, None
        if failed_to_start:
            self._pool.on_start_failed(self._start_failure(status), execution, self._unusable)
        elif execution is not None:
            execution.done(self._exit_result(execution, status))
        elif not self._is_ending:
            how = describe_exit(status, self._pool.kills)
            log.warning("child.died", reason=f"it {how}", pid=self._process.pid)

    def _has_failed_to_start(self, status: ProcessExit) -> bool:
        """Whether it ended in a start hook, of its own: that says nothing about its attempt."""
        if self._started or self._killed or self._is_ending or status.lost or status.error:
            return False
        return self.execution is None or not self.execution.cancelled

    def _start_failure(self, status: ProcessExit) -> str:
        if self._unusable:
            return self._unusable.rstrip().rpartition("\n")[2]
        return f"its process {describe_exit(status, self._pool.kills)}"

    def _read_remaining(self) -> bool:
        """Handle what a dead child has left in the connection; False: that was all."""
        try:
            data = self._connection.recv(child_protocol.CHUNK_BYTES)
        except OSError:  # nothing, or it is closed already
            return False
        self._on_data(data)
        return bool(data)

    def _exit_result(self, execution: ChildExecution, status: ProcessExit) -> AttemptResult:
        seconds = self._pool.loop.time() - execution.begun_at
        if self._result_at_exit is not None:
            return self._result_at_exit
        if status.lost:
            return AttemptResult(seconds=seconds, lost="the fork server died, and its children")
        if self._over_mib is not None:
            return over_limit(self._over_mib, execution.limit_mib, seconds)
        if self._nonsense:
            reason = (
                f"something in the child process wrote to its connection ({self._nonsense}), and "
                "it was killed: leave file descriptors alone that the handler has not opened"
            )
            return failure("ChildDied", reason, seconds)
        if execution.cancelled:
            return failure("Cancelled", "it was cancelled and its process was killed", seconds)
        return failure(
            "ChildDied", f"the child process {describe_exit(status, self._pool.kills)}", seconds
        )

    def _close_writing(self) -> None:
        """Close our direction of the connection: the child calls its stop hooks and ends."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_WR)
        self._remove_from_idle()
        self._expect_end(self._pool.settings.kill_grace_seconds)

    def _expect_end(self, seconds: float) -> None:
        """Kill it unless it ends in time; of several times the first counts."""
        if not self._exited:
            self._pool.deadlines.set_first(self, self._pool.loop.time() + seconds)

    def _remove_from_idle(self) -> None:
        if self in self._pool.idle:
            self._pool.idle.remove(self)

    def _close(self) -> None:
        if self._connection.fileno() >= 0:
            self._pool.loop.remove_reader(self._connection)
            self._pool.loop.remove_writer(self._connection)
            self._connection.close()
        if self._output is not None:
            self._output.close()
        self._pool.remove_child(self)

    # Sending.

    def _send(self, data: bytes) -> None:
        if self._unsent:
            self._unsent += data
            return
        try:
            sent = self._connection.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            return  # it has ended: the fork server reports that
        if sent < len(data):
            self._unsent = data[sent:]
            self._pool.loop.add_writer(self._connection, self._writable)

    def _writable(self) -> None:
        self._pool.loop.remove_writer(self._connection)
        data, self._unsent = self._unsent, b""
        self._send(data)
