"""What an attempt may change in its child process, and what the next attempt must not see of it.

A child runs one attempt after the other. After each, this module

* restores what belongs to the process: timers, working directory, umask, environment, signal
  handlers and mask, resource limits, standard streams, priority, CPUs, Python's recursion limit;
* ends the processes that the attempt has started;
* says why the child must be replaced where neither is possible: threads and files that were left
  open, limits and priorities that only a privileged process may raise again.

As it was means: when the start hooks had run. What Python objects hold (modules, their caches,
``sys.path``, the set-up of logging) is not touched: that it stays is what children are reused for,
and so do connections, which handlers open once and use again.

Every attempt pays for this, so the usual case, in which nothing has changed, makes some sixteen
system calls and lists nothing.
"""

from __future__ import annotations

import contextlib
import faulthandler
import fcntl
import gc
import os
import signal
import socket
import stat
import sys
import threading
import time

# Those of `signal` make an enum of each signal, at several times the cost.
from _signal import getsignal, pthread_sigmask  # type: ignore[import-not-found]
from typing import Any, TextIO

from taskqueue.logs import EventLog
from taskqueue.worker.executors import descendants
from taskqueue.worker.outcome import describe_exception

log = EventLog("taskqueue.worker")

#: How long processes that an attempt has left may take to end once they are killed, in seconds.
_PROCESS_SECONDS = 1.0

#: How long threads that an attempt has left may take to end, in seconds: some are about to.
_THREAD_SECONDS = 0.05

_TIMERS = (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)

#: Those with a name; the real-time signals are for nobody else than who uses them.
_SIGNALS = tuple(
    sorted(
        int(number)
        for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}
        if number < signal.SIGRTMIN
    )
)


class ProcessState:
    """The state of this process when it is made; `restore` brings it back."""

    def __init__(self) -> None:
        self._environ = os.environ
        self._variables = dict(_variables())
        self._umask = os.umask(0)
        os.umask(self._umask)
        self._handlers = list(map(getsignal, _SIGNALS))
        self._mask = pthread_sigmask(signal.SIG_BLOCK, ())
        self._priority = os.getpriority(os.PRIO_PROCESS, 0)
        self._cpus = os.sched_getaffinity(0)
        self._limits = _limits()
        self._recursion_limit = sys.getrecursionlimit()
        self._stdin, self._stdout, self._stderr = sys.stdin, sys.stdout, sys.stderr
        self._processes = descendants.children() if descendants.has_children() else set()
        # From here on descriptors of our own are opened.
        self._folder: int | None = None
        with contextlib.suppress(OSError):  # it may have been removed
            self._folder = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._originals = [(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3), fd) for fd in range(3)]
        self._note_leftovers()

    def restore(self, **fields: Any) -> str:
        """Undo what an attempt has done to this process.

        Args:
            fields: of the attempt, for the log.

        Returns:
            Why this process must not run another attempt, or "".
        """
        problem = ""
        for _ in range(2):
            try:
                if sys.getrecursionlimit() != self._recursion_limit:
                    sys.setrecursionlimit(self._recursion_limit)
                # A signal of the attempt's may still be handled in here, the first time.
                return self._restore(fields)
            except BaseException as error:
                problem = f"its state cannot be restored: {describe_exception(error)}"
        return problem

    def _restore(self, fields: dict[str, Any]) -> str:
        reasons: list[str] = []
        if list(map(getsignal, _SIGNALS)) != self._handlers:
            reasons.append(self._restore_handlers())
        pthread_sigmask(signal.SIG_SETMASK, self._mask)
        if self._folder is not None:
            os.fchdir(self._folder)
        os.umask(self._umask)
        if os.environ is not self._environ or _variables() != self._variables:
            self._restore_environment()
        self._restore_streams()
        if os.sched_getaffinity(0) != self._cpus:
            os.sched_setaffinity(0, self._cpus)
        if "resource" in sys.modules:  # nobody else can have changed a limit
            reasons.append(self._restore_limits())
        if os.getpriority(os.PRIO_PROCESS, 0) != self._priority:
            reasons.append(self._restore_priority())
        if descendants.has_children():
            reasons.append(self._end_processes(fields))
        if (
            threading.active_count() != self._thread_count
            or _lowest_free_descriptor() != self._lowest_free
        ):
            reasons.append(self._leftovers())
        return "; ".join(filter(None, reasons)) if reasons else ""

    # What is restored.

    def _restore_handlers(self) -> str:
        changed = [
            (number, saved)
            for number, saved in zip(_SIGNALS, self._handlers, strict=True)
            if getsignal(number) is not saved
        ]
        for number, saved in changed:
            if saved is None:
                return f"it replaced the handler of {signal.strsignal(number)}, which is not Python"
            signal.signal(number, saved)
        if faulthandler.is_enabled():  # some of them were its
            faulthandler.disable()
            faulthandler.enable(file=2)
        return ""

    def _restore_environment(self) -> None:
        os.environ = self._environ  # noqa: B003 - the same object as before
        for name in _variables().keys() - self._variables.keys():
            del os.environb[name]
        for name, value in self._variables.items():
            os.environb[name] = value
        time.tzset()

    def _restore_streams(self) -> None:
        try:
            # What the attempt has written goes where it was to go.
            sys.stdout.flush()
            sys.stderr.flush()
        except (AttributeError, OSError, ValueError):  # whatever it has put there, or closed
            self._stdout = _open_again(self._stdout, 1)
            self._stderr = _open_again(self._stderr, 2)
        sys.stdin, sys.stdout, sys.stderr = self._stdin, self._stdout, self._stderr
        for original, fd in self._originals:
            os.dup2(original, fd)

    def _restore_limits(self) -> str:
        import resource

        for limit, saved in self._limits.items():
            if resource.getrlimit(limit) != saved:
                try:
                    resource.setrlimit(limit, saved)
                except (OSError, ValueError):
                    return "it lowered a hard resource limit"
        return ""

    def _restore_priority(self) -> str:
        try:
            os.setpriority(os.PRIO_PROCESS, 0, self._priority)
        except OSError:
            return "it lowered its priority"
        return ""

    # What is ended.

    def _end_processes(self, fields: dict[str, Any]) -> str:
        running, left = descendants.end_children(self._processes, _PROCESS_SECONDS)
        if running:
            log.warning(
                "handler.processes_ended",
                count=running,
                reason="the handler returned while processes that it had started were running",
                hint="wait for them, or start them in an @on_start hook",
                **fields,
            )
        return f"processes that it left do not end: {sorted(left)}" if left else ""

    # What can be neither.

    def _leftovers(self) -> str:
        """Return which threads and files are new, and take them for known from now on."""
        gc.collect()  # what an exception's frames still hold is about to go
        threads = [
            each
            for each in threading.enumerate()
            # Those of native libraries that have called Python are not ours to judge.
            if each not in self._threads and not isinstance(each, threading._DummyThread)
        ]
        until = time.monotonic() + _THREAD_SECONDS
        for thread in threads:
            thread.join(max(0.0, until - time.monotonic()))
        names = [each.name for each in threads if each.is_alive()]
        files = [_target(fd) for fd in _descriptors() - self._descriptors if _is_leftover(fd)]
        self._note_leftovers()
        reasons = []
        if names:
            reasons.append(f"it left threads running: {_shortened(names)}")
        if files:
            reasons.append(f"it left files open: {_shortened(files)}")
        return "; ".join(reasons)

    def _note_leftovers(self) -> None:
        self._threads = set(threading.enumerate())
        self._thread_count = threading.active_count()
        self._descriptors = _descriptors()
        self._lowest_free = _lowest_free_descriptor()


def stop_timers() -> None:
    """Stop the timers of an attempt, whose signals would reach whatever runs then."""
    for timer in _TIMERS:
        signal.setitimer(timer, 0)


def text_stream(fd: int) -> TextIO:
    """Return a stream that writes to a descriptor, flushed after every line."""
    return open(fd, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)


def _variables() -> dict[bytes, bytes]:
    """Return the environment itself: comparing the mapping decodes all of it, each time."""
    data: dict[bytes, bytes] = os.environb._data  # type: ignore[attr-defined]
    return data


def _limits() -> dict[int, tuple[int, int]]:
    """Return the resource limits; ``resource`` stays as unknown to `sys.modules` as before."""
    known = "resource" in sys.modules
    import resource

    names = {getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")}
    limits = {}
    for name in names:
        with contextlib.suppress(OSError, ValueError):
            limits[name] = resource.getrlimit(name)
    if not known:
        del sys.modules["resource"]
    return limits


def _open_again(stream: TextIO, fd: int) -> TextIO:
    return text_stream(fd) if stream.closed else stream


def _lowest_free_descriptor() -> int:
    """Return the number that the next descriptor gets; one that was left open raises it."""
    fd = os.dup(0)
    os.close(fd)
    return fd


def _descriptors() -> set[int]:
    """Return the open descriptors, without that of the listing itself."""
    return {fd for fd in map(int, os.listdir("/proc/self/fd")) if _is_open(fd)}


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def _is_leftover(fd: int) -> bool:
    """Whether an open descriptor is an attempt's own, not a connection that others may use."""
    mode = os.fstat(fd).st_mode
    if stat.S_ISSOCK(mode):
        return not _is_connected(fd)
    return stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISFIFO(mode)


def _is_connected(fd: int) -> bool:
    with socket.socket(fileno=os.dup(fd)) as copy:
        try:
            copy.getpeername()
        except OSError:
            return False
        return True


def _target(fd: int) -> str:
    with contextlib.suppress(OSError):
        return os.readlink(f"/proc/self/fd/{fd}")
    return f"descriptor {fd}"


def _shortened(names: list[str]) -> str:
    names = [name[:100] for name in sorted(names)]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
