"""Runs commands in the namespaces of a node, and undoes there what a test has changed.

A native node (see docs/development/cluster.md) is found by its kubelet, which is a process of this
machine; a node of kind is a container, entered by docker. The second way is written from kind's
documentation, because the machines that develop this project have no Docker engine.
"""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

#: Seconds within which a change is made or undone.
_PATIENCE_S = 60


class NodeShell:
    """Runs commands with the network and the files of one node."""

    def __init__(self, node: str) -> None:
        kubelet = _kubelet_of(node)
        if kubelet is None:
            self._prefix = ["docker", "exec", "-i", node]
        else:
            self._prefix = ["nsenter", f"--target={kubelet}", "--net", "--mount", "--"]

    def run(self, *command: str) -> str:
        """Run a command, and return its output.

        Raises:
            subprocess.CalledProcessError: it failed; `stderr` says why.
        """
        return subprocess.run(
            [*self._prefix, *command],
            check=True,
            capture_output=True,
            text=True,
            timeout=_PATIENCE_S,
        ).stdout

    @contextmanager
    def changed(
        self, setup: Sequence[str], undo: Sequence[str], *, seconds: float
    ) -> Iterator[None]:
        """Make changes, and undo them on exit, after a time, or when this process dies.

        A shell in the node makes the changes and waits: for its standard input to be closed, which
        happens however this process ends, or for the time to pass.

        Args:
            setup: shell commands; if one fails, those before it are undone.
            undo: shell commands; each is tried.
            seconds: after which the changes are undone, even if the body still runs.
        """
        script = "\n".join(
            [
                "set -e",
                f"undo() {{ set +e; {'; '.join(f'{line} 2>/dev/null' for line in undo)}; }}",
                "trap undo EXIT",
                *setup,
                "echo ready",
                f"read -r -t {seconds:g} _ || true",
            ]
        )
        # A session of its own: Ctrl-C must not end it before it has undone its changes.
        shell = subprocess.Popen(
            [*self._prefix, "bash", "-c", script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert shell.stdin
        assert shell.stdout
        assert shell.stderr
        try:
            if shell.stdout.readline() != "ready\n":
                raise OSError(f"the node refused {shlex.join(setup)}: {shell.stderr.read()}")
            yield
        finally:
            shell.stdin.close()
            shell.wait(timeout=_PATIENCE_S)
            shell.stdout.close()
            shell.stderr.close()


def _kubelet_of(node: str) -> int | None:
    """Return the process id of a native node's kubelet, or None."""
    wanted = f"--hostname-override={node}".encode()
    for process in filter(str.isdigit, os.listdir("/proc")):
        try:
            words = Path("/proc", process, "cmdline").read_bytes().split(b"\0")
        except OSError:  # it has ended meanwhile
            continue
        if words[0].endswith(b"kubelet") and wanted in words:
            return int(process)
    return None
