"""The processes that this one has started, and what they have started: to list and end them.

A process that is a subreaper inherits what its descendants leave behind, wherever those went: in
another process group, in a session of their own, forked twice. So its children are all there is to
end, one generation after the other. Linux only.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Collection

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36

#: Between two looks at processes that were killed, in seconds.
_PAUSE_SECONDS = 0.001


def become_subreaper() -> None:
    """Inherit the orphans of our descendants; programs that we become by an exec go on doing so."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def signal_at_death_of_parent(number: int) -> None:
    """Have the kernel send us a signal when our parent dies."""
    _prctl(_PR_SET_PDEATHSIG, number)


def has_children() -> bool:
    """Whether there are any, dead ones that nobody has waited for included."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def children() -> set[int]:
    """Return the process ids of our children, dead ones that nobody has waited for included."""
    try:
        return {
            int(pid)
            for thread in os.listdir("/proc/self/task")
            for pid in _read(f"/proc/self/task/{thread}/children").split()
        }
    except (FileNotFoundError, ProcessLookupError):
        # A kernel without CONFIG_PROC_CHILDREN, or a thread has ended since it was listed.
        return _children_by_parent()


def end_children(keep: Collection[int], seconds: float) -> tuple[int, set[int]]:
    """Kill our children, and what they leave to us, until there are none.

    Args:
        keep: process ids that are not touched.
        seconds: how long that may take; longer only while the kernel itself holds a process.

    Returns:
        How many were running, and those that are left.
    """
    until = time.monotonic() + seconds
    running: set[int] = set()
    while True:
        found = children().difference(keep)
        left = {pid for pid in found if not _reap(pid)}
        if time.monotonic() > until or not found:
            return len(running), left
        if not left:
            continue  # what these have left behind may have come to us since we looked
        running |= left
        for pid in left:
            # Not reaped, so nobody else can have this number.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(_PAUSE_SECONDS)


def _reap(pid: int) -> bool:
    """Return whether a child has ended, and nobody needs to wait for it any more."""
    try:
        return os.waitpid(pid, os.WNOHANG)[0] != 0
    except ChildProcessError:
        return True


def _children_by_parent() -> set[int]:
    found = set()
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if int(_read(f"/proc/{name}/stat").rpartition(")")[2].split()[1]) == os.getpid():
                found.add(int(name))
    return found


def _read(path: str) -> str:
    with open(path, encoding="ascii", errors="replace") as file:
        return file.read()


def _prctl(option: int, value: int) -> None:
    import ctypes  # not in the worker, whose start must be fast

    # Where the kernel does not know it, closed connections have the same effect, later.
    ctypes.CDLL(None).prctl(option, value, 0, 0, 0)
