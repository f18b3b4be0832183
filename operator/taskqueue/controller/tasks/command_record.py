"""Keeps the commands that are owed in a ConfigMap, so that they survive a restart of the operator.

A Task that is cancelled or deleted while its broker is away has ended in the API server, or is no
longer there. Nothing else says that its message, which waits at the broker, must not be run.

* The ConfigMap is in the operator's namespace. It is written as soon as a command has to wait for
  its broker, within seconds if thousands do, and when they are confirmed. While brokers are there
  it is not touched.
* A leader reads it once, before it writes it, and owes what it finds for TaskQueues that exist.
* The tokens in it are of attempts that are over: nothing that comes with one changes a Task.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from taskqueue.backoff import Backoff
from taskqueue.contract.command import WorkerCommand
from taskqueue.defaults import DEFAULT_INSTALLATION
from taskqueue.kubernetes.client import ApiClient, ApiError
from taskqueue.kubernetes.ownership import FIELD_MANAGER
from taskqueue.logs import EventLog
from taskqueue.model.command import CommandKind
from taskqueue.model.queue import QueueKey

log = EventLog(__name__)

#: Of all commands in the ConfigMap, which may have 1 MiB: some 7,000.
RECORD_BYTES = 768 * 1024

#: How much is written at most while commands come in: a large record waits for some seconds.
_BYTES_A_SECOND = 100_000

_NAME = "taskqueue-commands"
_FIELD = "commands"
_KINDS = {str(kind): kind for kind in (CommandKind.CANCEL, CommandKind.RELEASE)}

Owed = Mapping[QueueKey, Collection[WorkerCommand]]


def record_name(installation: str) -> str:
    """Return the name of an installation's ConfigMap."""
    return _NAME if installation == DEFAULT_INSTALLATION else f"{_NAME}.{installation}"


class CommandRecord:
    """Reads the ConfigMap once, and then writes it whenever what is owed has changed.

    Args:
        client: for the API server.
        namespace: of the operator.
        installation: of the operator.
        owed: returns what is owed now.
        restore: called with the commands of a queue that a former leader owed.
    """

    def __init__(
        self,
        client: ApiClient,
        *,
        namespace: str,
        installation: str,
        owed: Callable[[], Owed],
        restore: Callable[[QueueKey, list[WorkerCommand]], None],
    ) -> None:
        self._client = client
        self._name = record_name(installation)
        self._namespace = namespace
        self._path = f"/api/v1/namespaces/{namespace}/configmaps/{self._name}"
        self._owed = owed
        self._restore = restore
        self._changed = asyncio.Event()
        #: What the ConfigMap has; None: not known.
        self._recorded: str | None = None
        self._problem = ""
        self._is_full = False

    def request_write(self) -> None:
        """Take note that what is owed has changed."""
        self._changed.set()

    async def run(self) -> None:
        """Restore what a former leader owed; then keep the ConfigMap up to date until cancelled."""
        backoff = Backoff()
        while True:
            self._changed.clear()
            try:
                if self._recorded is None:
                    await self._read()
                await self.write()
            except ApiError as error:
                self._log_failure(error)
                await asyncio.sleep(error.retry_after or backoff.next_delay())
                continue
            backoff.reset()
            self._problem = ""
            await asyncio.sleep(len(self._recorded or "") / _BYTES_A_SECOND)
            await self._changed.wait()

    async def write(self) -> None:
        """Write what is owed now, if the ConfigMap was read and has something else.

        Raises:
            ApiError: refused or unreachable.
        """
        text = self._text()
        if self._recorded in (None, text):
            return
        body: dict[str, Any] = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": self._name, "namespace": self._namespace},
            "data": {_FIELD: text} if text else {},
        }
        await self._client.apply(self._path, body, manager=FIELD_MANAGER)
        self._recorded = text

    async def _read(self) -> None:
        text = ""
        try:
            found = await self._client.get(self._path)
            text = str((found.get("data") or {}).get(_FIELD, ""))
        except ApiError as error:
            if error.status != 404:
                raise
        owed: dict[QueueKey, list[WorkerCommand]] = {}
        for key, command in _commands(text):
            owed.setdefault(key, []).append(command)
        for key, commands in owed.items():
            log.info("command.restored", namespace=key[0], queue=key[1], commands=len(commands))
            self._restore(key, commands)
        self._recorded = text

    def _text(self) -> str:
        """Return what is owed, a line for each command; the newest, if they do not fit."""
        lines = [
            f"{namespace}/{queue} {one.kind} {one.token} {one.uid}\n"
            for (namespace, queue), commands in self._owed().items()
            for one in commands
        ]
        left, kept = RECORD_BYTES, len(lines)
        while kept and len(lines[kept - 1].encode()) <= left:
            kept -= 1
            left -= len(lines[kept].encode())
        if kept and not self._is_full:
            log.error(
                "command.not_recorded",
                commands=kept,
                error=f"the commands that wait for brokers have more than {RECORD_BYTES} bytes",
                hint="some of them are lost if the operator restarts before the brokers are back",
            )
        self._is_full = kept > 0
        return "".join(lines[kept:])

    def _log_failure(self, error: ApiError) -> None:
        if error.message != self._problem:
            log.warning(
                "command.record_failed",
                error=error.message,
                hint="commands that wait for brokers are lost if the operator restarts; it needs "
                f"get, create and patch on ConfigMaps in namespace {self._namespace}",
            )
        self._problem = error.message


def _commands(text: str) -> Iterator[tuple[QueueKey, WorkerCommand]]:
    """Read the lines of `CommandRecord._text`; what somebody else has put there is left out."""
    for line in text.splitlines():
        parts = line.split(" ")
        if len(parts) == 4 and parts[1] in _KINDS:
            namespace, _, queue = parts[0].partition("/")
            yield (namespace, queue), WorkerCommand(_KINDS[parts[1]], token=parts[2], uid=parts[3])
