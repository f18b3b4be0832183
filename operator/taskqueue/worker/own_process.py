"""Keeps what is the worker's own, its credentials, from the processes that it starts.

They run as the same user in the same container, so by themselves they could read the worker's
memory, and the environment that its container was started with, from ``/proc``. Linux only.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable

_PR_SET_DUMPABLE = 4


def hide_process() -> None:
    """Let no other process of our user look into this one, nor into those forked from it.

    The kernel then refuses them our memory, environment and open files in ``/proc``. A program that
    we become by an exec is visible again. Core dumps are not written.
    """
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def wipe_variables(names: Iterable[str]) -> None:
    """Remove environment variables, also from the memory that ``/proc/<pid>/environ`` shows.

    Processes forked from this one have a copy of that memory, and may look into themselves.
    """
    wanted = {name.encode() for name in names if name in os.environ}
    if not wanted:
        return
    if sys.platform == "linux":
        _overwrite(wanted)
    for name in wanted:
        os.environb.pop(name, None)


def _overwrite(names: set[bytes]) -> None:
    import ctypes

    entries = ctypes.POINTER(ctypes.c_void_p).in_dll(ctypes.CDLL(None), "environ")
    index = 0
    while address := entries[index]:
        name, _, value = ctypes.string_at(address).partition(b"=")
        if name in names:
            ctypes.memset(address + len(name) + 1, 0, len(value))
        index += 1
