"""Python packages for images, downloaded on the host.

An image build must not need the network: the host's proxy and certificates are not in the image.
So the wheels for the image's Python are fetched here, by the host's pip, into the build
context, and installed there without an index. `installer/` holds pip's own wheel, which Python
can run as it is, so that the base image needs no pip.
"""

import platform
import shutil
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from pathlib import Path

from devcluster.commands import run
from devcluster.paths import CHECKOUT, cache, digest, locked

#: The Python of the images: Debian 13's, and that of the public image.
PYTHON_VERSION = "3.13"

#: Versions for everything that is installed.
CONSTRAINTS = CHECKOUT / "constraints.txt"

#: The C library generations whose wheels run on Debian 13, newest first.
_GLIBC = ("2_41", "2_34", "2_28", "2_17")


def runtime_requirements(checkout: Path = CHECKOUT) -> list[str]:
    """Return what the images need at run time, as a checkout's pyproject.toml has it."""
    project = tomllib.loads((checkout / "pyproject.toml").read_text())["project"]
    extras = project.get("optional-dependencies", {})
    # Older ones have none of these.
    return [
        *project["dependencies"],
        *dict.fromkeys(
            one
            for name in ("client", "operator", "results", "gateway")
            for one in extras.get(name, ())
        ),
    ]


def download(requirements: Sequence[str]) -> Path:
    """Return a folder with the wheels of the requirements and of all they need.

    Args:
        requirements: as pip understands them; `constraints.txt` fixes the versions.

    Raises:
        CommandError: pip could not find or reach one of them.
    """
    constraints = CONSTRAINTS.read_text()
    target = cache() / "wheels" / digest([*requirements, constraints, PYTHON_VERSION, _machine()])
    with locked(target):
        if target.exists():
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=target.name, dir=target.parent) as scratch:
            _download(requirements, Path(scratch, "wheels"))
            _download(["pip"], Path(scratch, "wheels", "installer"))
            shutil.move(Path(scratch, "wheels"), target)
    return target


def _download(requirements: Sequence[str], target: Path) -> None:
    platforms = [f"--platform=manylinux_{glibc}_{_machine()}" for glibc in _GLIBC]
    platforms += [f"--platform=manylinux2014_{_machine()}", f"--python-version={PYTHON_VERSION}"]
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input"]
    wanted = ["--only-binary=:all:", f"--constraint={CONSTRAINTS}", f"--dest={target}"]
    run(
        [*pip, *wanted, *platforms, *requirements],
        hint="check that pip reaches its package index from this machine",
    )


def _machine() -> str:
    return {"arm64": "aarch64", "AMD64": "x86_64"}.get(platform.machine(), platform.machine())
