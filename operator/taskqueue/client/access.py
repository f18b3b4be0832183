"""Finds the API server for a program, and the namespace it works in by default."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import yaml
from kubernetes.aio import config as kubernetes_config
from kubernetes.aio.client import Configuration

from taskqueue.client.errors import Unavailable
from taskqueue.defaults import DEV_VARIABLE
from taskqueue.kubernetes.client import ApiAccess, ApiClient, load_access

_OWN_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")

#: Raised for a kubeconfig with malformed content.
_MALFORMED = (TypeError, KeyError, ValueError)


@dataclass(frozen=True, slots=True)
class ApiConnection:
    """Clients of the API server, with a default namespace.

    Attributes:
        requests: for requests.
        watches: for watches: each holds a connection as long as it lasts, which must not take one
            from the requests.
        namespace: of Tasks for which none is given.
    """

    requests: ApiClient
    watches: ApiClient
    namespace: str

    async def close(self) -> None:
        """Close all connections."""
        await self.requests.close()
        await self.watches.close()


Connect = Callable[[], Awaitable[ApiConnection]]


def connector(kubeconfig: str | None) -> Connect:
    """Return a function that connects by the pod's service account, or else by a kubeconfig.

    Where the environment has the address of a `taskqueue dev`, and no kubeconfig is given, by that.
    """

    async def connect() -> ApiConnection:
        access, namespace = await _load_access(kubeconfig)
        return open_connection(access, namespace)

    return connect


def open_connection(access: ApiAccess, namespace: str) -> ApiConnection:
    """Return a connection with these credentials."""
    return ApiConnection(
        requests=ApiClient(access),
        watches=ApiClient(access, max_connections=0),
        namespace=namespace,
    )


async def _load_access(kubeconfig: str | None) -> tuple[ApiAccess, str]:
    if kubeconfig is None and (url := os.environ.get(DEV_VARIABLE)):
        return ApiAccess(Configuration(host=url), None), "default"
    in_cluster = kubeconfig is None and bool(os.environ.get("KUBERNETES_SERVICE_HOST"))
    try:
        if kubeconfig is not None and not await asyncio.to_thread(Path(kubeconfig).exists):
            raise FileNotFoundError(f"file {kubeconfig} does not exist")
        access = await load_access(kubeconfig)
        if in_cluster:
            return access, await asyncio.to_thread(_own_namespace)
        _, current = kubernetes_config.list_kube_config_contexts(kubeconfig)  # type: ignore[no-untyped-call]
        return access, str(current["context"].get("namespace") or "default")
    except (kubernetes_config.ConfigException, OSError, yaml.YAMLError, *_MALFORMED) as error:
        raise Unavailable(
            f"cannot find a Kubernetes API server ({error}): run in a pod with a service account, "
            "set KUBECONFIG, or give kubeconfig="
        ) from error


def _own_namespace() -> str:
    return _OWN_NAMESPACE.read_text().strip()
