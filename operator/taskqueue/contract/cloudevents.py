"""The envelope of every event of the contract: CloudEvents 1.0 as structured JSON.

`encode` is a function, not a method of `CloudEvent`: a worker encodes two events for each attempt,
and an object made only to be encoded would cost as much again.
"""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from taskqueue.contract.names import ContractError
from taskqueue.exact_json import decode
from taskqueue.jsonable import NotJsonError
from taskqueue.limits import JSON_DEPTH

CONTENT_TYPE = "application/cloudevents+json"

_TYPE_PREFIX = "dev.taskqueue."
_TYPE_SUFFIX = ".v1"

#: Ids count up after a prefix of this process: random ones cost a system call each.
_PROCESS = uuid.uuid4().hex
_numbers = itertools.count(1)


#: Levels of JSON above the result that an event carries.
_ENVELOPE_LEVELS = 2


class InexactEventError(ContractError):
    """An event with a value that is not JSON for us, such as NaN or an integer of 65 bits.

    Attributes:
        place: of the value within the event, such as ``data.result.items[3].loss``.
        problem: what is wrong with it, and what to do.
    """

    def __init__(self, error: NotJsonError) -> None:
        super().__init__(f"an event must be exact JSON: {error}")
        self.place = error.place
        self.problem = error.problem


@dataclass(frozen=True, slots=True)
class CloudEvent:
    """An event as it was read.

    Attributes:
        id: of the event; "" when it has none.
        type: such as ``dev.taskqueue.task.succeeded.v1``.
        namespace: the first part of the subject.
        name: the second part of the subject: a Task, or a TaskQueue.
        queue: name of the TaskQueue; "" when it is not given.
        data: the payload; any JSON.
    """

    id: str
    type: str
    namespace: str
    name: str
    queue: str
    data: Any

    @property
    def kind(self) -> str:
        """The type without what all types of the contract share, such as ``task.succeeded``."""
        return self.type.removeprefix(_TYPE_PREFIX).removesuffix(_TYPE_SUFFIX)

    @classmethod
    def decode(cls, body: bytes, *, limit: int) -> CloudEvent:
        """Read an event from the wire.

        Args:
            body: as it came.
            limit: bytes it may have; a larger one is not parsed.

        Raises:
            InexactEventError: it has a value that cannot be read exactly.
            ContractError: too large, not JSON, or not a CloudEvent with type, subject and data.
        """
        try:
            envelope = decode_envelope(body, limit=limit)
            namespace, _, name = envelope["subject"].partition("/")
            kind = envelope["type"]
            if not isinstance(kind, str):
                raise ContractError(f"event field type must be a string, it is {kind!r}")
            return cls(
                str(envelope.get("id", "")),
                kind,
                namespace,
                name,
                str(envelope.get("taskqueue", "")),
                envelope["data"],
            )
        except ContractError:
            raise
        except NotJsonError as error:
            raise InexactEventError(error) from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ContractError(f"not a CloudEvent of the contract: {error!r}") from error


def decode_envelope(body: bytes, *, limit: int) -> Any:
    """Read the JSON of an event, whatever it is.

    Args:
        body: as it came.
        limit: bytes it may have; a larger one is not parsed.

    Raises:
        NotJsonError: a value in it cannot be read exactly, or it is nested too deep.
        ContractError: it is too large.
        ValueError: it is not JSON.
    """
    if len(body) > limit:
        raise ContractError(f"an event has {len(body)} bytes, the limit is {limit}")
    return decode(body, depth=JSON_DEPTH + _ENVELOPE_LEVELS)


def event_type(kind: str) -> str:
    """Return the CloudEvents type of a kind of event, such as ``task.succeeded``."""
    return f"{_TYPE_PREFIX}{kind}{_TYPE_SUFFIX}"


def encode(
    *,
    type: str,
    source: str,
    subject: str,
    queue: str,
    data: Mapping[str, Any],
    id: str = "",
    time: str = "",
) -> bytes:
    """Return an event as structured JSON.

    Args:
        type: see `event_type`.
        source: URI reference of who reports it.
        subject: ``namespace/name``.
        queue: name of the TaskQueue.
        data: the payload.
        id: of the event; "": one that no other event has.
        time: when it happened, RFC 3339; "": not said.
    """
    identity = id or f"{_PROCESS}-{next(_numbers)}"
    if time:
        envelope = {
            "specversion": "1.0",
            "id": identity,
            "type": type,
            "source": source,
            "subject": subject,
            "time": time,
            "taskqueue": queue,
            "datacontenttype": "application/json",
            "data": data,
        }
    else:
        envelope = {
            "specversion": "1.0",
            "id": identity,
            "type": type,
            "source": source,
            "subject": subject,
            "taskqueue": queue,
            "datacontenttype": "application/json",
            "data": data,
        }
    return orjson.dumps(envelope)
