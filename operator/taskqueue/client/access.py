"""How a program reaches the API server, and in whose namespace it is at home."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import yaml
from kubernetes.aio import config as kubernetes_config

from taskqueue.client.errors import Unavailable
from taskqueue.kubernetes.client import ApiAccess, ApiClient, load_access

_OWN_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")

#: What reading a kubeconfig raises that is not what it should be.
_MALFORMED = (TypeError, KeyError, ValueError)


class ApiRequester(Protocol):
    """What is needed of `taskqueue.kubernetes.client.ApiClient`; its errors are `ApiError`."""

    async def request(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        body: Any = None,
        content_type: str = "application/json",
    ) -> dict[str, Any]:
        """Send one request and return the parsed answer."""

    def watch(
        self, path: str, *, timeout_seconds: int, **params: str
    ) -> AsyncIterator[dict[str, Any]]:
        """Yield watch events until the server ends the watch."""

    async def close(self) -> None:
        """Close all connections."""


@dataclass(frozen=True, slots=True)
class ApiConnection:
    """A way to the API server.

    Attributes:
        requests: for requests.
        watches: for watches: each holds a connection as long as it lasts, and must not keep
            requests from theirs.
        namespace: where the program is at home.
    """

    requests: ApiRequester
    watches: ApiRequester
    namespace: str

    async def close(self) -> None:
        """Close all connections."""
        await self.requests.close()
        await self.watches.close()


Connect = Callable[[], Awaitable[ApiConnection]]


def connecting(kubeconfig: str | None) -> Connect:
    """Return what finds the API server: the pod's service account, else a kubeconfig."""

    async def connect() -> ApiConnection:
        access, namespace = await _find(kubeconfig)
        return over(access, namespace)

    return connect


def over(access: ApiAccess, namespace: str) -> ApiConnection:
    """Return a way to the API server as someone."""
    return ApiConnection(
        requests=ApiClient(access),
        watches=ApiClient(access, max_connections=0),
        namespace=namespace,
    )


async def _find(kubeconfig: str | None) -> tuple[ApiAccess, str]:
    in_cluster = kubeconfig is None and bool(os.environ.get("KUBERNETES_SERVICE_HOST"))
    try:
        if kubeconfig is not None and not await asyncio.to_thread(Path(kubeconfig).exists):
            raise FileNotFoundError(f"there is no file {kubeconfig}")
        access = await load_access(kubeconfig)
        if in_cluster:
            return access, await asyncio.to_thread(_own_namespace)
        _, current = kubernetes_config.list_kube_config_contexts(kubeconfig)  # type: ignore[no-untyped-call]
        return access, str(current["context"].get("namespace") or "default")
    except (kubernetes_config.ConfigException, OSError, yaml.YAMLError, *_MALFORMED) as problem:
        raise Unavailable(
            f"no way to a Kubernetes API server is known ({problem}): run in a pod with a service "
            "account, set KUBECONFIG, or give kubeconfig="
        ) from problem


def _own_namespace() -> str:
    return _OWN_NAMESPACE.read_text().strip()
