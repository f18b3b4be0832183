"""The commands about attempts that a worker has seen, so that it does not run them later.

Pure. Every worker sees the commands of all queues and keeps each for a day, as long as the stream
does: the message of an attempt may reach it long after the command. Bounded by number too: the
oldest are dropped first.
"""

from __future__ import annotations

from collections import OrderedDict

from taskqueue.limits import COMMAND_RETENTION_DAYS
from taskqueue.model.command import CommandKind

#: The stream holds fewer commands of usual size than this.
TOKENS = 150_000

#: What the stream's own retention is, in seconds.
AGE_SECONDS = COMMAND_RETENTION_DAYS * 86_400.0


class CommandLog:
    """Keeps the last command about each token; times are seconds of any one monotonic clock."""

    def __init__(self, *, tokens: int = TOKENS, age_seconds: float = AGE_SECONDS) -> None:
        self._tokens = tokens
        self._age = age_seconds
        self._commands: OrderedDict[str, tuple[CommandKind, float]] = OrderedDict()

    def add(self, token: str, kind: CommandKind, now: float) -> None:
        """Keep a command; of several about one token the last counts."""
        commands = self._commands
        commands[token] = (kind, now)
        commands.move_to_end(token)
        while len(commands) > self._tokens or self._oldest() <= now - self._age:
            commands.popitem(last=False)

    def get(self, token: str) -> CommandKind | None:
        """Return the last command about the token, or None."""
        entry = self._commands.get(token)
        return None if entry is None else entry[0]

    def __len__(self) -> int:
        return len(self._commands)

    def _oldest(self) -> float:
        return next(iter(self._commands.values()))[1]
