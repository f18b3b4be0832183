"""Runs other programs, and reports how they failed.

A failure names the command, shows the last lines it wrote, and says what to do about it.
"""

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

#: Lines of a failed command's output that the error shows.
LAST_LINES = 15


class DevclusterError(Exception):
    """devcluster failed; the text says at what, and what to do about it."""


class CommandError(DevclusterError):
    """A program ended with an error."""

    def __init__(self, command: Sequence[str], code: int, output: str, hint: str = "") -> None:
        shown = " ".join(command)
        if len(shown) > 300:
            shown = shown[:300] + " ..."
        lines = [f"`{shown}` ended with status {code}."]
        last = output.strip().splitlines()[-LAST_LINES:]
        if last:
            lines += ["Its last lines:", *(f"    {line}" for line in last)]
        if hint:
            lines.append(f"What to do: {hint}")
        super().__init__("\n".join(lines))
        self.code = code
        self.output = output


def run(
    command: Sequence[str | Path],
    *,
    hint: str = "",
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    stdin: str | None = None,
    timeout: float | None = None,
) -> str:
    """Run a command to its end and return its standard output.

    Args:
        command: program and arguments; no shell sees them.
        hint: what to do when it fails, for the error.
        cwd: the folder to run in.
        env: variables on top of this process's own.
        stdin: text for its standard input; without it, the input is empty.
        timeout: seconds after which it is killed.

    Raises:
        CommandError: it could not be started, ended with an error or took too long.
    """
    words = [str(word) for word in command]
    try:
        done = subprocess.run(
            words,
            cwd=cwd,
            env={**os.environ, **(env or {})},
            input=stdin if stdin is not None else "",
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            check=False,
        )
    except FileNotFoundError as missing:
        raise CommandError(words, 127, f"{words[0]}: not found", hint) from missing
    except subprocess.TimeoutExpired as late:
        raise CommandError(words, 124, f"killed after {late.timeout:.0f} s", hint) from late
    if done.returncode != 0:
        raise CommandError(words, done.returncode, done.stdout + done.stderr, hint)
    return done.stdout


def succeeds(command: Sequence[str | Path], *, timeout: float | None = 20) -> bool:
    """Return whether a command exists and succeeds."""
    try:
        run(command, timeout=timeout)
    except CommandError:
        return False
    return True
