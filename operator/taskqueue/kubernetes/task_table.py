"""Reads Tasks as rows of a Table: their metadata and printer columns, however large they are.

A row is turned into an outline: an object in the form of a Task that has those fields only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from taskqueue.api.printer_columns import TASK_COLUMNS
from taskqueue.kubernetes.client import TABLE, ApiClient, ApiError
from taskqueue.kubernetes.pages import ROWS
from taskqueue.kubernetes.task_codec import task_path

#: A Table shows how long ago a date was: times that are needed have a column of type string.
_FIELDS = {
    column.name: column.path.removeprefix(".").split(".")
    for column in TASK_COLUMNS
    if column.type != "date"
}

#: Has each row bring the metadata of its object.
WITH_METADATA: Mapping[str, str] = {"includeObject": "Metadata"}


def outlines(table: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the outline of each Task in a Table.

    Raises:
        ApiError: a column is missing.
    """
    names = [column["name"] for column in table.get("columnDefinitions") or ()]
    missing = _FIELDS.keys() - names
    if missing:
        raise ApiError(
            0,
            "ColumnMissing",
            f"the CustomResourceDefinition of Tasks has no printer column {min(missing)}: apply "
            "the CRDs of the operator's version",
        )
    for row in table["rows"] or ():
        outline: dict[str, Any] = {"metadata": row["object"]["metadata"], "spec": {}, "status": {}}
        for name, value in zip(names, row["cells"], strict=True):
            if name in _FIELDS and value is not None:
                part, field = _FIELDS[name]
                outline[part][field] = value
        yield outline


async def get_outline(client: ApiClient, namespace: str, name: str) -> dict[str, Any]:
    """Return the outline of a Task.

    Raises:
        ApiError: refused or unreachable, a column is missing, or, with status 404, it does not
            exist.
    """
    table = await client.request(
        "GET", task_path(namespace, name), params=WITH_METADATA, accept=TABLE, levels=ROWS.levels
    )
    return next(outlines(table))
