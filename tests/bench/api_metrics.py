"""How many writes the API server took, by resource: its own count, not ours.

The counters are of the whole cluster. What somebody else does with Tasks meanwhile is in them too.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import NamedTuple

import aiohttp

from taskqueue.kubernetes.client import ApiAccess
from tests.bench.deadline import BenchError

#: Everything that changes an object, or tries to. Deletions of whole collections are left out: the
#: operator has no right to them, and every namespace that ends causes one for every resource.
WRITE_VERBS = frozenset({"POST", "PUT", "PATCH", "APPLY", "DELETE"})

_METRIC = "apiserver_request_total{"
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
_TIMEOUT = aiohttp.ClientTimeout(total=60)


class Resource(NamedTuple):
    """What was written: a resource, or a subresource of it ("" for none)."""

    group: str
    resource: str
    subresource: str

    def __str__(self) -> str:
        """Return it as RBAC rules call it, with the group behind a dot."""
        name = f"{self.resource}.{self.group}" if self.group else self.resource
        return f"{name}/{self.subresource}" if self.subresource else name


Writes = Counter[Resource]


def parse_writes(text: str) -> Writes:
    """Add up the writes in the API server's metrics, whatever their answer was."""
    writes: Writes = Counter()
    for line in text.splitlines():
        if not line.startswith(_METRIC):
            continue
        labels, _, value = line.removeprefix(_METRIC).rpartition("} ")
        named = dict(_LABEL.findall(labels))
        if named.get("verb") in WRITE_VERBS:
            key = Resource(
                named.get("group", ""), named.get("resource", ""), named.get("subresource", "")
            )
            writes[key] += int(float(value.split()[0]))
    return writes


def of_resource(writes: Writes, group: str, resource: str) -> int:
    """Return the writes of a resource and all its subresources."""
    return sum(
        count for key, count in writes.items() if (key.group, key.resource) == (group, resource)
    )


async def read_writes(access: ApiAccess) -> Writes:
    """Ask the API server for its counters.

    Raises:
        BenchError: it does not give them.
    """
    try:
        async with (
            aiohttp.ClientSession(timeout=_TIMEOUT) as session,
            session.get(
                f"{access.base_url}/metrics",
                headers=await access.headers(),
                ssl=access.ssl_context or False,
            ) as response,
        ):
            response.raise_for_status()
            return parse_writes(await response.text())
    except (aiohttp.ClientError, TimeoutError) as problem:
        raise BenchError(f"the API server's /metrics cannot be read: {problem!r}") from problem
