"""Opens the store that a Secret describes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Protocol, cast
from urllib.parse import urlsplit

from taskqueue.results.store import ResultStore, StoreError

#: Of one call to a store, in seconds.
TIMEOUT_SECONDS = 10.0

_SCHEMES = {
    "postgresql": "postgresql",
    "postgres": "postgresql",
    "redis": "redis",
    "rediss": "redis",
    "s3": "s3",
}


@dataclass(frozen=True, slots=True)
class StoreConnection:
    """The address of a store, as the keys of its Secret say it.

    Attributes:
        uri: postgresql://, redis://, rediss:// or s3://bucket/prefix.
        endpoint: of S3: where it is, if it is not Amazon's.
        region: of S3.
        access_key_id: of S3; "": as the environment says, such as a role of the pod's.
        secret_access_key: of S3.
    """

    uri: str = field(repr=False)
    endpoint: str = ""
    region: str = ""
    access_key_id: str = field(default="", repr=False)
    secret_access_key: str = field(default="", repr=False)

    @property
    def where(self) -> str:
        """The address for people: nothing of it is secret."""
        try:
            parts = urlsplit(self.uri)
            port = f":{parts.port}" if parts.port else ""
        except ValueError:
            return "an address that cannot be read"
        return f"{parts.scheme}://{parts.hostname or ''}{port}{parts.path}"


def read_connection(values: Mapping[str, str]) -> StoreConnection:
    """Read the keys of a Secret: uri, and for S3 endpoint, region, accessKeyId, secretAccessKey.

    Raises:
        ValueError: there is no uri, or no store of its kind.
    """
    uri = values.get("uri", "").strip()
    scheme = uri.partition("://")[0]
    if scheme not in _SCHEMES:
        wanted = "postgresql://, redis://, rediss:// or s3://"
        raise ValueError(
            f"the key uri begins with {scheme[:20]!r}, not with {wanted}"
            if uri
            else f"there is no key uri: give it one that begins with {wanted}"
        )
    return StoreConnection(
        uri=uri,
        endpoint=values.get("endpoint", "").strip(),
        region=values.get("region", "").strip(),
        access_key_id=values.get("accessKeyId", "").strip(),
        secret_access_key=values.get("secretAccessKey", "").strip(),
    )


class _Module(Protocol):
    def open_store(
        self, connection: StoreConnection, *, retention_seconds: float | None, timeout: float
    ) -> ResultStore: ...


def open_store(
    connection: StoreConnection,
    *,
    retention_seconds: float | None = None,
    timeout: float = TIMEOUT_SECONDS,
) -> ResultStore:
    """Return a store; it connects when it is first used.

    Args:
        connection: where it is.
        retention_seconds: how long what is written is kept; None: until somebody deletes it.
        timeout: of each call, in seconds.

    Raises:
        StoreError: the library for this kind of store is not installed, or the address is wrong.
    """
    kind = _SCHEMES[connection.uri.partition("://")[0]]
    try:  # only then: a worker whose results fit a status loads none of these libraries
        module = cast(_Module, import_module(f"taskqueue.results.{kind}"))
    except ImportError as error:
        raise StoreError(
            f"results in {connection.where} need {error.name}: "
            "install taskqueue-operator[results] in the worker's image",
            transient=False,
        ) from error
    return module.open_store(connection, retention_seconds=retention_seconds, timeout=timeout)
