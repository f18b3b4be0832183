"""A program of the older commit that answers what it reads in today's messages."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from taskqueue.amqp.properties import BasicProperties
from tests.commits import OLDER, sources, why_missing

_PROGRAM = Path(__file__).with_name("older_side.py")


class OlderSide:
    """Runs `older_side` in the sources of the older commit."""

    def __init__(self, tree: Path) -> None:
        self._environment = {**os.environ, "PYTHONPATH": str(tree / "operator")}
        self._reader = subprocess.Popen(
            [sys.executable, _PROGRAM, "read"],
            env=self._environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def write(self) -> dict[str, Any]:
        """Return the messages that it writes."""
        done = subprocess.run(
            [sys.executable, _PROGRAM, "write"],
            env=self._environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        written: dict[str, Any] = json.loads(done.stdout)
        return written

    def read(
        self, kind: str, body: bytes = b"", properties: BasicProperties | None = None
    ) -> dict[str, Any]:
        """Return what it reads in a message.

        Raises:
            Unreadable: it refuses the message.
        """
        request: dict[str, Any] = {"kind": kind, "body": body.decode()}
        if properties is not None:
            request["properties"] = b"".join(properties.encode()).hex()
        value: dict[str, Any] = self._ask(request)
        return value

    def verify(self, *arguments: object) -> bool:
        """Return what its `TokenKeys.verify` does."""
        return bool(self._ask({"kind": "token", "arguments": arguments}))

    def _ask(self, request: dict[str, Any]) -> Any:
        assert self._reader.stdin is not None
        assert self._reader.stdout is not None
        self._reader.stdin.write(json.dumps(request) + "\n")
        self._reader.stdin.flush()
        line = self._reader.stdout.readline()
        assert line, f"{_PROGRAM.name} has ended over {request}"
        answer = json.loads(line)
        if "refused" in answer:
            raise Unreadable(answer["refused"])
        return answer["value"]

    def close(self) -> None:
        """End the program."""
        self._reader.communicate()


class Unreadable(Exception):
    """The older side refuses a message; the text is its own."""


@pytest.fixture(scope="session")
def older_side() -> Iterator[OlderSide]:
    if reason := why_missing(OLDER):
        pytest.skip(reason)
    with sources(OLDER) as tree:
        side = OlderSide(tree)
        yield side
        side.close()
