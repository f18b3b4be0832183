"""Gives the sources of older commits, for tests of skew: programs of two versions together."""

from __future__ import annotations

import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import pytest

from devcluster.paths import CHECKOUT

#: The last commit before the message contract changed; workers and operators of it are in use.
OLDER = "0829e12"


def why_missing(commit: str) -> str:
    """Return why the sources of a commit are not at hand; "": they are."""
    asked = ["git", "cat-file", "-e", f"{commit}^{{commit}}"]
    try:
        done = subprocess.run(asked, cwd=CHECKOUT, capture_output=True, check=False)
    except OSError as error:
        return f"the sources of {commit} need git: {error}"
    if done.returncode == 0:
        return ""
    return f"this clone has no commit {commit}; if it is a shallow one: git fetch --unshallow"


#: For tests that need the sources of `OLDER`.
needs_older = pytest.mark.skipif(bool(why_missing(OLDER)), reason=why_missing(OLDER))


@contextmanager
def sources(commit: str | None) -> Iterator[Path]:
    """Give the sources of a commit, or this checkout."""
    if commit is None:
        yield CHECKOUT
        return
    archive = subprocess.run(
        ["git", "archive", commit], cwd=CHECKOUT, capture_output=True, check=True
    ).stdout
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(fileobj=BytesIO(archive)) as tar:
            tar.extractall(folder, filter="data")
        package = Path(folder, "operator", "taskqueue", "__init__.py")
        if "__version__" not in package.read_text():  # older commits have it elsewhere
            with package.open("a") as file:
                file.write(f'\n__version__ = "{commit}"\n')
        yield Path(folder)
