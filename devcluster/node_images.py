"""Images for a node: what its containerd is given.

The images that devcluster built go in by their blobs; those that the node's other images
already have are left out.
"""

import json
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO

from devcluster import cluster_state
from devcluster.cluster_state import Record
from devcluster.commands import CommandError
from devcluster.oci_layout import LayoutImage
from devcluster.paths import locked
from devcluster.waiting import wait_until


def load(name: str, image: LayoutImage) -> bool:
    """Load an image into a cluster; return whether it was missing.

    Raises:
        DevclusterError: there is no such cluster, or containerd refuses the image.
    """
    record = cluster_state.get(name)
    note = cluster_state.folder(name) / "images.json"
    with locked(note):
        loaded: dict[str, list[str]] = json.loads(note.read_text()) if note.exists() else {}
        blobs = [image.digest, *image.parts]
        if loaded.get(image.name) == blobs:
            return False
        # Only what the images of now have: containerd collects what a replaced one had alone.
        known = {blob for there in loaded.values() for blob in there}
        # The manifest is always sent: containerd expects it in the archive.
        _import(record, lambda out: image.write(out, known=known - {image.digest}))
        note.write_text(json.dumps(loaded | {image.name: blobs}))
    return True


def load_archive(record: Record, archive: Path) -> None:
    """Load an image archive into a node, as soon as its containerd runs.

    Raises:
        DevclusterError: containerd does not start, or refuses the image.
    """

    def write(out: IO[bytes]) -> None:
        with archive.open("rb") as file:
            shutil.copyfileobj(file, out)

    _import(record, write)


def _import(record: Record, write: Callable[[IO[bytes]], None]) -> None:
    """Have the node's containerd import what `write` writes."""
    socket = Path(f"/proc/{record.pid}/root/run/containerd/containerd.sock")
    wait_until(lambda: socket.exists() or not record.alive, "containerd to start")
    command = ["ctr", f"--address={socket}", "--namespace=k8s.io", "images", "import", "-"]
    with tempfile.TemporaryFile() as output:
        importing = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT
        )
        with importing:
            if importing.stdin is None:  # a PIPE was asked for
                raise AssertionError
            try:
                write(importing.stdin)
                importing.stdin.close()
            except BrokenPipeError:
                pass  # it has ended, and its output says why
        if importing.returncode != 0:
            output.seek(0)
            said = output.read().decode(errors="replace")
            hint = f"see {cluster_state.folder(record.name)}/logs/containerd.log"
            raise CommandError(command, importing.returncode, said, hint)
