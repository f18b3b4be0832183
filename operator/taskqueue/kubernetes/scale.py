"""Anything with a /scale subresource: how it is found, read and resized.

The API's discovery tells the plural of a kind and whether it has /scale. The operator needs the
right to get and patch it: for kinds of other API groups than apps somebody has to give it that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

from taskqueue.kubernetes.client import MERGE_PATCH, ApiClient, ApiError
from taskqueue.model.queue import ScaleTargetRef

FIELD_MANAGER = "taskqueue-operator"
CLUSTER_ROLE = "taskqueue-operator"

_STATEFUL_SET = ("apps/v1", "StatefulSet")


class TargetUnusable(Exception):
    """The target cannot be scaled until somebody does something.

    Attributes:
        reason: in CamelCase, for a condition.
        message: who, what and what to do.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """What /scale says.

    Attributes:
        replicas: the size asked for.
        current: the number of pods that its controller counts.
        selector: of its pods, as a label selector's text.
    """

    replicas: int
    current: int
    selector: str


class ScaleTarget:
    """One object with /scale; made by `find`."""

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
        """Look the kind up in the API; to be kept, and done again after `TargetUnusable`.

        Raises:
            TargetUnusable: the API has no such kind, or it has no /scale or is not of a namespace.
            ApiError: the API server could not be asked.
        """
        where = f"spec.workers.scaleTargetRef of TaskQueues in {namespace}"
        try:
            resources = (await client.get(_root(ref.api_version))).get("resources") or []
        except ApiError as problem:
            if problem.status != 404:
                raise
            resources = []
        own = [one for one in resources if one["kind"] == ref.kind and "/" not in one["name"]]
        if not own:
            raise TargetUnusable(
                "ScaleTargetUnknown",
                f"the API server has no kind {ref.kind} in {ref.api_version}: mend apiVersion and "
                f"kind in {where}, or install its CustomResourceDefinition",
            )
        plural = own[0]["name"]
        if not own[0].get("namespaced", False):
            raise TargetUnusable(
                "ScaleTargetUnusable",
                f"{ref.kind} in {ref.api_version} belongs to no namespace: {where} must name a "
                "kind that does",
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
        """Whether its pods have ordinals, of which the highest go."""
        return (self._ref.api_version, self._ref.kind) == _STATEFUL_SET

    async def first_ordinal(self) -> int:
        """Return the least ordinal of its pods, as it is now; 0 of what is not `ordered`.

        Raises:
            TargetUnusable: see `read`.
            ApiError: the API server could not be asked.
        """
        if not self.ordered:
            return 0
        spec = (await self._ask("GET", self._path)).get("spec") or {}
        return int((spec.get("ordinals") or {}).get("start", 0))

    async def read(self) -> Scale:
        """Return its size.

        Raises:
            TargetUnusable: it is not there, may not be read, or does not tell its pods: an empty
                selector would be that of all pods of the namespace.
            ApiError: the API server could not be asked.
        """
        raw = await self._ask("GET", f"{self._path}/scale")
        spec, status = raw.get("spec") or {}, raw.get("status") or {}
        selector = status.get("selector", "")
        if not selector:
            raise TargetUnusable(
                "ScaleTargetUnusable",
                f"{self._who} tells no selector of its pods in its scale: its "
                "CustomResourceDefinition must have subresources.scale.labelSelectorPath, and its "
                "controller must write what that points to",
            )
        return Scale(
            replicas=spec.get("replicas", 0), current=status.get("replicas", 0), selector=selector
        )

    async def resize(self, replicas: int) -> None:
        """Set its size, and nothing else.

        Raises:
            TargetUnusable: it is not there, may not be changed, or refuses the size.
            ApiError: the API server could not be asked.
        """
        await self._ask("PATCH", f"{self._path}/scale", replicas=replicas)

    @property
    def _who(self) -> str:
        return f"{self._ref.kind} {self._namespace}/{self._ref.name}"

    async def _ask(self, method: str, path: str, *, replicas: int | None = None) -> dict[str, Any]:
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
        except ApiError as problem:
            unusable = self._explain(problem, method, scale=path.endswith("/scale"))
            if unusable is None:
                raise
            raise unusable from problem

    def _explain(self, problem: ApiError, method: str, *, scale: bool) -> TargetUnusable | None:
        who, group = self._who, self._ref.api_version.rpartition("/")[0]
        if problem.status == 404:
            return TargetUnusable(
                "ScaleTargetNotFound",
                f"{who} does not exist: make it, or mend name in spec.workers.scaleTargetRef",
            )
        if problem.status == 403:
            resource = f"{self._plural}/scale" if scale else self._plural
            verbs = "[get, patch]" if scale else "[get]"
            return TargetUnusable(
                "ScaleTargetForbidden",
                f"the operator may not {method.lower()} {resource} of {who}: add to ClusterRole "
                f'{CLUSTER_ROLE} the rule {{apiGroups: ["{group}"], resources: [{resource}], '
                f"verbs: {verbs}}}, or bind its ServiceAccount to a Role of namespace "
                f"{self._namespace} with that rule",
            )
        if problem.status in (400, 422):
            return TargetUnusable(
                "ScaleTargetRefused", f"{who} does not take the size: {problem.message}"
            )
        return None


def _root(api_version: str) -> str:
    return f"/apis/{api_version}" if "/" in api_version else f"/api/{api_version}"
