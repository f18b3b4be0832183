"""Kubeconfigs: the one of a cluster, and its entry in a file that may hold others.

As kind does it, cluster, user and context are all named ``kind-<name>``; creating a cluster puts
its entry in and makes it current, deleting removes it and keeps the rest.
"""

import base64
import json
import os
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from devcluster.commands import run
from devcluster.paths import locked

#: A kubeconfig is nested mappings and lists of whatever its owner put in.
Document = dict[str, Any]

_LISTS = ("clusters", "contexts", "users")


def entry_name(cluster: str) -> str:
    """Return what a cluster's entries are called."""
    return f"kind-{cluster}"


def default_path() -> Path:
    """Return the file that kubectl and kind change when none is named."""
    named = os.environ.get("KUBECONFIG", "").split(os.pathsep)[0]
    return Path(named) if named else Path.home() / ".kube" / "config"


def document(cluster: str, server: str, pki: Path, identity: str) -> Document:
    """Return the kubeconfig of one identity, certificates included.

    Args:
        cluster: the cluster's name.
        server: the API server's URL.
        pki: the folder with `ca.crt`, `<identity>.crt` and `<identity>.key`.
        identity: whose certificate to use.
    """
    name = entry_name(cluster)
    user = {
        "client-certificate-data": _encoded(pki / f"{identity}.crt"),
        "client-key-data": _encoded(pki / f"{identity}.key"),
    }
    authority = {"server": server, "certificate-authority-data": _encoded(pki / "ca.crt")}
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": name, "cluster": authority}],
        "contexts": [{"name": name, "context": {"cluster": name, "user": name}}],
        "users": [{"name": name, "user": user}],
        "current-context": name,
    }


def merged(existing: Mapping[str, Any], added: Mapping[str, Any]) -> Document:
    """Return `existing` with the entries of `added`, which replace those of the same name."""
    result: Document = {**existing, "apiVersion": "v1", "kind": "Config"}
    for key in _LISTS:
        names = {item["name"] for item in added[key]}
        kept = [item for item in existing.get(key) or [] if item["name"] not in names]
        result[key] = kept + list(added[key])
    result["current-context"] = added["current-context"]
    return result


def without(existing: Mapping[str, Any], cluster: str) -> Document:
    """Return `existing` without a cluster's entries."""
    name = entry_name(cluster)
    result: Document = dict(existing)
    for key in _LISTS:
        result[key] = [item for item in existing.get(key) or [] if item["name"] != name]
    if existing.get("current-context") == name:
        result["current-context"] = ""
    return result


def read(path: Path, kubectl: Path) -> Document:
    """Read a kubeconfig by kubectl, which knows all of YAML; absent or empty is an empty one."""
    if not path.exists() or not path.read_text().strip():
        return {}
    shown = run(
        [kubectl, "config", "view", "--raw", "-o", "json", "--kubeconfig", path],
        hint=f"repair {path}, or delete it",
    )
    content: Document = json.loads(shown)
    return content


def write(path: Path, content: Mapping[str, Any]) -> None:
    """Write a kubeconfig that only its owner can read, all at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(to_yaml(content))
    scratch.replace(path)


def add(path: Path, added: Mapping[str, Any], kubectl: Path) -> None:
    """Put a cluster's entries into the file and make its context current."""
    with _locked(path):
        write(path, merged(read(path, kubectl), added))


def remove(path: Path, cluster: str, kubectl: Path) -> None:
    """Remove a cluster's entries from the file, if it exists."""
    if not path.exists() or not kubectl.exists():
        return
    with _locked(path):
        content = read(path, kubectl)
        if content:
            write(path, without(content, cluster))


def to_yaml(value: Any, indent: int = 0) -> str:
    """Return block YAML of mappings, lists and JSON scalars."""
    pad = "  " * indent
    if isinstance(value, dict) and value:
        return "".join(
            f"{pad}{key}:{_inline(item)}"
            if _is_flat(item)
            else f"{pad}{key}:\n{to_yaml(item, indent + 1)}"
            for key, item in value.items()
        )
    if isinstance(value, list) and value:
        parts = []
        for item in value:
            block = f"{pad}  {json.dumps(item)}\n" if _is_flat(item) else to_yaml(item, indent + 1)
            parts.append(f"{pad}- {block[len(pad) + 2 :]}")
        return "".join(parts)
    return f"{pad}{json.dumps(value)}\n"


def _locked(path: Path) -> AbstractContextManager[None]:
    # Not "<path>.lock": kubectl creates and removes a file of that name as its own lock.
    return locked(path.with_name(f".{path.name}.devcluster"))


def _is_flat(value: Any) -> bool:
    return not isinstance(value, dict | list) or not value


def _inline(value: Any) -> str:
    return f" {json.dumps(value)}\n"


def _encoded(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()
