"""docs/security.md names tests that exist: each line that says what is apart has one."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "security.md").read_text()
_TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


def tables() -> list[list[list[str]]]:
    """Return the tables of the page: rows of cells, the header first."""
    found: list[list[list[str]]] = [[]]
    for line in TEXT.splitlines():
        if line.startswith("|"):
            found[-1].append([cell.strip() for cell in line.strip("|").split("|")])
        elif found[-1]:
            found.append([])
    return [table for table in found if table]


@pytest.mark.parametrize(("path", "name"), sorted(set(_TEST.findall(TEXT))))
def test_a_test_that_is_named_exists(path: str, name: str) -> None:
    module = ast.parse((ROOT / path).read_text())
    names = {
        one.name for one in module.body if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert name in names


def test_each_line_that_says_what_is_apart_names_its_test() -> None:
    lines = [row for table in tables() if table[0][-1] == "test" for row in table[2:]]
    assert len(lines) > 15
    missing = [row[0] for row in lines if not _TEST.search(row[-1])]
    assert not missing
