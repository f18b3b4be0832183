"""The access matrix against a real API server: its own tokens, roles and words."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import pytest

from taskqueue.gateway.settings import GatewaySettings
from taskqueue.kubernetes.client import load_access
from taskqueue.loop_thread import LoopThread
from tests.conftest import Cluster, Kubectl
from tests.unit.gateway.access_matrix import Right, all_rights, check, operations, reading
from tests.unit.gateway.harness import RunningGateway

pytestmark = pytest.mark.cluster


@pytest.fixture
def gateway(cluster: Cluster, installed: None) -> Iterator[RunningGateway]:
    """A gateway that reaches the API server with an administrator's client certificate.

    So a request whose own credential did not count would be allowed everything.
    """
    loop = LoopThread("gateway-access")
    access = loop.run(load_access(str(cluster.kubeconfig)))
    settings = GatewaySettings(requests_per_second=1e6, burst=10**6)
    gateway = RunningGateway(access, settings, loop)
    yield gateway
    gateway.stop()
    loop.finish(_nothing())


async def _nothing() -> None:
    return None


@pytest.fixture(scope="session")
def installed(kubectl: Kubectl) -> None:
    """The kinds, under their own group, whose status the gateway asks for."""
    kubectl.ok("apply", "--server-side", "--force-conflicts", "-f", "crds")
    kubectl.ok("wait", "--for=condition=Established", "--timeout=60s", "-f", "crds")


def token_of(kubectl: Kubectl, namespace: str, name: str, granted: set[Right]) -> str:
    """Make a ServiceAccount with these rights in its namespace, and return a token of it."""
    rules = [
        {"apiGroups": ["taskqueue.dev"], "resources": [resource], "verbs": [verb]}
        for verb, resource in sorted(granted)
    ]
    metadata = {"name": name, "namespace": namespace}
    group = "rbac.authorization.k8s.io"
    objects: list[dict[str, Any]] = [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata},
        {"apiVersion": f"{group}/v1", "kind": "Role", "metadata": metadata, "rules": rules},
        {
            "apiVersion": f"{group}/v1",
            "kind": "RoleBinding",
            "metadata": metadata,
            "roleRef": {"apiGroup": group, "kind": "Role", "name": name},
            "subjects": [{"kind": "ServiceAccount", **metadata}],
        },
    ]
    listed = {"apiVersion": "v1", "kind": "List", "items": objects}
    kubectl.ok("apply", "-f", "-", input=json.dumps(listed))
    return kubectl.ok("create", "token", name, "-n", namespace).strip()


def spoiled(token: str) -> dict[str, str]:
    """Return tokens that are none: ended long ago, of another user, with another signature."""
    head, body, signature = token.split(".")
    claims = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))

    def signed(**changes: Any) -> str:
        text = json.dumps({**claims, **changes}).encode()
        return f"{head}.{base64.urlsafe_b64encode(text).decode().rstrip('=')}.{signature}"

    return {
        "expired": signed(exp=claims["iat"] - 60, iat=claims["iat"] - 3600),
        "forged": signed(sub="system:serviceaccount:kube-system:default"),
        "cut": token[:-8],
        "unknown": "nobody",
    }


def test_every_operation_has_the_api_servers_answer(
    kubectl: Kubectl, namespace: str, gateway: RunningGateway
) -> None:
    rights = all_rights(namespace)
    other = f"{namespace}-b"
    kubectl.ok("create", "namespace", other)
    try:
        callers = {
            "elsewhere": (set[Right](), token_of(kubectl, other, "elsewhere", rights)),
            "nothing": (set[Right](), token_of(kubectl, namespace, "nothing", set())),
            "reader": (
                reading(rights),
                token_of(kubectl, namespace, "reader", reading(rights)),
            ),
            "full": (rights, token_of(kubectl, namespace, "full", rights)),
        }
        full = callers["full"][1]
        for operation in operations(namespace):
            for granted, token in callers.values():
                answer = gateway.request(
                    operation.method, operation.path, token=token, json=operation.body
                )
                problem = answer.json() if answer.content else {}
                check(operation, answer.status_code, problem, granted=granted)
            for kind, wrong in {"none": None, **spoiled(full)}.items():
                answer = gateway.request(
                    operation.method, operation.path, token=wrong, json=operation.body
                )
                assert answer.status_code == 401, (operation.name, kind, answer.text)
    finally:
        kubectl("delete", "namespace", other, "--wait=false")


def test_a_task_is_created_once_and_followed(
    kubectl: Kubectl, namespace: str, gateway: RunningGateway
) -> None:
    token = token_of(kubectl, namespace, "full", all_rights(namespace))
    path = f"/v1/namespaces/{namespace}/tasks"
    body = {"spec": {"queue": "none", "handler": "greet", "payload": {"x": [1.0, None]}}}
    headers = {"Idempotency-Key": "one"}
    first = gateway.request("POST", path, token=token, json=body, headers=headers)
    again = gateway.request("POST", path, token=token, json=body, headers=headers)
    assert (first.status_code, again.status_code) == (201, 200), again.text
    name = first.json()["metadata"]["name"]
    with gateway.request("GET", f"{path}/{name}/events", token=token, stream=True) as stream:
        lines = stream.iter_lines(chunk_size=1, decode_unicode=True)
        assert any(line == "event: status" for line in lines)
    unknown = {"spec": {**body["spec"], "startAfter": "2026-13-01T00:00:00Z"}}
    refused = gateway.request("POST", path, token=token, json=unknown)
    assert refused.status_code == 422
    listed = gateway.request("GET", f"{path}?queue=none&phase=Failed", token=token)
    assert listed.json()["items"] == []
    assert gateway.request("DELETE", f"{path}/{name}", token=token).status_code == 204
