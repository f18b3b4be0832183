"""Steps the wall clock of programs, and leaves their monotonic clocks true.

Programs are started with a preloaded library (clock_step.c, built here with the C compiler) and
share a file with the offset. A step is seen at once by all processes that have the file, children
included. Time stamps of files and statically linked programs, as Go makes them, keep the true time.
"""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from devcluster.paths import cache, digest, locked
from tests.faults.pods import PodAddition

if TYPE_CHECKING:
    from tests.conftest import Kubectl

_SOURCE = Path(__file__).with_name("clock_step.c")

#: In a pod: where the library and the file with the offset are.
_LIBRARY_FOLDER, _OFFSET_FOLDER = "/clock/library", "/clock/offset"
_OFFSET_FILE = f"{_OFFSET_FOLDER}/nanoseconds"

_NO_OFFSET = bytes(8)


class Clock(ABC):
    """A wall clock that a test steps."""

    def __init__(self) -> None:
        self._seconds = 0.0

    @contextmanager
    def stepped(self, seconds: float) -> Iterator[None]:
        """Step the clock, forwards or (negative) backwards; on exit, step it back."""
        before = self._seconds
        self._set(before + seconds)
        try:
            yield
        finally:
            self._set(before)

    def _set(self, seconds: float) -> None:
        self._write(round(seconds * 1_000_000_000).to_bytes(8, "little", signed=True))
        self._seconds = seconds

    @abstractmethod
    def _write(self, offset: bytes) -> None:
        """Write the offset over what is in the file, which must never be shorter than that."""


class ProcessClock(Clock):
    """The wall clock of processes on this machine that are started with `environment`.

    Args:
        folder: of the test's own, for the file with the offset.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._file = folder / "nanoseconds"
        self._file.write_bytes(_NO_OFFSET)

    @property
    def environment(self) -> dict[str, str]:
        """Variables for the processes, in addition to those they have."""
        return {"LD_PRELOAD": str(build_library()), "CLOCK_STEP_FILE": str(self._file)}

    def _write(self, offset: bytes) -> None:
        with self._file.open("r+b", buffering=0) as file:
            file.write(offset)


class PodClock(Clock):
    """The wall clock of a pod's programs; the pod must have `pod_addition`.

    Args:
        kubectl: of the cluster.
        namespace: of the pod.
        pod: its name.
        container: that can run a shell; None: the first.
    """

    def __init__(
        self, kubectl: Kubectl, namespace: str, pod: str, *, container: str | None = None
    ) -> None:
        super().__init__()
        self._kubectl = kubectl
        where = ["exec", "-n", namespace, pod]
        self._exec = [*where, *(["-c", container] if container else []), "--", "sh", "-c"]

    def _write(self, offset: bytes) -> None:
        escaped = "".join(f"\\{byte:03o}" for byte in offset)
        # `<>` does not truncate the file: whoever has mapped it would get SIGBUS.
        self._kubectl.ok(*self._exec, f"printf '{escaped}' 1<>{_OFFSET_FILE}")


def pod_addition() -> PodAddition:
    """Return what makes the programs of a pod have a clock that `PodClock` can step."""
    name = "clock-step"
    library = build_library()
    return PodAddition(
        config_map={
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": name},
            "binaryData": {"clock_step.so": base64.b64encode(library.read_bytes()).decode()},
        },
        volumes=[
            {"name": name, "configMap": {"name": name}},
            {"name": f"{name}-offset", "emptyDir": {}},
        ],
        mounts=[
            {"name": name, "mountPath": _LIBRARY_FOLDER, "readOnly": True},
            {"name": f"{name}-offset", "mountPath": _OFFSET_FOLDER},
        ],
        environment={
            "LD_PRELOAD": f"{_LIBRARY_FOLDER}/clock_step.so",
            "CLOCK_STEP_FILE": _OFFSET_FILE,
        },
    )


def build_library() -> Path:
    """Compile clock_step.c unless that is done, and return the library.

    It needs a C library as old as this machine's, or newer: images of Debian 12 and later have one.
    """
    source = _SOURCE.read_bytes()
    target = cache() / "tests" / f"clock-step-{digest([source])}.so"
    with locked(target):
        if not target.exists():
            compiler = shutil.which("cc") or shutil.which("gcc")
            assert compiler, "a C compiler is needed: apt-get install gcc libc6-dev"
            scratch = target.with_suffix(f".{os.getpid()}")
            options = ["-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
            command = [compiler, *options, "-o", str(scratch), str(_SOURCE)]
            subprocess.run([*command, "-ldl"], check=True)
            scratch.replace(target)
    return target
