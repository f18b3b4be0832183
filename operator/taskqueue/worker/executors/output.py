"""What processes write to their standard output and error, line by line, on the worker's loop."""

from __future__ import annotations

import array
import asyncio
import fcntl
import os
import termios
from collections.abc import Callable

#: A longer line is told in pieces of this many bytes, unless another length is given.
LINE_BYTES = 16_384

_CHUNK_BYTES = 65_536


class OutputPipe:
    """The reading end of a pipe, and lines from it.

    Args:
        loop: lines are told on it.
        on_line: called with each line that is not empty, without its end.
        line_bytes: a longer line is told in pieces of this many bytes.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        on_line: Callable[[str], None],
        *,
        line_bytes: int = LINE_BYTES,
    ) -> None:
        self._line_bytes = line_bytes
        self._loop = loop
        self._on_line = on_line
        self._rest = b""
        self._size = array.array("i", [0])
        self._reading, self.writing = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._reading, False)
        loop.add_reader(self._reading, self._readable)

    def drain(self) -> None:
        """Tell at once what has been written so far."""
        while self._reading >= 0 and self._waiting():
            self._readable()

    def close(self) -> None:
        """Tell what has been written, a last line without an end too, and close."""
        if self._reading < 0:
            return
        self.drain()
        self._tell(self._rest)
        self._rest = b""
        self._loop.remove_reader(self._reading)
        os.close(self._reading)
        self._reading = -1

    def _waiting(self) -> int:
        fcntl.ioctl(self._reading, termios.FIONREAD, self._size)
        return self._size[0]

    def _readable(self) -> None:
        try:
            data = os.read(self._reading, _CHUNK_BYTES)
        except BlockingIOError:
            return
        if not data:
            # Every process that could write to it has ended. Whoever made us closes us.
            self._loop.remove_reader(self._reading)
            return
        *lines, self._rest = (self._rest + data).split(b"\n")
        while len(self._rest) > self._line_bytes:
            lines.append(self._rest[: self._line_bytes])
            self._rest = self._rest[self._line_bytes :]
        for line in lines:
            self._tell(line)

    def _tell(self, line: bytes) -> None:
        for begin in range(0, len(line), self._line_bytes):
            text = line[begin : begin + self._line_bytes].decode("utf-8", "replace").rstrip("\r")
            if text:
                self._on_line(text)
