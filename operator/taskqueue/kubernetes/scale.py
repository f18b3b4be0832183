"""Finds, reads and resizes any object with a scale subresource.

API discovery gives the plural of a kind and whether it has a scale subresource. The operator needs
the verbs get and patch on it; for kinds outside the API group apps an administrator grants them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

from taskqueue.kubernetes.client import MERGE_PATCH, ApiClient, ApiError
from taskqueue.kubernetes.ownership import FIELD_MANAGER
from taskqueue.model.queue import ScaleTargetRef

CLUSTER_ROLE = "taskqueue-operator"

_STATEFUL_SET = ("apps/v1", "StatefulSet")


class TargetUnusable(Exception):
    """The target cannot be scaled until somebody changes something.

    Attributes:
        reason: in CamelCase, for a condition.
        message: what is wrong and what to do.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """The content of a scale subresource.

    Attributes:
        replicas: pods asked for.
        current: pods that exist, as its controller counts them.
        selector: label selector of its pods, in text form.
    """

    replicas: int
    current: int
    selector: str


class ScaleTarget:
    """An object with a scale subresource; made by `find`."""

    def __init__(
        self, client: ApiClient, namespace: str, ref: ScaleTargetRef, *, plural: str
    ) -> None:
        self._client = client
        self._namespace = namespace
        self._ref = ref
        self._plural = plural
        self._path = f"{_root(ref.api_version)}/namespaces/{namespace}/{plural}/{ref.name}"

    @classmethod
    async def find(cls, client: ApiClient, namespace: str, ref: ScaleTargetRef) -> Self:
        """Look up the kind by API discovery; keep the result until a `TargetUnusable`.

        Raises:
            TargetUnusable: the API has no such kind, or the kind has no scale subresource or is not
                namespaced.
            ApiError: refused or unreachable.
        """
        where = f"spec.workers.scaleTargetRef of TaskQueues in {namespace}"
        try:
            resources = (await client.get(_root(ref.api_version))).get("resources") or []
        except ApiError as error:
            if error.status != 404:
                raise
            resources = []
        own = [one for one in resources if one["kind"] == ref.kind and "/" not in one["name"]]
        if not own:
            raise TargetUnusable(
                "ScaleTargetUnknown",
                f"the API server has no kind {ref.kind} in {ref.api_version}: correct apiVersion "
                f"and kind in {where}, or install its CustomResourceDefinition",
            )
        plural = own[0]["name"]
        if not own[0].get("namespaced", False):
            raise TargetUnusable(
                "ScaleTargetUnusable",
                f"{ref.kind} in {ref.api_version} is not namespaced: {where} must name a kind that "
                "is",
            )
        if not any(one["name"] == f"{plural}/scale" for one in resources):
            raise TargetUnusable(
                "ScaleTargetUnusable",
                f"{ref.kind} in {ref.api_version} has no scale subresource: {where} must name a "
                "kind that has one (subresources.scale of a CustomResourceDefinition)",
            )
        return cls(client, namespace, ref, plural=plural)

    @property
    def ordered(self) -> bool:
        """Whether its pods have ordinals; the highest are removed first."""
        return (self._ref.api_version, self._ref.kind) == _STATEFUL_SET

    async def first_ordinal(self) -> int:
        """Return the lowest ordinal of its pods; 0 if it is not `ordered`.

        Raises:
            TargetUnusable: see `read`.
            ApiError: refused or unreachable.
        """
        if not self.ordered:
            return 0
        spec = (await self._request("GET", self._path)).get("spec") or {}
        return int((spec.get("ordinals") or {}).get("start", 0))

    async def read(self) -> Scale:
        """Return its size and the selector of its pods.

        Raises:
            TargetUnusable: it does not exist, may not be read, or has no selector: an empty one
                would match all pods of the namespace.
            ApiError: refused or unreachable.
        """
        raw = await self._request("GET", f"{self._path}/scale")
        spec, status = raw.get("spec") or {}, raw.get("status") or {}
        selector = status.get("selector", "")
        if not selector:
            raise TargetUnusable(
                "ScaleTargetUnusable",
                f"{self._who} has no selector of its pods in its scale subresource: its "
                "CustomResourceDefinition must have subresources.scale.labelSelectorPath, and its "
                "controller must write the field which that names",
            )
        return Scale(
            replicas=spec.get("replicas", 0), current=status.get("replicas", 0), selector=selector
        )

    async def resize(self, replicas: int) -> None:
        """Set its size and change nothing else.

        Raises:
            TargetUnusable: it does not exist, may not be changed, or refuses the size.
            ApiError: refused or unreachable.
        """
        await self._request("PATCH", f"{self._path}/scale", replicas=replicas)

    @property
    def _who(self) -> str:
        return f"{self._ref.kind} {self._namespace}/{self._ref.name}"

    async def _request(
        self, method: str, path: str, *, replicas: int | None = None
    ) -> dict[str, Any]:
        try:
            if replicas is None:
                return await self._client.get(path)
            return await self._client.request(
                method,
                path,
                params={"fieldManager": FIELD_MANAGER},
                body={"spec": {"replicas": replicas}},
                content_type=MERGE_PATCH,
            )
        except ApiError as error:
            unusable = self._explain(error, method, scale=path.endswith("/scale"))
            if unusable is None:
                raise
            raise unusable from error

    def _explain(self, error: ApiError, method: str, *, scale: bool) -> TargetUnusable | None:
        who, group = self._who, self._ref.api_version.rpartition("/")[0]
        if error.status == 404:
            return TargetUnusable(
                "ScaleTargetNotFound",
                f"{who} does not exist: create it, or correct name in spec.workers.scaleTargetRef",
            )
        if error.status == 403:
            resource = f"{self._plural}/scale" if scale else self._plural
            verbs = "[get, patch]" if scale else "[get]"
            return TargetUnusable(
                "ScaleTargetForbidden",
                f"the operator may not {method.lower()} {resource} of {who}: add to ClusterRole "
                f'{CLUSTER_ROLE} the rule {{apiGroups: ["{group}"], resources: [{resource}], '
                f"verbs: {verbs}}}, or bind its ServiceAccount to a Role of namespace "
                f"{self._namespace} with that rule",
            )
        if error.status in (400, 422):
            return TargetUnusable("ScaleTargetRefused", f"{who} refuses the size: {error.message}")
        return None


def _root(api_version: str) -> str:
    return f"/apis/{api_version}" if "/" in api_version else f"/api/{api_version}"
