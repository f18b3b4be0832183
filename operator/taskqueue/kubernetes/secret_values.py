"""Reads the values of a Secret."""

from __future__ import annotations

import base64
import binascii

from taskqueue.kubernetes.client import ApiClient, ApiError


class SecretUnusable(Exception):
    """A Secret does not exist, may not be read, or has values that are no text.

    Attributes:
        reason: CamelCase, for a condition.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


async def read_secret_values(client: ApiClient, namespace: str, name: str) -> dict[str, str]:
    """Return the values of a Secret by key.

    Raises:
        SecretUnusable: with what to do about it.
        ApiError: the API server is not available; try again.
    """
    where = f"Secret {namespace}/{name}"
    try:
        secret = await client.get(f"/api/v1/namespaces/{namespace}/secrets/{name}")
    except ApiError as error:
        if error.status == 403:
            raise SecretUnusable(
                "SecretForbidden", f"{where}: it may not be read: grant get on it"
            ) from None
        if error.status == 404:
            raise SecretUnusable("SecretNotFound", f"{where} does not exist: create it") from None
        raise
    try:
        values = (secret.get("data") or {}).items()
        return {key: base64.b64decode(value).decode() for key, value in values}
    except (binascii.Error, UnicodeDecodeError):
        raise SecretUnusable(
            "SecretInvalid", f"{where}: a value is not UTF-8 text: correct it"
        ) from None
