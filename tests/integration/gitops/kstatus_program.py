"""The published rules of kstatus, by which Flux and kpt judge objects, as a program.

The program is the Go module in ``kstatus/``. It is built once into the cache of devcluster, which
has the contract: every entry is named after what it was made from.
"""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from devcluster.commands import run
from devcluster.paths import cache, digest, locked, tree_digest

_MODULE = Path(__file__).parent / "kstatus"
_FLAGS = ("-trimpath", "-ldflags=-s -w")


def go() -> str | None:
    """Return the Go that builds the program, None without one."""
    return shutil.which("go") or shutil.which("go", path="/usr/local/go/bin")


def build(compiler: str) -> Path:
    """Return the program, built when the cache has none of this source."""
    program = cache() / "kstatus" / digest([tree_digest(_MODULE), platform.machine(), *_FLAGS])
    with locked(program):
        if not program.exists():
            unfinished = program.with_suffix(".part")
            run(
                [compiler, "build", *_FLAGS, "-o", str(unfinished), "."],
                cwd=_MODULE,
                env={"CGO_ENABLED": "0"},
                hint="see the output above; `go env` and a full disk are the usual suspects",
            )
            unfinished.replace(program)
    return program


def judge(program: Path, objects: Sequence[Any]) -> list[str]:
    """Return the status of each object, such as InProgress, Current or Failed."""
    done = subprocess.run(
        [program],
        input=json.dumps(objects),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return [judgement["status"] for judgement in json.loads(done.stdout)]
