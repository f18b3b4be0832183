"""CONTRIBUTING.md names files and classes that exist, so a recipe cannot lead nowhere."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "operator" / "taskqueue"
TEXT = re.sub(r"\s+", " ", (ROOT / "CONTRIBUTING.md").read_text())

#: What is named although it is not there: placeholders, and what would be made.
_ABSENT = {
    "namespace/name",
    "results/",
    "worker/executors/NAME.py",
    "docs/decisions/NNNN-short-title.md",
}
_PATH = r"`((?:[\w.-]+/)+[\w.-]*|[\w.-]+\.(?:py|md|toml))`"


def found(path: str) -> Path | None:
    return next((one for one in (ROOT / path, PACKAGE / path) if one.exists()), None)


@pytest.mark.parametrize("path", sorted(set(re.findall(_PATH, TEXT)) - _ABSENT))
def test_a_file_that_is_named_exists(path: str) -> None:
    assert found(path), f"CONTRIBUTING.md names {path}, which does not exist"


@pytest.mark.parametrize(
    ("path", "names"), re.findall(r"`([\w/]+\.py)` \(((?:`\w+`(?:, | or |, or )?)+)\)", TEXT)
)
def test_a_class_named_with_its_file_is_there(path: str, names: str) -> None:
    file = found(path)
    assert file is not None
    classes = [node.name for node in ast.walk(ast.parse(file.read_text())) if hasattr(node, "name")]
    assert set(re.findall(r"\w+", names)) - {"or"} <= set(classes), path


def test_every_package_has_a_row() -> None:
    packages = [one.name for one in PACKAGE.iterdir() if one.is_dir() and one.name[0] != "_"]
    missing = [package for package in packages if f"`{package}/`" not in TEXT]
    assert not missing
