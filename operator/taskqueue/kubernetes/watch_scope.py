"""Which namespaces an operator serves: those of a list, or all.

Where there is a list, nothing is asked of the API server outside these namespaces and the
operator's own, so that Roles are enough.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from taskqueue.kubernetes.client import ApiClient, ApiError
from taskqueue.logs import EventLog

log = EventLog(__name__)

_FORBIDDEN = 403
#: For how long a namespace that refuses is tried again: an API server that has just started, and
#: one that was given a Role a moment ago, refuse at first.
PATIENCE_SECONDS = 15.0
_PAUSE_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class WatchScope:
    """The namespaces that are served.

    Attributes:
        namespaces: in order, each once; empty: all namespaces of the cluster.
    """

    namespaces: tuple[str, ...] = ()

    def paths(self, path: str) -> tuple[str, ...]:
        """Return the paths of the lists that together have what is served of a resource.

        Args:
            path: of the list in all namespaces, such as ``/apis/apps/v1/deployments``.
        """
        if not self.namespaces:
            return (path,)
        api, _, resource = path.rpartition("/")
        return tuple(f"{api}/namespaces/{name}/{resource}" for name in self.namespaces)


#: All namespaces of the cluster.
EVERYWHERE = WatchScope()


async def permitted(client: ApiClient, scope: WatchScope, resources: Sequence[str]) -> WatchScope:
    """Return the scope without the namespaces in which a resource must not be listed.

    One namespace without its Role must not stop the others, and nothing may be taken for empty
    that was not read. So such a namespace is left out as a whole, until the operator starts again.
    While none is permitted it goes on asking.

    Args:
        client: for the API server.
        scope: what is to be served.
        resources: paths of the lists in all namespaces.
    """
    loop = asyncio.get_running_loop()
    patient_until = loop.time() + PATIENCE_SECONDS
    refused = dict.fromkeys(scope.namespaces, "")
    while refused:
        for namespace in list(refused):
            paths = [WatchScope((namespace,)).paths(path)[0] for path in resources]
            problem = await _refusal(client, paths)
            if problem is None:
                del refused[namespace]
            else:
                refused[namespace] = problem
        is_over = loop.time() >= patient_until
        if is_over and len(refused) < len(scope.namespaces):
            break
        if refused:
            if is_over:  # there is none to serve
                _log_refused(refused)
                patient_until = loop.time() + PATIENCE_SECONDS
            await asyncio.sleep(_PAUSE_SECONDS)
    _log_refused(refused)
    return WatchScope(tuple(one for one in scope.namespaces if one not in refused))


async def _refusal(client: ApiClient, paths: Iterable[str]) -> str | None:
    """Return how a list is refused; None: none is. Another failure says nothing of permissions."""
    for path in paths:
        try:
            await client.send("GET", path, params={"limit": "1"})
        except ApiError as error:
            if error.status == _FORBIDDEN:
                return str(error)
    return None


def _log_refused(refused: Mapping[str, str]) -> None:
    for namespace, problem in refused.items():
        log.error(
            "namespace.refused",
            namespace=namespace,
            error=problem,
            hint="it is not served: give the operator's ServiceAccount the Role of "
            "manifests/namespaced/served there, or take it out of TASKQUEUE_WATCH_NAMESPACES, then "
            "restart the operator",
        )
