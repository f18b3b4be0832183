"""The fork server: a process that has imported the user's modules and only forks others.

The worker has threads and connections, and a process forked from it would inherit locks held by
threads it does not have. This one has a single thread and runs no user code but imports. It makes
processes on request, signals them, reports how they ended, and ends them all when the worker ends.

Requests and reports are JSON arrays, one in a packet, over a socket pair:

* ``["child", id]`` with file descriptors (connection, output?), ``["command", id, argv,
  environment]`` with (stdin, stdout, stderr): make a process. ``["made", id, pid]`` or
  ``["failed", id, why]`` comes back.
* ``["signal", id, number]``: to the process; ``["kill", id]``: SIGKILL to its process group.
* ``["ended", id, code]``: it and what it has started have ended; a negative code is a signal's.

Each process leads a process group of its own, in another session than the worker's: what a terminal
or an init process sends to the worker's group does not reach it. The kernel kills it if this
process dies. Each is the subreaper of what it starts, and this process of them all: what a process
leaves behind, in whichever group or session, comes to us when it ends, and is killed. The worker
inherits no orphan.
"""

from __future__ import annotations

import contextlib
import gc
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NoReturn

import orjson

from taskqueue import logs
from taskqueue.exact_json import decode_own
from taskqueue.worker import log_setup
from taskqueue.worker.executors import child, descendants, landlock
from taskqueue.worker.executors.process_state import text_stream
from taskqueue.worker.sdk import HandlerRegistry

log = logs.EventLog("taskqueue.worker")

#: Prefixes of the variables with the worker's broker, and its store of results.
_SECRET_PREFIXES = ("TASKQUEUE_BROKER_", "TASKQUEUE_RESULTS_")

#: Largest request in bytes: a command's arguments and environment.
PACKET_BYTES = 131_072

#: How long the members of a killed process group may take to end, in seconds: longer only while the
#: kernel itself holds them.
_GROUP_SECONDS = 1.0

_HANDLED = (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@dataclass(slots=True)
class _EndedProcess:
    """A process that has ended while its group has not."""

    identity: int
    code: int
    until: float


class ForkServer:
    """Forks processes for one worker, until that ends.

    Args:
        control: the connection to the worker.
        registry: has the handlers.
        report_memory: children report how much memory they hold.
        hidden_directories: whose files none of the processes shall read, where that is possible.
    """

    def __init__(
        self,
        control: socket.socket,
        registry: HandlerRegistry,
        *,
        report_memory: bool,
        hidden_directories: Sequence[str] = (),
    ) -> None:
        self._control = control
        self._registry = registry
        self._report_memory = report_memory
        self._hidden_directories = hidden_directories
        self._worker = os.getppid()
        self._identities: dict[int, int] = {}
        self._pids: dict[int, int] = {}
        self._ending: dict[int, _EndedProcess] = {}
        self._wake: tuple[int, int] = (-1, -1)
        #: Processes that importing the modules has started.
        self._inherited: set[int] = set()

    def serve(self) -> NoReturn:
        """Handle requests until the worker closes the connection or dies."""
        try:
            self._prepare()
            poll = select.poll()
            poll.register(self._control, select.POLLIN)
            poll.register(self._wake[0], select.POLLIN)
            while os.getppid() == self._worker:
                # Only the groups of ended processes are polled.
                poll.poll(10 if self._ending else None)
                self._drain_wakeups()
                self._reap()
                if not self._handle_requests():
                    break
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            self._kill_all()
            os._exit(0)

    def _prepare(self) -> None:
        os.setsid()
        die_with_parent(self._worker, signal.SIGTERM)
        descendants.become_subreaper()
        self._inherited = descendants.children()
        self._hide_credentials()
        with open(os.devnull) as nothing:
            os.dup2(nothing.fileno(), 0)
        self._wake = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(self._wake[1], warn_on_full_buffer=False)
        for number in _HANDLED:
            # None of them ends us: we end when the worker does.
            signal.signal(number, lambda number, frame: None)
        self._control.setblocking(False)
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(AttributeError, OSError, ValueError):
                stream.flush()
                # Lines of a handler belong to the attempt that wrote them.
                stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
        # The objects that exist now are never garbage: collecting would only copy their pages.
        gc.collect()
        gc.freeze()

    def _hide_credentials(self) -> None:
        for directory in self._hidden_directories:
            why = landlock.hide_directory(directory)
            if why:
                log.info(
                    "credentials.readable",
                    directory=directory,
                    reason=why,
                    hint="what attempts run can read the worker's credentials there: see "
                    "Credentials and attempts in docs/workers.md",
                )

    def _drain_wakeups(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while os.read(self._wake[0], 512):
                pass

    def _handle_requests(self) -> bool:
        """Handle the requests that have arrived; False: the worker has ended."""
        while True:
            try:
                data, fds, _, _ = socket.recv_fds(self._control, PACKET_BYTES, 3)
            except (BlockingIOError, InterruptedError):
                return True
            except OSError:
                return False
            if not data:
                return False
            for fd in fds:
                os.set_inheritable(fd, False)
            self._handle_request(decode_own(data), fds)

    def _handle_request(self, request: list[object], fds: list[int]) -> None:
        match request:
            case ["child", int(identity)]:
                self._fork(identity, fds, lambda: self._become_child(fds))
            case ["command", int(identity), list(argv), dict(environment)]:
                self._fork(identity, fds, lambda: _become_command(argv, environment, fds))
            case ["signal", int(identity), int(number)]:
                if identity in self._pids:
                    os.kill(self._pids[identity], number)
            case ["kill", int(identity)]:
                if identity in self._pids:
                    _kill_group(self._pids[identity])

    def _fork(self, identity: int, fds: list[int], become: Callable[[], NoReturn]) -> None:
        # A signal between the fork and the child's own handlers would end it, or wake us.
        signal.pthread_sigmask(signal.SIG_BLOCK, _HANDLED)
        server = os.getpid()
        try:
            pid = os.fork()
        except OSError as problem:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _HANDLED)
            self._report(["failed", identity, problem.strerror or str(problem)])
        else:
            if pid == 0:
                self._detach_from_server(server)
                try:
                    become()
                except BaseException:
                    sys.excepthook(*sys.exc_info())
                finally:
                    os._exit(child.EXIT_UNUSABLE)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _HANDLED)
            with contextlib.suppress(OSError):
                os.setpgid(pid, pid)  # the process does it too; either may be first
            self._identities[pid] = identity
            self._pids[identity] = pid
            self._report(["made", identity, pid])
        for fd in fds:
            os.close(fd)

    def _detach_from_server(self, server: int) -> None:
        """In a process just forked: become independent of this one, except of its death."""
        os.setpgid(0, 0)
        die_with_parent(server, signal.SIGKILL)
        descendants.become_subreaper()
        signal.set_wakeup_fd(-1)
        for number in _HANDLED:
            signal.signal(number, signal.SIG_DFL)
        os.close(self._wake[0])
        os.close(self._wake[1])
        self._control.close()

    def _become_child(self, fds: list[int]) -> NoReturn:
        connection, *output = fds
        for fd in output:
            log_setup.keep_outputs({out: text_stream(os.dup(out)) for out in (1, 2)})
            os.dup2(fd, 1)
            os.dup2(fd, 2)
            os.close(fd)
            sys.stdout, sys.stderr = text_stream(1), text_stream(2)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, set(_HANDLED) - {signal.SIGTERM})
        child.serve(
            socket.socket(fileno=connection), self._registry, report_memory=self._report_memory
        )

    def _reap(self) -> None:
        while True:
            try:
                # Not reaped yet: while it is a zombie no other process can get its number.
                found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                break
            if found is None:
                break
            pid = found.si_pid
            if pid in self._identities:
                _kill_group(pid)
            _, status = os.waitpid(pid, 0)
            if pid in self._identities:
                identity = self._identities.pop(pid)
                del self._pids[identity]
                until = time.monotonic() + _GROUP_SECONDS
                self._ending[pid] = _EndedProcess(
                    identity, os.waitstatus_to_exitcode(status), until
                )
        if not self._ending:
            return
        left = self._kill_orphans()
        for pid, ending in list(self._ending.items()):
            if not (left or _group_exists(pid)) or time.monotonic() > ending.until:
                del self._ending[pid]
                self._report(["ended", ending.identity, ending.code])

    def _kill_orphans(self) -> bool:
        """Kill what processes that ended have left to us; return whether there was anything.

        While they run they are subreapers themselves: what they have started is not ours before.
        """
        known = self._inherited.union(self._identities)
        orphans = descendants.children() - known
        for pid in orphans:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        return bool(orphans)

    def _report(self, report: list[object]) -> None:
        # The worker always reads; if it does not, it is stopped, and we wait with it.
        data = orjson.dumps(report)
        while True:
            try:
                self._control.send(data)
            except BlockingIOError:
                select.select([], [self._control], [])
            except OSError:
                return  # it has ended: the next read says so
            else:
                return

    def _kill_all(self) -> None:
        for pid in self._identities:
            _kill_group(pid)
        # What has left its group is left to us when its parents end: nothing outlives us.
        descendants.end_children((), _GROUP_SECONDS)


def die_with_parent(parent: int, number: int) -> None:
    """Have the kernel send us a signal when our parent dies; end now if it has died already."""
    descendants.signal_at_death_of_parent(number)
    if os.getppid() != parent:
        os._exit(child.EXIT_CUT_OFF)


def _become_command(argv: list[str], environment: dict[str, str], fds: list[int]) -> NoReturn:
    for number, fd in enumerate(fds):
        os.dup2(fd, number)
    # What Python ignores for itself, a program it starts must not.
    for ignored in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(ignored, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _HANDLED)
    # Their passwords are the worker's: a program must not have them.
    own = {name: text for name, text in os.environ.items() if not name.startswith(_SECRET_PREFIXES)}
    try:
        os.execvpe(argv[0], argv, {**own, **environment})  # noqa: S606 - that is its job
    except OSError as problem:
        os.write(2, f"cannot run {argv[0]!r}: {problem.strerror}\n".encode())
        os._exit(127 if isinstance(problem, FileNotFoundError) else 126)


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def _group_exists(pid: int) -> bool:
    try:
        os.killpg(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
