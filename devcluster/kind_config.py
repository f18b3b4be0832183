"""Reading ``kind-config.yaml``: the part of kind's configuration that native nodes can honour.

Known are ``kind``, ``apiVersion``, ``name``, ``nodes`` (one of ``role: control-plane``, any number
of ``role: worker``) and ``featureGates``. Anything else is refused by name: a setting that real
kind would obey and this one silently ignored would make the two clusters differ where nobody looks.

The command must run under any Python without packages, so the YAML is read here: block
mappings, block lists, plain and quoted scalars, comments. Other YAML is refused as well.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from devcluster.commands import DevclusterError
from devcluster.layout import CONTROL_PLANE
from devcluster.subnets import MAX_WORKERS

_API_VERSION = "kind.x-k8s.io/v1alpha4"
_KNOWN = {"kind", "apiVersion", "name", "nodes", "featureGates"}

#: What a block of this small YAML can be.
Value = str | bool | list["Value"] | dict[str, "Value"]


@dataclass(frozen=True)
class KindConfig:
    """What a configuration asks of a cluster."""

    name: str | None = None
    workers: int = 0
    feature_gates: Mapping[str, bool] = field(default_factory=dict)


def parse(text: str) -> KindConfig:
    """Read a configuration.

    Raises:
        DevclusterError: it is no such file, or asks for what a native node does not do.
    """
    document = _Reader(text).read()
    if document.get("kind") != "Cluster" or document.get("apiVersion") != _API_VERSION:
        raise DevclusterError(
            f"kind config: expected `kind: Cluster`, `apiVersion: {_API_VERSION}`."
        )
    for key in sorted(document.keys() - _KNOWN):
        raise DevclusterError(
            f"kind config: the field `{key}` is not supported by devcluster's native nodes.\n"
            f"What to do: remove it (known are {', '.join(sorted(_KNOWN))}), or use kind with a "
            "Docker engine."
        )
    workers = _count_workers(document.get("nodes", []))
    name = document.get("name")
    if name is not None and not isinstance(name, str):
        raise DevclusterError("kind config: `name` is not a string.")
    gates = _feature_gates(document.get("featureGates", {}))
    return KindConfig(name=name, workers=workers, feature_gates=gates)


def _count_workers(nodes: Value) -> int:
    if not isinstance(nodes, list):
        raise DevclusterError("kind config: `nodes` is not a list.")
    roles = [_role(node) for node in nodes] or [CONTROL_PLANE]
    workers = roles.count("worker")
    if roles.count(CONTROL_PLANE) != 1 or workers > MAX_WORKERS:
        raise DevclusterError(
            f"kind config: `nodes` has {roles.count(CONTROL_PLANE)} of `role: control-plane` and "
            f"{workers} of `role: worker`; devcluster's native cluster has exactly one and 0 to "
            f"{MAX_WORKERS}.\nWhat to do: change the list, or use kind with a Docker engine."
        )
    return workers


def _role(node: Value) -> str:
    if not isinstance(node, dict):
        raise DevclusterError("kind config: an entry of `nodes` is not a mapping.")
    for key in sorted(node.keys() - {"role"}):
        raise DevclusterError(
            f"kind config: the field `nodes[].{key}` is not supported by devcluster's native "
            "nodes.\nWhat to do: remove it, or use kind with a Docker engine."
        )
    role = node.get("role", CONTROL_PLANE)
    if role not in (CONTROL_PLANE, "worker"):
        raise DevclusterError(
            f"kind config: there is no `role: {role}`; known are `control-plane` and `worker`."
        )
    return str(role)


def _feature_gates(gates: Value) -> dict[str, bool]:
    if not isinstance(gates, dict):
        raise DevclusterError("kind config: `featureGates` is not a mapping.")
    result: dict[str, bool] = {}
    for gate, value in gates.items():
        if not isinstance(value, bool):
            raise DevclusterError(f"kind config: `featureGates.{gate}` is neither true nor false.")
        result[gate] = value
    return result


class _Reader:
    """Reads blocks by their indentation."""

    def __init__(self, text: str) -> None:
        self._lines: list[tuple[int, str, int]] = []
        for number, raw in enumerate(text.splitlines(), start=1):
            line = re.sub(r"(^|\s)#.*$", "", raw).rstrip()
            if line.strip() and line.strip() != "---":
                self._lines.append((len(line) - len(line.lstrip()), line.strip(), number))
        self._at = 0

    def read(self) -> dict[str, Value]:
        if not self._lines:
            raise DevclusterError("kind config: the file is empty.")
        value = self._block(self._lines[0][0])
        if self._at < len(self._lines) or not isinstance(value, dict):
            raise self._refuse("expected one mapping")
        return value

    def _block(self, indent: int) -> Value:
        is_list = self._lines[self._at][1].startswith("-")
        return self._list(indent) if is_list else self._mapping(indent)

    def _list(self, indent: int) -> list[Value]:
        items: list[Value] = []
        while self._here(indent) and self._lines[self._at][1].startswith("-"):
            _, text, number = self._lines[self._at]
            rest = text[1:].lstrip()
            if not rest:
                self._at += 1
                items.append(self._nested(indent))
            elif ":" in rest:
                # "- key: value" opens a mapping whose other keys stand below its first.
                inner = indent + len(text) - len(rest)
                self._lines[self._at] = (inner, rest, number)
                items.append(self._mapping(inner))
            else:
                items.append(self._scalar(rest))
                self._at += 1
        return items

    def _mapping(self, indent: int) -> dict[str, Value]:
        result: dict[str, Value] = {}
        while self._here(indent) and not self._lines[self._at][1].startswith("-"):
            key, colon, rest = self._lines[self._at][1].partition(":")
            name = str(self._scalar(key))
            if not colon or (rest and not rest.startswith(" ")) or name in result:
                raise self._refuse("expected `key: value`, each key once")
            if rest.strip():
                result[name] = self._scalar(rest.strip())
                self._at += 1
            else:
                self._at += 1
                result[name] = self._nested(indent)
        return result

    def _nested(self, indent: int) -> Value:
        if self._at < len(self._lines):
            next_indent, text, _ = self._lines[self._at]
            # A list may stand at the indentation of the key that holds it.
            if next_indent > indent or (next_indent == indent and text.startswith("-")):
                return self._block(next_indent)
        return ""

    def _here(self, indent: int) -> bool:
        if self._at >= len(self._lines) or self._lines[self._at][0] < indent:
            return False
        if self._lines[self._at][0] > indent:
            raise self._refuse("unexpected indentation")
        return True

    def _scalar(self, text: str) -> str | bool:
        text = text.strip()
        if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'":
            return text[1:-1]
        if not text or text[0] in "\"'[]{}&*!|>%@`":
            raise self._refuse("only plain and quoted scalars in block style are read")
        return {"true": True, "false": False}.get(text, text)

    def _refuse(self, why: str) -> DevclusterError:
        number = self._lines[min(self._at, len(self._lines) - 1)][2]
        return DevclusterError(f"kind config, line {number}: {why}.")
