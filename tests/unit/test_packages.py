"""The wheel that `make dist` builds is complete: installed in a fresh environment, it works."""

from __future__ import annotations

import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]

#: What the commands of each extra import when they run.
IMPORTS = {
    "": ["taskqueue.worker.main", "taskqueue.worker.worker", "taskqueue.worker.executors.http"],
    "client": ["taskqueue.client.tasks", "taskqueue.client.history"],
    "cli": ["taskqueue.dev.main", "taskqueue.cli.dead_letters", "taskqueue.cli.connect"],
    "operator": ["taskqueue.controller.manager", "taskqueue.api.crds", "taskqueue.cli.output"],
    "results": ["taskqueue.results.postgresql", "taskqueue.results.redis", "taskqueue.results.s3"],
}


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-m", "build", "--outdir", folder, ROOT], check=True)
    return folder


def test_source_distribution_has_the_code_and_the_license(dist: Path) -> None:
    (path,) = dist.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"LICENSE", "README.md", "operator/taskqueue/dev/main.py"} <= names


@pytest.mark.parametrize("extra", IMPORTS)
def test_wheel_is_installed_and_used(dist: Path, tmp_path: Path, extra: str) -> None:
    (wheel,) = dist.glob("*.whl")
    subprocess.run([sys.executable, "-m", "venv", tmp_path], check=True)
    bin_folder = tmp_path / "bin"
    subprocess.run(
        [
            bin_folder / "python",
            *("-m", "pip", "install", "--quiet", "-c", ROOT / "constraints.txt"),
            f"{wheel}[{extra}]" if extra else wheel,
        ],
        check=True,
    )
    code = "from taskqueue import task\n" + "".join(f"import {one}\n" for one in IMPORTS[extra])
    subprocess.run([bin_folder / "python", "-c", code], cwd=tmp_path, check=True)
    for words in (["taskqueue", "--version"], ["kubectl-taskqueue", "--help"]):
        subprocess.run([bin_folder / words[0], *words[1:]], check=True, capture_output=True)
