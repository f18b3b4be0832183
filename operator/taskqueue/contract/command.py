"""Orders: what the operator tells all workers, through the stream `CONTROL_STREAM`, in JSON.

An order about an attempt names its token, so an old order never touches a later attempt. Every
worker reads all of them and keeps to those that concern it; a repeated order is harmless.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import orjson

from taskqueue.contract.names import CONTENT_TYPE_JSON, CONTROL_STREAM, ContractError
from taskqueue.contract.outgoing import OutgoingMessage
from taskqueue.model.command import CommandKind


@dataclass(frozen=True, slots=True)
class WorkerCommand:
    """One order.

    Attributes:
        kind: what is ordered.
        token: of the attempt, for CANCEL and RELEASE.
        uid: of its Task, for logs.
        pod: name of the worker's pod, for DRAIN.
        namespace: of that pod.
    """

    kind: CommandKind
    token: str = ""
    uid: str = ""
    pod: str = ""
    namespace: str = ""


def encode(order: WorkerCommand) -> bytes:
    """Return the order as JSON."""
    if order.kind is CommandKind.DRAIN:
        return orjson.dumps({"order": order.kind, "pod": order.pod, "namespace": order.namespace})
    return orjson.dumps({"order": order.kind, "token": order.token, "uid": order.uid})


def decode(body: bytes) -> WorkerCommand:
    """Read an order from the wire.

    Raises:
        ContractError: not JSON, no order of this version, or a field is missing or of a wrong type.
    """
    try:
        data = orjson.loads(body)
    except ValueError as problem:
        raise ContractError(f"an order must be JSON: {problem}") from None
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
    return WorkerCommand(kind, token=_text(data, "token"), uid=str(data.get("uid", "")))


def order_message(order: WorkerCommand) -> OutgoingMessage:
    """Return the order addressed to all workers, through the default exchange."""
    return OutgoingMessage(
        exchange="", key=CONTROL_STREAM, body=encode(order), content_type=CONTENT_TYPE_JSON
    )


def _text(data: dict[str, Any], name: str) -> str:
    value = data.get(name)
    if not isinstance(value, str) or not value:
        raise ContractError(f"order field {name} must be a text that is not empty: {value!r}")
    return value
