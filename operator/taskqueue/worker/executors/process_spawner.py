"""The worker's side of the fork server: requests processes, and replaces a server that died.

Everything is called on the worker's loop and nothing blocks. Processes of a fork server that died
are killed by the kernel; they are reported as lost, which is not the fault of what ran in them.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import orjson

from taskqueue.backoff import Backoff
from taskqueue.exact_json import decode_own
from taskqueue.logs import EventLog
from taskqueue.worker.executors.fork_server import PACKET_BYTES
from taskqueue.worker.executors.fork_server_launcher import ForkServerHandle

log = EventLog("taskqueue.worker")

#: How often, and for how long, the process groups of a dead fork server are checked, in seconds.
_GROUP_CHECK_SECONDS = 0.02
_GROUP_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class ProcessExit:
    """How a process ended.

    Attributes:
        code: its exit code; negative: the number of the signal that ended it.
        lost: it ended with the fork server; the code means nothing.
        error: why it could not be made; the code means nothing.
    """

    code: int = 0
    lost: bool = False
    error: str = ""


class SpawnedProcess:
    """A process that was requested; it may not exist yet.

    Attributes:
        pid: 0 until it is made.
    """

    __slots__ = ("_spawner", "identity", "on_exit", "pid")

    def __init__(
        self, spawner: ProcessSpawner, identity: int, on_exit: Callable[[ProcessExit], None]
    ) -> None:
        self._spawner = spawner
        self.identity = identity
        self.on_exit = on_exit
        self.pid = 0

    def terminate(self) -> None:
        """Send it SIGTERM; harmless when it has ended."""
        self._spawner.send_request(["signal", self.identity, int(signal.SIGTERM)])

    def kill(self) -> None:
        """Send SIGKILL to it and its process group; harmless when it has ended."""
        self._spawner.send_request(["kill", self.identity])


class ProcessSpawner:
    """Makes processes through a fork server, which it replaces when it dies.

    Args:
        handle: the first fork server.
        relaunch: starts another; see `taskqueue.worker.executors.fork_server_launcher`.
        loop: everything here is called on it.
    """

    def __init__(
        self,
        handle: ForkServerHandle,
        relaunch: Callable[[], ForkServerHandle],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._loop = loop
        self._relaunch = relaunch
        self._control: socket.socket | None = None
        self._pid = 0
        self._processes: dict[int, SpawnedProcess] = {}
        self._last = 0
        #: Requests the socket had no room for, or that came while there was no fork server.
        self._waiting: deque[tuple[bytes, list[int]]] = deque()
        #: Whether the present fork server has made a process.
        self._has_spawned = False
        self._backoff = Backoff()
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False
        self._attach(handle)

    @property
    def pid(self) -> int:
        """The fork server's process id; 0 while there is none."""
        return self._pid

    def child(self, fds: Sequence[int], on_exit: Callable[[ProcessExit], None]) -> SpawnedProcess:
        """Request a process for handlers.

        Args:
            fds: its connection, and where its output goes, if anywhere. They are closed here.
            on_exit: called once, never inside this call.
        """
        return self._spawn(["child", self._next_identity()], fds, on_exit)

    def command(
        self,
        argv: Sequence[str],
        environment: Mapping[str, str],
        fds: Sequence[int],
        on_exit: Callable[[ProcessExit], None],
    ) -> SpawnedProcess:
        """Request a process that runs a program.

        Args:
            argv: program and arguments.
            environment: variables it has besides the worker's own.
            fds: stdin, stdout, stderr. They are closed here.
            on_exit: called once, never inside this call.
        """
        return self._spawn(
            ["command", self._next_identity(), list(argv), dict(environment)], fds, on_exit
        )

    def send_request(self, request: list[object], fds: Sequence[int] = ()) -> None:
        """Send a request; the file descriptors are closed when they are on their way."""
        self._waiting.append((orjson.dumps(request), list(fds)))
        self._send()

    def close(self) -> None:
        """End the fork server and, with it, every process that is left; nothing is reported."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        self._detach()
        for _, fds in self._waiting:
            _close(fds)
        self._waiting.clear()
        self._processes.clear()

    # Inside.

    def _next_identity(self) -> int:
        self._last += 1
        return self._last

    def _spawn(
        self, request: list[object], fds: Sequence[int], on_exit: Callable[[ProcessExit], None]
    ) -> SpawnedProcess:
        process = SpawnedProcess(self, self._last, on_exit)
        self._processes[process.identity] = process
        if len(orjson.dumps(request)) > PACKET_BYTES:
            _close(fds)
            self._loop.call_soon(
                self._on_ended,
                process.identity,
                ProcessExit(error="its arguments and environment are too long"),
            )
        else:
            self.send_request(request, fds)
        return process

    def _send(self) -> None:
        control = self._control
        if control is None:
            return
        while self._waiting:
            data, fds = self._waiting[0]
            try:
                if fds:
                    socket.send_fds(control, [data], fds)
                else:
                    control.send(data)
            except BlockingIOError:
                self._loop.add_writer(control, self._writable)
                return
            except OSError:
                return  # it has died: the next read says so
            self._waiting.popleft()
            _close(fds)

    def _writable(self) -> None:
        if self._control is not None:
            self._loop.remove_writer(self._control)
        self._send()

    def _attach(self, handle: ForkServerHandle) -> None:
        self._control, self._pid = handle.control, handle.pid
        self._has_spawned = False
        self._control.setblocking(False)
        self._loop.add_reader(self._control, self._readable)
        self._send()

    def _detach(self) -> None:
        if self._control is not None:
            self._loop.remove_reader(self._control)
            self._loop.remove_writer(self._control)
            self._control.close()
            self._control = None

    def _readable(self) -> None:
        while self._control is not None:
            try:
                data = self._control.recv(4096)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self._on_died()
                return
            self._on_report(decode_own(data))

    def _on_report(self, report: list[object]) -> None:
        match report:
            case ["made", int(identity), int(pid)]:
                if not self._has_spawned:
                    self._has_spawned = True
                    self._backoff.reset()
                if identity in self._processes:
                    self._processes[identity].pid = pid
            case ["ended", int(identity), int(code)]:
                self._on_ended(identity, ProcessExit(code))
            case ["failed", int(identity), str(why)]:
                self._on_ended(identity, ProcessExit(error=why))

    def _on_ended(self, identity: int, status: ProcessExit) -> None:
        process = self._processes.pop(identity, None)
        if process is not None:
            process.on_exit(status)

    def _on_died(self) -> None:
        """Replace the fork server, which has closed its connection."""
        self._detach()
        pid, self._pid = self._pid, 0
        # Waiting requests for new processes go to the next server; the dead one's processes do not.
        requested = {decode_own(data)[1] for data, fds in self._waiting if fds}
        lost = [identity for identity in self._processes if identity not in requested]
        log.error(
            "forkserver.died",
            reason=_describe_server_exit(pid),
            lost=len(lost),
            hint="another is started; the broker redelivers what ran in processes",
        )
        for identity in lost:
            self._report_lost(identity, self._processes[identity].pid, self._loop.time())
        if self._has_spawned:
            self._relaunch_server()
        else:
            self._schedule_relaunch()

    def _report_lost(self, identity: int, pid: int, since: float) -> None:
        """Report a process of a dead fork server once it and its group have ended."""
        if pid and _kill_group(pid) and self._loop.time() < since + _GROUP_SECONDS:
            self._loop.call_later(_GROUP_CHECK_SECONDS, self._report_lost, identity, pid, since)
        else:
            self._loop.call_soon(self._on_ended, identity, ProcessExit(lost=True))

    def _schedule_relaunch(self) -> None:
        self._timer = self._loop.call_later(self._backoff.next_delay(), self._relaunch_server)

    def _relaunch_server(self) -> None:
        self._timer = None
        if self._closed:
            return
        try:
            self._attach(self._relaunch())
        except OSError as error:
            log.error("forkserver.start_failed", error=str(error), hint="it is retried")
            self._schedule_relaunch()


def _describe_server_exit(pid: int) -> str:
    """Reap the fork server, which is our own child, and return how it ended."""
    try:
        # Its sockets close a moment before it has ended: this does not wait longer than that.
        _, status = os.waitpid(pid, 0)
    except ChildProcessError:
        return "its connection is closed"
    code = os.waitstatus_to_exitcode(status)
    return f"it was ended by {signal.Signals(-code).name}" if code < 0 else f"it exited with {code}"


def _kill_group(pid: int) -> bool:
    """Kill what a process of a dead fork server has left; return whether something is left."""
    with contextlib.suppress(ChildProcessError):
        # Process 1 inherits orphans; these are known to be ours.
        while os.waitpid(-pid, os.WNOHANG)[0]:
            pass
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _close(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)
