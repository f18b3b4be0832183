"""JSON is read in `taskqueue.exact_json` only: everywhere else its depth would be forgotten."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import taskqueue

ROOT = Path(taskqueue.__file__).parent

#: Modules that read JSON.
PARSERS = {"json", "orjson"}
READERS = {"loads", "load", "JSONDecoder"}

ALLOWED = {
    "exact_json.py",
    # Standard library only; what it reads, the worker has checked.
    "worker/sdk/checkpoints.py",
    # pydantic's own parser, on what it has encoded itself a moment ago.
    "worker/sdk/payloads.py",
}


def readers(source: str) -> Iterator[int]:
    """Yield the lines of a module that read JSON, by any of the ways there are."""
    tree = ast.parse(source)
    names = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
        if alias.name in PARSERS
    }
    for node in ast.walk(tree):
        match node:
            case ast.ImportFrom(module=module, names=imported) if module in PARSERS:
                if READERS & {alias.name for alias in imported}:
                    yield node.lineno
            case ast.Attribute(value=ast.Name(id=name), attr=attr) if name in names:
                if attr in READERS:
                    yield node.lineno
            case ast.Attribute(attr="validate_json" | "model_validate_json"):
                yield node.lineno
            case ast.Call(func=ast.Attribute(attr="json")):
                yield node.lineno


def test_json_is_read_in_one_place() -> None:
    found = {
        f"{path.relative_to(ROOT)}:{line}"
        for path in sorted(ROOT.rglob("*.py"))
        if str(path.relative_to(ROOT)) not in ALLOWED
        for line in readers(path.read_text())
    }
    assert not found, "read it with taskqueue.exact_json: decode, or decode_own if it is ours"


@pytest.mark.parametrize(
    "source",
    [
        "import orjson\norjson.loads(b'1')",
        "import orjson as o\nread = o.loads",
        "import json\nwith open('f') as f: json.load(f)",
        "from orjson import loads",
        "from json import loads as read",
        "import json\njson.JSONDecoder().raw_decode('1')",
        "Model.model_validate_json(b'{}')",
        "await response.json()",
    ],
)
def test_every_way_to_read_json_is_seen(source: str) -> None:
    module = f"async def read():\n    {source.replace(chr(10), chr(10) + '    ')}"
    assert list(readers(module))


@pytest.mark.parametrize(
    "source", ["import orjson\norjson.dumps(1)", "import pickle\npickle.loads"]
)
def test_what_reads_no_json_is_not_seen(source: str) -> None:
    assert not list(readers(source))
