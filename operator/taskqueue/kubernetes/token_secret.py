"""The Secret with the keys that sign the tokens of attempts, one for each installation.

It is in the operator's namespace, so that every leader has the same keys. Each entry is a key under
its id; the id that sorts last signs (k10 after k9), and all verify. To rotate the key, add an
entry, and remove the old one when no attempt signed with it can still be running.
"""

from __future__ import annotations

import base64
import secrets
from collections.abc import Mapping

from taskqueue.defaults import DEFAULT_INSTALLATION
from taskqueue.kubernetes.client import ApiClient, ApiError
from taskqueue.model.token import TokenKeys, last_key_id

SECRET_NAME = "taskqueue-token-keys"  # noqa: S105  (a name, not a secret)
_KEY_BYTES = 32
_FIRST_KEY_ID = "k1"


def secret_name(installation: str) -> str:
    """Return the name of an installation's Secret."""
    return SECRET_NAME if installation == DEFAULT_INSTALLATION else f"{SECRET_NAME}.{installation}"


async def load_token_keys(client: ApiClient, namespace: str, installation: str) -> TokenKeys:
    """Read the keys; create the Secret with a first key if it does not exist.

    Raises:
        ApiError: the API server refused; the operator's Role allows it to get and create Secrets
            in its own namespace.
        ValueError: the Secret has no usable key.
    """
    name, path = secret_name(installation), f"/api/v1/namespaces/{namespace}/secrets"
    try:
        secret = await client.get(f"{path}/{name}")
    except ApiError as error:
        if error.status != 404:
            raise
        key = base64.b64encode(secrets.token_bytes(_KEY_BYTES)).decode()
        body = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": name, "namespace": namespace},
            "data": {_FIRST_KEY_ID: key},
        }
        try:
            secret = await client.request("POST", path, body=body)
        except ApiError as conflict:
            if conflict.status != 409:
                raise
            secret = await client.get(f"{path}/{name}")  # another replica was faster
    return _read(f"{namespace}/{name}", secret.get("data") or {})


def _read(secret: str, data: Mapping[str, str]) -> TokenKeys:
    keys = {key_id: base64.b64decode(value) for key_id, value in data.items()}
    if not keys or any(not value or "." in key_id for key_id, value in keys.items()):
        raise ValueError(
            f"Secret {secret} must hold at least one key, each under an id "
            "without a dot: delete the Secret, and the operator creates a new one"
        )
    return TokenKeys(current=last_key_id(keys), keys=keys)
