"""What a process writes, as the worker's loop is told of it."""

from __future__ import annotations

import asyncio
import os

import pytest

from taskqueue.worker.executors import output
from taskqueue.worker.executors.output import LINE_BYTES, OutputPipe, merge_lines
from tests.unit.worker.children import PATIENCE

ENDLESS = b"y\n" * 32_768


class Heard:
    """A pipe, what was told of it, and a process that writes to it."""

    def __init__(self, **how: int) -> None:
        self.lines: list[str] = []
        self.pipe = OutputPipe(asyncio.get_running_loop(), self.lines.extend, **how)

    def write(self, data: bytes) -> None:
        assert os.write(self.pipe.writing, data) == len(data)

    async def until(self, count: int) -> None:
        async with asyncio.timeout(PATIENCE):
            while len(self.lines) < count:  # noqa: ASYNC110
                await asyncio.sleep(0)


@pytest.fixture
async def heard() -> Heard:
    return Heard()


@pytest.mark.parametrize("size", [1, 3, 7, 1024])
async def test_lines_are_told_whole_however_they_are_read(
    size: int, heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output, "_TURN_BYTES", size)
    heard.write(b"one\n\ntwo\r\nthr\xc3\xa4\xff\nfour")
    await heard.until(3)
    heard.pipe.close()
    assert heard.lines == ["one", "two", "thrä\ufffd", "four"]
    heard.pipe.close()  # harmless


@pytest.mark.parametrize("size", [1, 3, 7, 1024])
async def test_long_lines_are_told_in_pieces(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "_TURN_BYTES", size)
    heard = Heard(line_bytes=4)
    heard.write(b"12345678\n1234567890\n12")
    await heard.until(5)
    heard.pipe.close()
    assert heard.lines == ["1234", "5678", "1234", "5678", "90", "12"]


async def test_whoever_writes_without_end_leaves_the_loop_its_turns(heard: Heard) -> None:
    heard.write(ENDLESS)
    told = []
    for _ in range(3):
        await asyncio.sleep(0)
        told.append(len(heard.lines))
    assert 0 < told[-1] <= 3 * 8192
    heard.pipe.drain()
    assert len(heard.lines) == 32_768


@pytest.mark.parametrize("how", ["drain", "close"])
async def test_what_is_written_meanwhile_is_not_waited_for(
    heard: Heard, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = os.read
    times = iter(range(100))

    def refilled(fd: int, size: int) -> bytes:
        assert next(times, None) is not None, "it is read for ever"
        data = read(fd, size)
        heard.write(data)
        return data

    monkeypatch.setattr(os, "read", refilled)
    heard.write(b"y\n" * 10)
    getattr(heard.pipe, how)()
    assert heard.lines == ["y"] * 10


async def test_the_end_of_all_writers(heard: Heard) -> None:
    heard.write(b"last")
    os.close(heard.pipe.writing)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    heard.pipe.close()
    assert heard.lines == ["last"]


def test_lines_that_come_too_fast_are_told_together() -> None:
    few = [str(number) for number in range(400)]
    assert merge_lines(few) == few
    many = [str(number) for number in range(32_768)]
    blocks = merge_lines(many)
    assert "\n".join(blocks).split("\n") == many
    assert len(blocks) == 12
    assert max(map(len, blocks)) <= LINE_BYTES
    long = ["x" * LINE_BYTES] * 401
    assert merge_lines(long) == long
