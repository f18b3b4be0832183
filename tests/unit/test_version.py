"""The version stands in one place, and everything that shows it reads it there."""

import re
import tomllib
from pathlib import Path

import pytest

import taskqueue
from devcluster.images import project_version
from taskqueue.cli.main import main

ROOT = Path(__file__).resolve().parents[2]


def test_command_line_prints_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert (ended.value.code, capsys.readouterr().out) == (0, f"{taskqueue.__version__}\n")


def test_package_metadata_takes_the_version_from_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "version" not in project["project"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "taskqueue.__version__"}


def test_image_is_labelled_with_the_version_of_the_checkout() -> None:
    assert project_version() == taskqueue.__version__


def test_changelog_begins_with_unreleased_and_then_has_this_version() -> None:
    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[:2] == ["Unreleased", taskqueue.__version__]
