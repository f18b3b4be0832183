"""Reads the standard output and error of processes line by line, on the worker's loop.

However fast they write, the loop has other work: it reads a bounded part of each pipe in a turn,
merges lines that arrive too fast (`merge_lines`), and makes faster writers wait. It does not wait
for a process that goes on writing after the attempt, such as one that left its process group.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import fcntl
import os
import termios
from collections.abc import Callable, Iterable

#: A longer line is split into pieces of this many bytes, unless another length is given.
LINE_BYTES = 16_384

#: Read in one turn of the loop.
_TURN_BYTES = 16_384

#: More lines than these at once are merged: a line of the log costs some 50 µs.
_LINES = 400


def merge_lines(lines: list[str]) -> list[str]:
    """Return the lines to log, each by itself; very many are merged into blocks of lines."""
    if len(lines) <= _LINES:
        return lines
    blocks: list[list[str]] = []
    room = 0
    for line in lines:
        if len(line) >= room:
            blocks.append([])
            room = LINE_BYTES
        blocks[-1].append(line)
        room -= len(line) + 1
    return ["\n".join(block) for block in blocks]


class OutputPipe:
    """Reads lines from a pipe that processes write to.

    Args:
        loop: ``on_lines`` is called on it.
        on_lines: called with the lines read at once, without line ends and empty lines.
        line_bytes: a longer line is split into pieces of this many bytes.

    Attributes:
        last_line: the last line that is not blank, as it was written; of one longer than
            ``line_bytes`` the beginning, which is longer than that too.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        on_lines: Callable[[list[str]], None],
        *,
        line_bytes: int = LINE_BYTES,
    ) -> None:
        self._line_bytes = line_bytes
        self._loop = loop
        self._on_lines = on_lines
        self.last_line = b""
        self._rest = bytearray()
        #: The first piece of a long line that has not ended yet.
        self._first_piece = b""
        self._size = array.array("i", [0])
        self._reading, self.writing = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._reading, False)
        loop.add_reader(self._reading, self._readable)

    def drain(self) -> None:
        """Emit now what has been written so far."""
        if self._reading < 0:
            return
        fcntl.ioctl(self._reading, termios.FIONREAD, self._size)
        # No more than that: the writer may never stop.
        left = self._size[0]
        while left > 0:
            left -= self._read_lines(min(left, _TURN_BYTES))

    def close(self) -> None:
        """Emit what has been written, with a last line that has no end, and close."""
        if self._reading < 0:
            return
        self.drain()
        self._emit([self._end_line()])
        self._rest.clear()
        self._loop.remove_reader(self._reading)
        os.close(self._reading)
        self._reading = -1

    def _readable(self) -> None:
        with contextlib.suppress(BlockingIOError):
            if not self._read_lines(_TURN_BYTES):
                # Every process that could write to it has ended. The owner closes this.
                self._loop.remove_reader(self._reading)

    def _read_lines(self, size: int) -> int:
        """Read at most ``size`` bytes and emit the lines they end; return how many were read."""
        data = os.read(self._reading, size)
        first, *others = data.split(b"\n")
        lines = []
        self._rest += first
        for line in others:
            lines.append(self._end_line())
            self._rest = bytearray(line)
        while len(self._rest) > self._line_bytes:
            piece = bytes(self._rest[: self._line_bytes])
            self._first_piece = self._first_piece or piece
            lines.append(piece)
            del self._rest[: self._line_bytes]
        self._emit(lines)
        return len(data)

    def _end_line(self) -> bytes:
        """Return the rest of the line that ends here."""
        rest = bytes(self._rest)
        line = self._first_piece + rest
        self._first_piece = b""
        if line.strip():
            self.last_line = line
        return rest

    def _emit(self, lines: Iterable[bytes]) -> None:
        size = self._line_bytes
        pieces = (
            line[begin : begin + size].decode("utf-8", "replace").rstrip("\r")
            for line in lines
            for begin in range(0, len(line), size)
        )
        if found := [piece for piece in pieces if piece]:
            self._on_lines(found)
