"""The worker's side of the fork server: asks it for processes, and starts it anew when it dies.

Everything is called on the worker's loop and nothing blocks. Processes of a fork server that died
are killed by the kernel; they are reported as lost, by no fault of what ran in them.
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
from taskqueue.logs import EventLog
from taskqueue.worker.executors.fork_server import PACKET_BYTES
from taskqueue.worker.executors.fork_server_launcher import ForkServerHandle

log = EventLog("taskqueue.worker")

#: What a dead fork server has left is looked at this often, and for this long, in seconds.
_LOOK_SECONDS = 0.02
_GROUP_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class ProcessExit:
    """How a process ended.

    Attributes:
        code: its exit code; negative: the number of the signal that ended it.
        lost: it went with the fork server; the code says nothing.
        problem: it could not be made, and why; the code says nothing.
    """

    code: int = 0
    lost: bool = False
    problem: str = ""


class SpawnedProcess:
    """A process asked for; it may not be made yet.

    Attributes:
        pid: 0 until it is made.
    """

    __slots__ = ("_spawner", "identity", "on_ended", "pid")

    def __init__(
        self, spawner: ProcessSpawner, identity: int, on_ended: Callable[[ProcessExit], None]
    ) -> None:
        self._spawner = spawner
        self.identity = identity
        self.on_ended = on_ended
        self.pid = 0

    def terminate(self) -> None:
        """Send it SIGTERM; harmless when it has ended."""
        self._spawner.ask(["signal", self.identity, int(signal.SIGTERM)])

    def kill(self) -> None:
        """Send SIGKILL to it and its process group; harmless when it has ended."""
        self._spawner.ask(["kill", self.identity])


class ProcessSpawner:
    """Keeps one fork server.

    Args:
        launched: the first one.
        relaunch: starts another; see `taskqueue.worker.executors.fork_server_launcher`.
        loop: everything here is called on it.
    """

    def __init__(
        self,
        launched: ForkServerHandle,
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
        #: The present fork server has made a process.
        self._fruitful = False
        self._backoff = Backoff()
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False
        self._attach(launched)

    @property
    def pid(self) -> int:
        """The fork server's process id; 0 while there is none."""
        return self._pid

    def child(self, fds: Sequence[int], on_ended: Callable[[ProcessExit], None]) -> SpawnedProcess:
        """Have a process made for handlers.

        Args:
            fds: its connection, and where its output goes, if anywhere. They are closed here.
            on_ended: called once, never from within.
        """
        return self._make(["child", self._next()], fds, on_ended)

    def command(
        self,
        argv: Sequence[str],
        environment: Mapping[str, str],
        fds: Sequence[int],
        on_ended: Callable[[ProcessExit], None],
    ) -> SpawnedProcess:
        """Have a process made that runs a program.

        Args:
            argv: program and arguments.
            environment: what it has besides the worker's own.
            fds: stdin, stdout, stderr. They are closed here.
            on_ended: called once, never from within.
        """
        return self._make(["command", self._next(), list(argv), dict(environment)], fds, on_ended)

    def ask(self, request: list[object], fds: Sequence[int] = ()) -> None:
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

    def _next(self) -> int:
        self._last += 1
        return self._last

    def _make(
        self, request: list[object], fds: Sequence[int], on_ended: Callable[[ProcessExit], None]
    ) -> SpawnedProcess:
        process = SpawnedProcess(self, self._last, on_ended)
        self._processes[process.identity] = process
        if len(orjson.dumps(request)) > PACKET_BYTES:
            _close(fds)
            self._loop.call_soon(
                self._ended,
                process.identity,
                ProcessExit(problem="its arguments and environment are too long"),
            )
        else:
            self.ask(request, fds)
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
                return  # it is gone: seen when we read
            self._waiting.popleft()
            _close(fds)

    def _writable(self) -> None:
        if self._control is not None:
            self._loop.remove_writer(self._control)
        self._send()

    def _attach(self, launched: ForkServerHandle) -> None:
        self._control, self._pid = launched.control, launched.pid
        self._fruitful = False
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
                self._died()
                return
            self._reported(orjson.loads(data))

    def _reported(self, report: list[object]) -> None:
        match report:
            case ["made", int(identity), int(pid)]:
                if not self._fruitful:
                    self._fruitful = True
                    self._backoff.reset()
                if identity in self._processes:
                    self._processes[identity].pid = pid
            case ["ended", int(identity), int(code)]:
                self._ended(identity, ProcessExit(code))
            case ["failed", int(identity), str(why)]:
                self._ended(identity, ProcessExit(problem=why))

    def _ended(self, identity: int, ended: ProcessExit) -> None:
        process = self._processes.pop(identity, None)
        if process is not None:
            process.on_ended(ended)

    def _died(self) -> None:
        """Its connection is closed: it has died, and the kernel kills what it has made."""
        self._detach()
        pid, self._pid = self._pid, 0
        # Requests that wait are for the next one, but for what the dead one had made.
        asked = {orjson.loads(data)[1] for data, fds in self._waiting if fds}
        lost = [each for each in self._processes if each not in asked]
        log.error(
            "forkserver.died",
            reason=_how(pid),
            lost=len(lost),
            todo="another is started; the broker delivers again what ran in processes",
        )
        for identity in lost:
            self._see_out(identity, self._processes[identity].pid, self._loop.time())
        if self._fruitful:
            self._again()
        else:
            self._again_later()

    def _see_out(self, identity: int, pid: int, since: float) -> None:
        """Report a process of a dead fork server once it and its group are gone."""
        if pid and _kill_group(pid) and self._loop.time() < since + _GROUP_SECONDS:
            self._loop.call_later(_LOOK_SECONDS, self._see_out, identity, pid, since)
        else:
            self._loop.call_soon(self._ended, identity, ProcessExit(lost=True))

    def _again_later(self) -> None:
        self._timer = self._loop.call_later(self._backoff.next_delay(), self._again)

    def _again(self) -> None:
        self._timer = None
        if self._closed:
            return
        try:
            self._attach(self._relaunch())
        except OSError as problem:
            log.error("forkserver.failed", reason=str(problem), todo="it is tried again")
            self._again_later()


def _how(pid: int) -> str:
    """Reap the fork server, which is our own child, and say how it ended."""
    try:
        # Its sockets are closed a moment before it has ended: it is not waited for any longer.
        _, status = os.waitpid(pid, 0)
    except ChildProcessError:
        return "its connection is closed"
    code = os.waitstatus_to_exitcode(status)
    return f"it was ended by {signal.Signals(-code).name}" if code < 0 else f"it exited with {code}"


def _kill_group(pid: int) -> bool:
    """Kill what a process of a dead fork server has left; return whether something is left."""
    with contextlib.suppress(ChildProcessError):
        # Process 1 inherits orphans; of these we know that they are ours.
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
