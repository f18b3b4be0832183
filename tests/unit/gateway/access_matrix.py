"""Who may do what: for every operation of the OpenAPI document, each kind of caller.

The rights are what ``x-kubernetes-access`` of an operation says. The same matrix is run against the
API server in memory and against a real one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from taskqueue.gateway.app import make_api
from taskqueue.gateway.operation import ACCESS

Right = tuple[str, str]

#: What read-only users may: the verbs that change nothing.
_READING = ("get", "list", "watch")

_BODIES: dict[str, Any] = {
    "createTask": {"spec": {"queue": "none", "handler": "none"}},
    "sendMessage": {"payload": {}},
}


@dataclass(frozen=True, slots=True)
class Operation:
    """An operation of the document.

    Attributes:
        name: operationId.
        method: of HTTP.
        path: with a namespace and a name that does not exist, with a query.
        rights: verbs on resources that the caller must have, in the order they are asked.
        body: JSON; None: it has none.
    """

    name: str
    method: str
    path: str
    rights: tuple[Right, ...]
    body: Any

    def missing(self, granted: set[Right]) -> tuple[Right, ...]:
        """Return the rights that somebody lacks."""
        return tuple(right for right in self.rights if right not in granted)


def operations(namespace: str) -> Iterator[Operation]:
    """Yield every operation of the document."""
    for path, methods in make_api().openapi()["paths"].items():
        for method, found in methods.items():
            where = path.replace("{namespace}", namespace).replace("{uid}", "0" * 8)
            where = re.sub(r"\{[a-z]+\}", "missing", where)
            needed = [p for p in found.get("parameters", ()) if p["in"] == "query"]
            query = [f"{p['name']}=missing" for p in needed if p.get("required")]
            yield Operation(
                name=found["operationId"],
                method=method.upper(),
                path=f"{where}?{'&'.join(query)}" if query else where,
                rights=tuple((each["verb"], each["resource"]) for each in found[ACCESS]),
                body=_BODIES.get(found["operationId"]),
            )


def all_rights(namespace: str) -> set[Right]:
    """Return every right that an operation needs."""
    return {right for each in operations(namespace) for right in each.rights}


def reading(rights: set[Right]) -> set[Right]:
    """Return those that change nothing."""
    return {right for right in rights if right[0] in _READING}


def check(
    operation: Operation, status: int, problem: dict[str, Any], *, granted: set[Right]
) -> None:
    """Check the answer to a caller whom the API server knows."""
    missing = operation.missing(granted)
    where = f"{operation.name} with {sorted(granted)}: {status} {problem}"
    if not missing:
        assert status not in (401, 403), where
        return
    if status == 404 and operation.rights[0] not in missing and len(operation.rights) > 1:
        return  # what comes first is not there, so that the rest was not asked
    assert status == 403, where
    assert problem["reason"] == "Forbidden", where
    said = [
        f'cannot {verb} resource "{resource}" in API group "taskqueue.dev"'
        for verb, resource in missing
    ]
    assert any(each in problem["detail"] for each in said), where
