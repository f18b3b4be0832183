"""The files through which a program and the worker exchange results and checkpoints."""

from __future__ import annotations

import asyncio
import os
import stat
from pathlib import Path

from taskqueue.worker.checkpoints import WRITTEN_BYTES, TextCheckpoint

#: How often a checkpoint file is read, in seconds.
_READ_SECONDS = 1.0


def read_file(path: Path, limit: int) -> bytes:
    """Return the contents of a file, without space around them; b"" without a file.

    Args:
        path: of the file.
        limit: in bytes; of a longer file only the beginning is returned, by which that shows.

    Raises:
        OSError: it is not a file, or cannot be read.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return b""
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError("not a file")  # reading a pipe would block
        return os.read(fd, limit + 1).strip()
    finally:
        os.close(fd)


class CheckpointFile:
    """Writes the last checkpoint of an attempt to a file, and saves what its program writes there.

    Half of a file that is being written is never taken for a checkpoint: the beginning of a JSON
    object is none, and an empty file counts as no file.

    Args:
        path: of the file; absent without a checkpoint.
        checkpoint: of the attempt.
        loop: everything here is called on it.
    """

    def __init__(
        self, path: Path, checkpoint: TextCheckpoint, loop: asyncio.AbstractEventLoop
    ) -> None:
        self.path = path
        self._checkpoint = checkpoint
        self._loop = loop
        self._timer: asyncio.TimerHandle | None = None
        #: What it contained the last time, or why it could not be read.
        self._seen: bytes | str = b""

    def open(self) -> None:
        """Write the last checkpoint, and read the file from now on.

        Raises:
            OSError: it cannot be written.
        """
        if last := self._checkpoint.last:
            self.path.write_bytes(last)
            self._seen = last
        self._set_timer()

    def save_changes(self) -> None:
        """Save what is in the file now, unless that was done."""
        try:
            seen: bytes | str = read_file(self.path, WRITTEN_BYTES)
        except OSError as error:
            seen = f"the file TASKQUEUE_CHECKPOINT_FILE cannot be read: {error}"
        if seen == self._seen:
            return
        self._seen = seen
        if isinstance(seen, str):
            self._checkpoint.refuse(seen)
        elif seen:
            self._checkpoint.save(seen)

    def close(self) -> None:
        """Read the file no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _set_timer(self) -> None:
        self._timer = self._loop.call_later(_READ_SECONDS, self._on_timer)

    def _on_timer(self) -> None:
        self._set_timer()
        self.save_changes()
