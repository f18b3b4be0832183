"""Reads the address that a Secret has, of a store of results or of an archive, and opens the store.

Whoever writes a Secret is not always who uses it: the operator and clients read those of other
people. An address may name files of the machine that uses it, or leave out credentials, so that
those of the machine count. `check_foreign` refuses what only the machine's owner may ask for.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Protocol, cast

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


#: What ends the part of an address with user, password and hosts.
_AFTER, _QUERY = re.compile(r"[/?#]"), re.compile(r"[?#]")
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]{0,20}")
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")


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
    def kind(self) -> str:
        """postgresql, redis or s3."""
        return _SCHEMES[self.uri.partition("://")[0]]

    @property
    def where(self) -> str:
        """The address for people: nothing of it is secret."""
        if not _has_plain_credentials(self.uri):
            return "an address that cannot be read"
        scheme, _, rest = _QUERY.split(self.uri, maxsplit=1)[0].partition("://")
        authority, slash, path = rest.partition("/")
        return f"{scheme}://{authority.rpartition('@')[2]}{slash}{path}"


def read_connection(values: Mapping[str, str], *, only: str = "") -> StoreConnection:
    """Read the keys of a Secret: uri, and for S3 endpoint, region, accessKeyId, secretAccessKey.

    Args:
        values: by key.
        only: the scheme that it must have; "": that of any store.

    Raises:
        ValueError: there is no uri, or none of these; nothing of a user or password is in the text.
    """
    uri = values.get("uri", "").strip()
    scheme, _, rest = uri.partition("://")
    if scheme not in _SCHEMES or (only and _SCHEMES[scheme] != only):
        wanted = f"{only}://" if only else "postgresql://, redis://, rediss:// or s3://"
        raise ValueError(
            f"the key uri begins with {scheme}://, not with {wanted}"
            if _SCHEME.fullmatch(scheme) and rest
            else f"the key uri must be an address that begins with {wanted}"
        )
    if not _has_plain_credentials(uri):
        raise ValueError(
            "user or password in the key uri have a character with a meaning of its own in an "
            "address: write @ as %40, : as %3A, / as %2F, ? as %3F, # as %23, % as %25"
        )
    return StoreConnection(
        uri=uri,
        endpoint=values.get("endpoint", "").strip(),
        region=values.get("region", "").strip(),
        access_key_id=values.get("accessKeyId", "").strip(),
        secret_access_key=values.get("secretAccessKey", "").strip(),
    )


def _has_plain_credentials(uri: str) -> bool:
    """Return whether all libraries agree on which part of an address is the password.

    Otherwise the rest of it is a host, a port or a path for one of them, which are in messages.
    """
    scheme, _, rest = uri.partition("://")
    authority = _AFTER.split(rest, maxsplit=1)[0]
    is_plain = rest.count("@") == authority.count("@") <= 1 and not _BAD_ESCAPE.search(rest)
    return is_plain or scheme == "s3"  # whose credentials have keys of their own


class _Module(Protocol):
    def check_foreign(self, connection: StoreConnection) -> None: ...

    def open_store(
        self, connection: StoreConnection, *, retention_seconds: float | None, timeout: float
    ) -> ResultStore: ...


def check_foreign(connection: StoreConnection) -> None:
    """Check that an address which others have written uses nothing of this machine.

    That is: no file, no Unix socket, and no credentials of this process, such as a role of its pod.

    Raises:
        ValueError: it does; the text says what, and what to do.
        ImportError: the library for this kind of store is not installed.
    """
    _module(connection).check_foreign(connection)


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
    try:
        module = _module(connection)
    except ImportError as error:
        raise StoreError(
            f"results in {connection.where} need {error.name}: "
            "install taskqueue-operator[results] in the worker's image",
            transient=False,
        ) from error
    return module.open_store(connection, retention_seconds=retention_seconds, timeout=timeout)


def _module(connection: StoreConnection) -> _Module:
    # Only then: a worker whose results fit a status loads none of these libraries.
    return cast(_Module, import_module(f"taskqueue.results.{connection.kind}"))
