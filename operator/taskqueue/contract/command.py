"""Commands of the operator to all workers, through the stream `CONTROL_STREAM`, in JSON.

On the wire a command is called an order. A command about an attempt names its token, so an old one
never affects a later attempt. Every worker reads all commands and follows those that concern it; a
repeated command is harmless.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import orjson

from taskqueue import exact_json
from taskqueue.contract.names import CONTENT_TYPE_JSON, CONTROL_STREAM, ContractError
from taskqueue.contract.outgoing import OutgoingMessage
from taskqueue.defaults import DEFAULT_INSTALLATION
from taskqueue.model.command import CommandKind


@dataclass(frozen=True, slots=True)
class WorkerCommand:
    """One command to workers.

    Attributes:
        kind: what to do.
        token: of the attempt, for CANCEL and RELEASE.
        uid: of its Task, for logs.
        pod: name of the worker's pod, for DRAIN.
        namespace: of that pod.
        understands: of an operator's `FIRST_COMMAND`: what it can read besides what the first
            operators could, such as `RESERVED_TYPES`. Empty: it is one of those.
        installation: of that operator. Those that do not say count as the default's.
    """

    kind: CommandKind
    token: str = ""
    uid: str = ""
    pod: str = ""
    namespace: str = ""
    understands: frozenset[str] = frozenset()
    installation: str = DEFAULT_INSTALLATION

    @property
    def is_announcement(self) -> bool:
        """Whether it is about no attempt, and says what the operator that has connected reads."""
        return self.kind is CommandKind.CANCEL and self.token == _NO_TOKEN


#: The operator reads `taskqueue.contract.outcome.RESERVED_PREFIX`.
RESERVED_TYPES = "reserved-types"

#: The operator reads `taskqueue.contract.batch`.
BATCHES = "batches"

_NO_TOKEN = "none"  # noqa: S105

#: About no attempt. The operator sends it when it connects, so that the stream is never empty: that
#: a stream *is* empty a worker could conclude only from a silence. It also says what the operator
#: understands, for the time in which workers are newer than the operator. This one is of the
#: default installation.
FIRST_COMMAND = WorkerCommand(
    CommandKind.CANCEL,
    token=_NO_TOKEN,
    uid="none",
    understands=frozenset({BATCHES, RESERVED_TYPES}),
)


def encode(command: WorkerCommand) -> bytes:
    """Return the command as JSON."""
    fields: dict[str, Any] = {"order": command.kind}
    if command.kind is CommandKind.DRAIN:
        fields |= {"pod": command.pod, "namespace": command.namespace}
    else:
        fields |= {"token": command.token, "uid": command.uid}
    if command.understands:
        fields["understands"] = sorted(command.understands)
    if command.is_announcement:
        fields["installation"] = command.installation
    return orjson.dumps(fields)


def decode(body: bytes) -> WorkerCommand:
    """Read a command from the wire.

    Raises:
        ContractError: not JSON, not an order of this version, or a field is missing or wrong.
    """
    try:
        data = exact_json.decode(body)
    except ValueError as error:
        raise ContractError(f"an order must be JSON: {error}") from None
    if not isinstance(data, dict):
        raise ContractError(f"an order must be a JSON object, not {type(data).__name__}")
    try:
        kind = CommandKind(str(data.get("order")))
    except ValueError:
        raise ContractError(
            f"order field order must be cancel, release or drain, it is {data.get('order')!r}"
        ) from None
    if kind is CommandKind.DRAIN:
        return WorkerCommand(kind, pod=_text(data, "pod"), namespace=_text(data, "namespace"))
    understands = data.get("understands")
    return WorkerCommand(
        kind,
        token=_text(data, "token"),
        uid=str(data.get("uid", "")),
        understands=frozenset(map(str, understands if isinstance(understands, list) else ())),
        # What is no string is the name of no installation either.
        installation=str(data.get("installation", DEFAULT_INSTALLATION)),
    )


def command_message(command: WorkerCommand) -> OutgoingMessage:
    """Return the command addressed to all workers, through the default exchange."""
    return OutgoingMessage(
        exchange="", key=CONTROL_STREAM, body=encode(command), content_type=CONTENT_TYPE_JSON
    )


def _text(data: dict[str, Any], name: str) -> str:
    value = data.get(name)
    if not isinstance(value, str) or not value:
        raise ContractError(f"order field {name} must be a non-empty string, it is {value!r}")
    return value
