"""Manifests that `taskqueue dev` applies: Tasks, TaskQueues and ConfigMaps, from YAML files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

from taskqueue.dev.memory_api import PLURALS, MemoryApi, Object
from taskqueue.kubernetes.client import ApiError

DEFAULT_NAMESPACE = "default"


class ManifestError(ValueError):
    """A file cannot be read as manifests; the text names it."""


def files_of(paths: Iterable[Path]) -> list[Path]:
    """Return the files that are named: of a folder all that end in .yaml, .yml or .json."""
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            found += sorted(
                one for one in path.iterdir() if one.suffix in (".yaml", ".yml", ".json")
            )
        else:
            found.append(path)
    return found


def read_file(path: Path) -> Iterator[Object]:
    """Yield the objects of a file, those of a List one by one.

    Raises:
        ManifestError: it cannot be read.
    """
    try:
        documents = list(yaml.load_all(path.read_text("utf-8"), _Loader))
    except (OSError, UnicodeError, yaml.YAMLError) as error:
        raise ManifestError(f"{path} cannot be read: {error}") from None
    for document in documents:
        if document is None:
            continue
        items = document.get("items") if _kind(document) == "List" else [document]
        for one in items or []:
            if not _kind(one):
                raise ManifestError(f"{path}: an object has no kind: give apiVersion and kind")
            yield one


def apply(api: MemoryApi, body: Object) -> str:
    """Create an object, or change it if it is there, and return what was done.

    Returns:
        ``kind/name created``, ``configured`` or ``unchanged``, or why nothing was done.

    Raises:
        ApiError: it is refused.
    """
    metadata = body.get("metadata") or {}
    kind, name = _kind(body), metadata.get("name", "")
    namespace = metadata.get("namespace", DEFAULT_NAMESPACE)
    plural = PLURALS.get(kind)
    if plural is None:
        return f"{kind}/{name} ignored: taskqueue dev knows {', '.join(PLURALS)} only"
    try:
        present = api.get(plural, namespace, name) if name else None
    except ApiError:
        present = None
    if present is None:
        made = api.create(plural, namespace, body)
        return f"{kind}/{made['metadata']['name']} created"
    change: Object = {key: body[key] for key in ("spec", "data") if key in body}
    after = api.merge(plural, namespace, name, change)
    same = after.get("spec") == present.get("spec") and after.get("data") == present.get("data")
    return f"{kind}/{name} {'unchanged' if same else 'configured'}"


def _kind(body: Any) -> str:
    return str(body.get("kind") or "") if isinstance(body, dict) else ""


class _Loader(yaml.SafeLoader):
    """Leaves times as they are written, as kubectl does."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, regexp) for tag, regexp in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
