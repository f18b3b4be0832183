"""What is not in the API server stands behind a question to it: may this caller do that?

The question is a SelfSubjectAccessReview, asked with the caller's own credential, on a resource
that exists for this purpose only, such as ``taskqueues/messages``. Every authenticated user may ask
it, so the gateway needs no right of its own for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from taskqueue.api.common import GROUP
from taskqueue.client.access import ApiConnection
from taskqueue.gateway.problems import Problem

_PATH = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"


@dataclass(frozen=True, slots=True)
class Right:
    """A verb on a resource of taskqueue.dev, such as create on taskqueues/messages."""

    verb: str
    resource: str

    def extension(self) -> dict[str, str]:
        """Return it as the OpenAPI document has it."""
        return {"verb": self.verb, "resource": self.resource}


async def require(caller: ApiConnection, right: Right, namespace: str, name: str = "") -> None:
    """Ask the API server whether the caller may.

    Raises:
        Problem: 403, it may not.
        ApiError: the API server refused the question, or did not answer.
    """
    resource, _, subresource = right.resource.partition("/")
    attributes = {
        "group": GROUP,
        "verb": right.verb,
        "resource": resource,
        "subresource": subresource,
        "namespace": namespace,
        "name": name,
    }
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": attributes},
    }
    answer: dict[str, Any] = await caller.requests.request("POST", _PATH, body=review)
    status = answer.get("status") or {}
    if status.get("allowed"):
        return
    why = f": {status['reason']}" if status.get("reason") else ""
    raise Problem(
        403,
        "Forbidden",
        f'{resource}.{GROUP} "{name}" is forbidden: you cannot {right.verb} resource '
        f'"{right.resource}" in API group "{GROUP}" in the namespace "{namespace}"{why}: '
        "have a role bound that allows it (docs/guides/http.md)",
    )
