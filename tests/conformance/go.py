"""Builds the programs of examples/go-worker, as its README says."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

MODULE = Path(__file__).parents[2] / "examples" / "go-worker"


def go() -> str | None:
    """Return where Go is, None: it is not installed."""
    return shutil.which("go") or shutil.which("go", path="/usr/local/go/bin")


def call(*arguments: str, module: Path = MODULE) -> str:
    """Run Go in a module and return its output; it must succeed."""
    program = go()
    assert program, "Go is not installed"
    done = subprocess.run(
        [program, *arguments],
        cwd=module,
        env={**os.environ, "CGO_ENABLED": "0"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"go {' '.join(arguments)}:\n{done.stdout}"
    return done.stdout


def build(name: str, folder: Path, module: Path = MODULE) -> Path:
    """Build a program of ``cmd/`` into a folder, static, and return where it is."""
    call("build", "-trimpath", f"-o={folder / name}", f"./cmd/{name}", module=module)
    return folder / name
