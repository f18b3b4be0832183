"""The broker users that an operator makes for the workers of a TaskQueue: names and permissions.

A name says whose it is, so that a later leader knows what is left over: the installation and the
virtual host, in which no two operators have the same installation, then namespace and queue. Two
names take turns, so that the credentials in use stay valid while new ones are handed out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from taskqueue.contract.names import (
    CONTROL_STREAM,
    DEAD_EXCHANGE,
    HEARTBEATS_EXCHANGE,
    OUTCOMES_EXCHANGE,
    routing_key,
    work_queue,
)

_PREFIX = "taskqueue-worker"
_TURNS = ("a", "b")
#: Of a virtual host's digest, in characters: its name may have any, dots included.
_DIGEST_LENGTH = 12


def worker_users(
    installation: str, virtual_host: str, namespace: str, queue: str
) -> tuple[str, str]:
    """Return the names of the two users of a TaskQueue's workers."""
    own = f"{user_prefix(installation, virtual_host)}{namespace}.{queue}"
    first, second = (f"{own}.{turn}" for turn in _TURNS)
    return first, second


def user_prefix(installation: str, virtual_host: str) -> str:
    """Return what the names of all users begin with that an operator makes in a virtual host."""
    digest = hashlib.sha256(virtual_host.encode()).hexdigest()[:_DIGEST_LENGTH]
    return f"{_PREFIX}.{installation}.{digest}."


def owner_of_user(name: str, prefix: str) -> tuple[str, str] | None:
    """Return (namespace, name) of the TaskQueue a user is for; None: the operator did not make it.

    Args:
        name: of the user.
        prefix: of the operator's users in a virtual host.
    """
    parts = name.removeprefix(prefix).split(".")
    if not name.startswith(prefix) or len(parts) != 3 or parts[2] not in _TURNS:
        return None
    return parts[0], parts[1]


def permissions(namespace: str, queue: str) -> dict[str, str]:
    """Return the permissions of a worker's user in its virtual host, as regular expressions.

    No name needs quoting but for the dots here: namespaces and queues are DNS labels.
    """
    exchanges = "|".join(
        name.removeprefix("taskqueue.")
        for name in (OUTCOMES_EXCHANGE, DEAD_EXCHANGE, HEARTBEATS_EXCHANGE)
    )
    queues = "|".join(
        name.removeprefix("taskqueue.").replace(".", r"\.")
        for name in (work_queue(namespace, queue), CONTROL_STREAM)
    )
    return {
        "configure": "^$",
        "write": rf"^taskqueue\.({exchanges})$",
        "read": rf"^taskqueue\.({queues})$",
    }


def topic_permissions(namespace: str, queue: str) -> Mapping[str, str]:
    """Return which routing keys the user may write, by exchange, as regular expressions."""
    key = routing_key(namespace, queue).replace(".", r"\.")
    return {
        OUTCOMES_EXCHANGE: rf"^{key}\.",
        HEARTBEATS_EXCHANGE: rf"^{key}\.",
        DEAD_EXCHANGE: rf"^{key}$",
    }
