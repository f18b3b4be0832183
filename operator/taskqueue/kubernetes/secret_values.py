"""Reads the values of a Secret that a TaskQueue names."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from taskqueue.api.common import DNS_SUBDOMAIN_PATTERN
from taskqueue.kubernetes.client import ApiClient, ApiError

_NAME = re.compile(DNS_SUBDOMAIN_PATTERN[1:-1])


class SecretUnusable(Exception):
    """A Secret does not exist, cannot be read, must not be used, or says nothing that can be used.

    Attributes:
        reason: CamelCase, for a condition.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class SecretValues:
    """A Secret, and where it was found; `repr` does not show its values."""

    namespace: str
    name: str
    where: str
    data: Mapping[str, str] = field(repr=False)


async def read_secret(
    client: ApiClient, key: tuple[str, str], *, where: str, advice: str
) -> SecretValues:
    """Read a Secret.

    Args:
        client: for the API server.
        key: namespace and name.
        where: names the Secret, and the field that names it.
        advice: what to do if there is none.

    Raises:
        SecretUnusable: it does not exist, may not be read, or has a value that is not text.
        ApiError: the API server is not available; try again.
    """
    namespace, name = key
    if not _NAME.fullmatch(
        name
    ):  # of a status, which nobody may have checked: "../" leads elsewhere
        raise SecretUnusable("SecretInvalid", f"{where}: that is no name of a Secret: correct it")
    try:
        secret = await client.get(f"/api/v1/namespaces/{namespace}/secrets/{name}")
    except ApiError as error:
        if error.status == 403:
            raise SecretUnusable(
                "SecretForbidden",
                f"{where} may not be read: grant get on secrets in namespace {namespace}",
            ) from None
        if error.status == 404:
            raise SecretUnusable("SecretNotFound", f"{where} does not exist: {advice}") from None
        raise
    return SecretValues(namespace, name, where, secret_data(secret, where))


def secret_data(secret: Mapping[str, Any], where: str) -> dict[str, str]:
    """Return the texts in a Secret object; ``where`` names it.

    Raises:
        SecretUnusable: a value is not text.
    """
    try:
        return {
            key: base64.b64decode(value).decode()
            for key, value in (secret.get("data") or {}).items()
        }
    except (binascii.Error, UnicodeDecodeError):
        # Not the error itself: it shows a byte of the value.
        raise SecretUnusable(
            "SecretInvalid", f"{where}: a value is not UTF-8 text: correct it"
        ) from None
