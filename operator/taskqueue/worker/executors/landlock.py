"""Keeps a process, and all that it starts, from reading the files of a directory.

Landlock lets an unprivileged process give up access for good. It knows only what stays allowed, so
everything beside the directory is listed: the other entries of the directories above it. What is
created among those entries later could not be read, hence the conditions of `hide_directory`.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

#: The same numbers on all architectures.
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_ASK_VERSION, _PATH_BENEATH = 1, 1
_READ_FILE, _REFER = 1 << 2, 1 << 13
#: The first that can allow files to be moved between directories.
_LEAST_VERSION = 2
_PR_GET_NO_NEW_PRIVS = 39


def hide_directory(directory: str) -> str:
    """Let this process, and those that it starts from now on, read no file in a directory.

    It must have a single thread. Nothing is hidden where that could break what a program does:
    where it may gain privileges (Landlock would rule that out), or write into a directory above.

    Returns:
        Why nothing is hidden; "": it is.
    """
    if sys.platform != "linux" or not Path(directory).is_dir():
        return "there is no such directory"
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) != 1:
        return "the container allows privilege escalation"
    if _call(libc, _CREATE_RULESET, None, 0, _ASK_VERSION) < _LEAST_VERSION:
        return "the kernel does not offer Landlock"
    hidden = Path(directory).resolve()
    writable = [str(above) for above in hidden.parents if os.access(above, os.W_OK)]
    if writable:
        return f"the user of the container may write into {writable[-1]}"
    try:
        _restrict(libc, hidden)
    except OSError as problem:
        return f"{problem.filename or 'Landlock'}: {problem.strerror}"
    return ""


def _restrict(libc: ctypes.CDLL, hidden: Path) -> None:
    attributes = struct.pack("=Q", _READ_FILE | _REFER)
    ruleset = _checked(_call(libc, _CREATE_RULESET, attributes, len(attributes), 0))
    try:
        _allow(libc, ruleset, Path("/"), _REFER)
        for path in _beside(hidden):
            _allow(libc, ruleset, path, _READ_FILE)
        _checked(_call(libc, _RESTRICT_SELF, ruleset, 0))
    finally:
        os.close(ruleset)


def _beside(hidden: Path) -> Iterator[Path]:
    """Return everything but a directory: what lies in those above it."""
    for inner in (hidden, *hidden.parents):
        if inner != inner.parent:
            yield from (path for path in inner.parent.iterdir() if path != inner)


def _allow(libc: ctypes.CDLL, ruleset: int, path: Path, access: int) -> None:
    with _opened(path) as fd:
        if fd is not None:
            rule = struct.pack("=Qi", access, fd)
            _checked(_call(libc, _ADD_RULE, ruleset, _PATH_BENEATH, rule, 0))


@contextmanager
def _opened(path: Path) -> Iterator[int | None]:
    """Return a descriptor that names a path; None: it is a link, or gone."""
    try:
        fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        yield None
        return
    try:
        yield None if path.is_symlink() else fd
    finally:
        os.close(fd)


def _call(libc: ctypes.CDLL, number: int, *arguments: int | bytes | None) -> int:
    """Make a system call; -1: it failed, and `ctypes.get_errno` says why."""
    words = (ctypes.c_long(each) if isinstance(each, int) else each for each in arguments)
    return int(libc.syscall(ctypes.c_long(number), *words))


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
