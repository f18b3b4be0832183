"""What the shipped roles grant, read from the manifests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from taskqueue.api.common import GROUP

MANIFESTS = Path(__file__).parents[3] / "manifests"


def objects(name: str) -> list[dict[str, Any]]:
    return [one for one in yaml.safe_load_all((MANIFESTS / name).read_text()) if one]


def test_a_served_namespace_grants_what_the_cluster_role_grants() -> None:
    roles = [one for one in objects("base/rbac.yaml") if one["kind"] == "ClusterRole"]
    # What workers.credentials needs besides is granted where it is wanted, in either installation.
    for role, folder in zip(roles, ("served", "credentials"), strict=True):
        found = objects(f"namespaced/{folder}/rbac.yaml")
        (here,) = [one for one in found if one["kind"] == "Role"]
        (binding,) = [one for one in found if one["kind"] == "RoleBinding"]
        assert here["rules"] == role["rules"]
        assert binding["roleRef"]["name"] == here["metadata"]["name"] == role["metadata"]["name"]
        assert binding["subjects"][0]["name"] == "taskqueue-operator"


@pytest.mark.parametrize("name", ["served", "credentials", "operator"])
def test_a_namespaced_installation_has_roles_only(name: str) -> None:
    assert {one["kind"] for one in objects(f"namespaced/{name}/rbac.yaml")} == {
        "Role",
        "RoleBinding",
    }


@pytest.mark.parametrize("role", ["view", "edit", "admin"])
def test_a_role_is_part_of_that_of_kubernetes(role: str) -> None:
    (found,) = [
        one for one in objects("roles/roles.yaml") if one["metadata"]["name"].endswith(role)
    ]
    aggregated = f"rbac.authorization.k8s.io/aggregate-to-{role}"
    assert found["metadata"]["labels"] == {aggregated: "true"}
    assert {group for rule in found["rules"] for group in rule["apiGroups"]} == {GROUP}
    verbs = {verb for rule in found["rules"] for verb in rule["verbs"]}
    assert (role == "view") == (verbs == {"get", "list", "watch"})
