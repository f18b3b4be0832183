"""What `taskqueue dev` says on the terminal: a line for each thing that happens to a Task."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any, TextIO

from taskqueue.api.common import TASK_PLURAL
from taskqueue.dev.memory_api import Change, Object
from taskqueue.timestamps import from_rfc3339

#: Colours by what they say, in ANSI's codes.
_COLOURS = {
    "Succeeded": "32",
    "Failed": "31",
    "Cancelled": "33",
    "Retrying": "33",
    "Blocked": "33",
    "Running": "36",
    "note": "2",
    "error": "31",
    "title": "1",
}

#: Of a result or a message, in characters.
_SHOWN = 200


class Terminal:
    """Writes lines; colours only where they are wanted.

    Args:
        out: where to.
        colour: whether it shows colours.
        clock: wall time in seconds.
    """

    def __init__(
        self, out: TextIO, *, colour: bool, clock: Callable[[], float] = time.time
    ) -> None:
        self._out = out
        self._colour = colour
        self._clock = clock
        #: What was last said of each Task, by uid.
        self._said: dict[str, str] = {}

    def title(self, text: str) -> None:
        """Write a line that begins something."""
        self._write(self.painted(text, "title"))

    def note(self, text: str) -> None:
        """Write a line about the command itself."""
        self._write(self.painted(text, "note"))

    def error(self, text: str) -> None:
        """Write what went wrong, and what to do."""
        self._write(self.painted(text, "error"))

    def on_change(self, change: Change) -> None:
        """Say what has happened to a Task."""
        event, plural, one = change
        if plural != TASK_PLURAL:
            return
        uid, name = one["metadata"]["uid"], one["metadata"]["name"]
        if event == "DELETED":
            self._said.pop(uid, None)
            self._line(name, "deleted", "note", "")
            return
        status = one.get("status") or {}
        phase = status.get("phase", "Pending")
        if event == "ADDED" and phase == "Pending":
            self._line(name, "submitted", "note", f"{one['spec']['handler']}  {_payload(one)}")
            return
        text = self._text(one, phase)
        if phase != "Pending" and self._said.get(uid) != phase + text:
            self._said[uid] = phase + text
            self._line(name, phase, phase, text)

    def painted(self, text: str, colour: str) -> str:
        """Return a text in a colour, or as it is."""
        code = _COLOURS.get(colour)
        text = printable(text)
        return f"\033[{code}m{text}\033[0m" if self._colour and code else text

    def _text(self, one: Object, phase: str) -> str:
        status: dict[str, Any] = one.get("status") or {}
        progress = status.get("progress") or {}
        if phase == "Running":
            percent = f"{progress['percent']} %" if "percent" in progress else ""
            attempt = f"attempt {status.get('attempts', 1)}"
            return "  ".join(filter(None, (attempt, percent, progress.get("message", ""))))
        parts: list[str] = [status.get("reason", ""), status.get("message", "")]
        if phase == "Retrying":
            left = from_rfc3339(status["nextAttemptTime"]) - self._clock()
            parts.append(f"again in {max(left, 0):.1f} s")
        if phase == "Succeeded":
            seconds = from_rfc3339(status["completionTime"]) - from_rfc3339(status["startTime"])
            result = status.get("result")
            parts = [f"{seconds:.1f} s", "" if result is None else _short(json.dumps(result))]
        return "  ".join(filter(None, parts))

    def _line(self, name: str, word: str, colour: str, text: str) -> None:
        stamp = time.strftime("%H:%M:%S", time.localtime(self._clock()))
        padded = self.painted(f"{word:<10}", colour)
        head = f"{self.painted(stamp, 'note')}  {padded} {printable(name)}"
        self._write(f"{head}  {printable(_short(text))}".rstrip())

    def _write(self, line: str) -> None:
        print(line, file=self._out, flush=True)


def printable(text: str) -> str:
    """Return a text without characters that do something to a terminal."""
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)


def _payload(one: Object) -> str:
    return json.dumps(one["spec"].get("payload", {}), ensure_ascii=False)


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"
