"""Where an archive is: the address of a PostgreSQL database."""

from __future__ import annotations

from collections.abc import Mapping

from taskqueue.results.connection import StoreConnection

_SCHEMES = ("postgresql://", "postgres://")


def read_address(values: Mapping[str, str]) -> StoreConnection:
    """Read the address from the values of a Secret: the key uri.

    Raises:
        ValueError: there is none, or it is no PostgreSQL's. The text has nothing of the value.
    """
    uri = values.get("uri", "").strip()
    if not uri.startswith(_SCHEMES):
        raise ValueError("the key uri must be the address of a database: postgresql://…")
    return StoreConnection(uri=uri)
