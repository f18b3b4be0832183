"""What processes write to their standard output and error, line by line, on the worker's loop.

However fast they write, the loop has other things to do: it reads some of each pipe in a turn,
lines that come too fast are told together (`together`), and whoever writes faster still waits. A
process that writes on when nobody hears it any more, such as one that left its process group, is
not waited for.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import fcntl
import os
import termios
from collections.abc import Callable, Iterable

#: A longer line is told in pieces of this many bytes, unless another length is given.
LINE_BYTES = 16_384

#: Read in one turn of the loop.
_TURN_BYTES = 16_384

#: More lines than these at once are told together: a line of the log costs some 50 µs.
_LINES = 400


def together(lines: list[str]) -> list[str]:
    """Return what to log of lines that came at once: each by itself; of very many, blocks."""
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
    """The reading end of a pipe, and lines from it.

    Args:
        loop: lines are told on it.
        on_lines: called with the lines that came at once, without their ends and empty ones.
        line_bytes: a longer line is told in pieces of this many bytes.
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
        self._rest = bytearray()
        self._size = array.array("i", [0])
        self._reading, self.writing = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._reading, False)
        loop.add_reader(self._reading, self._readable)

    def drain(self) -> None:
        """Tell at once what has been written so far."""
        if self._reading < 0:
            return
        fcntl.ioctl(self._reading, termios.FIONREAD, self._size)
        # No more than that: more may come for ever.
        left = self._size[0]
        while left > 0:
            left -= self._take(min(left, _TURN_BYTES))

    def close(self) -> None:
        """Tell what has been written, a last line without an end too, and close."""
        if self._reading < 0:
            return
        self.drain()
        self._tell([bytes(self._rest)])
        self._rest.clear()
        self._loop.remove_reader(self._reading)
        os.close(self._reading)
        self._reading = -1

    def _readable(self) -> None:
        with contextlib.suppress(BlockingIOError):
            if not self._take(_TURN_BYTES):
                # Every process that could write to it has ended. Whoever made us closes us.
                self._loop.remove_reader(self._reading)

    def _take(self, size: int) -> int:
        """Read at most so many bytes and tell the lines they end; return how many there were."""
        data = os.read(self._reading, size)
        first, *others = data.split(b"\n")
        lines = []
        self._rest += first
        for line in others:
            lines.append(bytes(self._rest))
            self._rest = bytearray(line)
        while len(self._rest) > self._line_bytes:
            lines.append(bytes(self._rest[: self._line_bytes]))
            del self._rest[: self._line_bytes]
        self._tell(lines)
        return len(data)

    def _tell(self, lines: Iterable[bytes]) -> None:
        size = self._line_bytes
        pieces = (
            line[begin : begin + size].decode("utf-8", "replace").rstrip("\r")
            for line in lines
            for begin in range(0, len(line), size)
        )
        if told := [piece for piece in pieces if piece]:
            self._on_lines(told)
