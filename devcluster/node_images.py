"""Images for the nodes of a cluster: what the containerd of each is given.

The images that devcluster built go in by their blobs; those that the node's other images
already have are left out.
"""

import json
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

from devcluster import cluster_state
from devcluster.commands import CommandError
from devcluster.layout import NodeLayout
from devcluster.oci_layout import LayoutImage
from devcluster.paths import locked
from devcluster.waiting import wait_until


def load(name: str, image: LayoutImage) -> None:
    """Load an image onto every node of a cluster that does not have it.

    Raises:
        DevclusterError: there is no such cluster, or containerd refuses the image.
    """
    nodes = cluster_state.get(name).nodes
    with ThreadPoolExecutor(len(nodes)) as pool:
        for done in [pool.submit(_load, node, image) for node in nodes]:
            done.result()


def _load(node: NodeLayout, image: LayoutImage) -> None:
    note = node.state / "images.json"
    with locked(note):
        loaded: dict[str, list[str]] = json.loads(note.read_text()) if note.exists() else {}
        blobs = [image.digest, *image.parts]
        if loaded.get(image.name) == blobs:
            return
        # Only what the images of now have: containerd collects what a replaced one had alone.
        known = {blob for there in loaded.values() for blob in there}
        # The manifest is always sent: containerd expects it in the archive.
        _import(node, lambda out: image.write(out, known=known - {image.digest}))
        note.write_text(json.dumps(loaded | {image.name: blobs}))


def load_archive(node: NodeLayout, archive: Path) -> None:
    """Load an image archive onto a node, as soon as its containerd runs.

    Raises:
        DevclusterError: containerd does not start, or refuses the image.
    """

    def write(out: IO[bytes]) -> None:
        with archive.open("rb") as file:
            shutil.copyfileobj(file, out)

    _import(node, write)


def _import(node: NodeLayout, write: Callable[[IO[bytes]], None]) -> None:
    """Have the node's containerd import what `write` writes."""
    record = cluster_state.get_record(node)
    socket = Path(f"/proc/{record.pid}/root/run/containerd/containerd.sock")
    wait_until(lambda: socket.exists() or not record.alive, "containerd to start")
    command = ["ctr", f"--address={socket}", "--namespace=k8s.io", "images", "import", "-"]
    if not node.is_control_plane:
        # Few pods ever run there: the first that needs the image has it unpacked.
        command.insert(-1, "--no-unpack")
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
            hint = f"see {node.logs}/containerd.log"
            raise CommandError(command, importing.returncode, said, hint)
