"""The Secret with the managed credentials of a TaskQueue's workers: made and owned by the operator.

Workers read it like a connection Secret. It is deleted with its TaskQueue, and until then it is the
only place that has the password.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from taskqueue.api.common import GROUP
from taskqueue.kubernetes.client import ApiClient, ApiError
from taskqueue.kubernetes.ownership import FIELD_MANAGER, MANAGED_BY, owner_reference, worker_name
from taskqueue.kubernetes.secret_values import SecretUnusable, secret_data
from taskqueue.kubernetes.taskqueue_codec import QUEUE_LABEL
from taskqueue.model.queue import QueueConfig
from taskqueue.timestamps import from_rfc3339, to_rfc3339

#: When the credentials were made.
ROTATED_ANNOTATION = f"{GROUP}/credentials-rotated"


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSecret:
    """What the Secret has.

    Attributes:
        data: the keys of a connection Secret.
        rotated: when the credentials were made, in seconds since the epoch.
    """

    data: Mapping[str, str] = field(repr=False)
    rotated: float

    @property
    def username(self) -> str:
        """Who the workers are; "" if that is missing."""
        return self.data.get("username", "")

    @property
    def password(self) -> str:
        """Of that user; "" if it is missing."""
        return self.data.get("password", "")


async def read_worker_secret(client: ApiClient, config: QueueConfig) -> WorkerSecret | None:
    """Read the Secret; None: there is none, or it has nothing that can be used.

    Raises:
        SecretUnusable: it is somebody else's, or may not be read.
        ApiError: the API server is not available; try again.
    """
    where = _where(config)
    try:
        secret = await client.get(_path(config))
    except ApiError as error:
        if error.status == 404:
            return None
        raise _forbidden(error, f"{where}: the operator may not read it") from None
    owners = secret["metadata"].get("ownerReferences") or ()
    if not any(owner.get("uid") == config.uid for owner in owners):
        raise SecretUnusable(
            "SecretNotOwned",
            f"{where} exists and was not made by the operator for this TaskQueue, which needs its "
            "name: delete or rename it",
        )
    rotated = (secret["metadata"].get("annotations") or {}).get(ROTATED_ANNOTATION, "")
    try:
        return WorkerSecret(data=secret_data(secret, where), rotated=from_rfc3339(rotated))
    except (SecretUnusable, ValueError):
        return None


async def apply_worker_secret(
    client: ApiClient, config: QueueConfig, data: Mapping[str, str], *, rotated: float
) -> None:
    """Create or replace the Secret.

    Raises:
        SecretUnusable: the operator may not; the text says how to permit it.
        ApiError: the API server is not available; try again.
    """
    body: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "name": worker_name(config.name),
            "namespace": config.namespace,
            "labels": {QUEUE_LABEL: config.name, **MANAGED_BY},
            "annotations": {ROTATED_ANNOTATION: to_rfc3339(rotated)},
            "ownerReferences": [owner_reference(config)],
        },
        "data": {key: base64.b64encode(text.encode()).decode() for key, text in data.items()},
    }
    try:
        await client.apply(_path(config), body, manager=FIELD_MANAGER)
    except ApiError as error:
        raise _forbidden(error, f"{_where(config)}: the operator may not write it") from None


def _forbidden(error: ApiError, said: str) -> ApiError | SecretUnusable:
    if error.status != 403:
        return error
    return SecretUnusable(
        "SecretForbidden",
        f"{said}: bind the ClusterRole taskqueue-operator-credentials to its ServiceAccount in "
        "this namespace, or apply manifests/namespaced/credentials, if it has Roles only "
        "(docs/operations.md, credentials of workers)",
    )


def _where(config: QueueConfig) -> str:
    return f"Secret {config.namespace}/{worker_name(config.name)} (spec.workers.credentials)"


def _path(config: QueueConfig) -> str:
    return f"/api/v1/namespaces/{config.namespace}/secrets/{worker_name(config.name)}"
