"""Installs manifests/namespaced as docs/install.md says, for namespaces of a test's own."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from devcluster.paths import CHECKOUT
from tests.e2e.api import GROUP

if TYPE_CHECKING:
    from tests.conftest import Kubectl

MANIFESTS = CHECKOUT / "manifests" / "namespaced"
SERVICE_ACCOUNT = "taskqueue-operator"


def write_overlay(
    folder: Path, *, operator: str, served: Iterable[str], managed: Collection[str] = ()
) -> None:
    """Write the overlay of an installation: its operator's namespace, and those that it serves.

    In those that are ``managed`` it may give workers credentials of their own.
    """
    names = list(served)
    container = {
        "name": "operator",
        "env": [{"name": "TASKQUEUE_WATCH_NAMESPACES", "value": ",".join(names)}],
    }
    deployment = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "taskqueue-operator"},
        "spec": {"template": {"spec": {"containers": [container]}}},
    }
    _write(folder / "operator", operator, ["operator"], "Deployment", yaml.safe_dump(deployment))
    subject = [{"op": "replace", "path": "/subjects/0/namespace", "value": operator}]
    for name in names:
        place = folder / name
        bases = ["served", "credentials"] if name in managed else ["served"]
        _write(place, name, bases, "RoleBinding", yaml.safe_dump(subject), f"-{operator}")
    resources = {"resources": ["operator", *names]}
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(resources))


def _write(
    folder: Path, namespace: str, bases: Iterable[str], kind: str, patch: str, suffix: str = ""
) -> None:
    folder.mkdir(parents=True)
    kustomization = {
        "namespace": namespace,
        "nameSuffix": suffix,
        "resources": [os.path.relpath(MANIFESTS / base, folder) for base in bases],
        "patches": [{"target": {"kind": kind}, "patch": patch}],
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))


def rendered(kubectl: Kubectl, folder: Path) -> list[dict[str, Any]]:
    """Return the objects of a kustomization."""
    return [one for one in yaml.safe_load_all(kubectl.ok("kustomize", str(folder))) if one]


def apply_rights(kubectl: Kubectl, objects: Iterable[dict[str, Any]], group: str = GROUP) -> None:
    """Apply what gives the operator its rights, for resources of another API group perhaps."""
    kinds = ("ServiceAccount", "Role", "RoleBinding")
    for one in objects:
        if one["kind"] in kinds:
            for rule in one.get("rules", ()):
                rule["apiGroups"] = [group if name == GROUP else name for name in rule["apiGroups"]]
            kubectl.ok("apply", "-f", "-", input=yaml.safe_dump(one))


def kubeconfig_of(kubectl: Kubectl, admin: Path, namespace: str, path: Path) -> Path:
    """Write a kubeconfig for the operator's ServiceAccount; return its path."""
    token = kubectl.ok("create", "token", SERVICE_ACCOUNT, "-n", namespace, "--duration=1h")
    config = yaml.safe_load(admin.read_text())
    (context,) = (
        one["context"] for one in config["contexts"] if one["name"] == config["current-context"]
    )
    config["users"] = [{"name": context["user"], "user": {"token": token.strip()}}]
    path.write_text(yaml.safe_dump(config))
    path.chmod(0o600)
    return path
