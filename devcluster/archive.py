"""Container images of one layer, written as a docker-archive by hand.

This is how a root file system becomes an image without an engine: containerd imports the file
(`ctr images import`), buildah pulls it (`docker-archive:`). The layer goes in as it is, so a
tar of 200 MB costs one copy.
"""

import hashlib
import io
import json
import platform
import tarfile
from collections.abc import Mapping
from pathlib import Path

#: The same for all, so that the same content is the same image.
_CREATED = "1970-01-01T00:00:00Z"

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def architecture() -> str:
    """Return this machine's architecture as images name it."""
    return _ARCHITECTURES.get(platform.machine(), platform.machine())


def write_image(target: Path, name: str, layer: Path, config: Mapping[str, object]) -> None:
    """Write an image of one layer.

    Args:
        target: the archive to write.
        name: the image's full name with its tag.
        layer: an uncompressed tar of the root file system.
        config: the image's `config` (`Entrypoint`, `Env`, `User`, ...).
    """
    with layer.open("rb") as file:
        layer_digest = hashlib.file_digest(file, "sha256").hexdigest()
    description = json.dumps(
        {
            "architecture": architecture(),
            "os": "linux",
            "config": dict(config),
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{layer_digest}"]},
            # Without a time here, buildah's layer cache never recognizes what is built on it.
            "created": _CREATED,
            "history": [{"created": _CREATED, "created_by": "devcluster"}],
        }
    ).encode()
    config_file = f"{hashlib.sha256(description).hexdigest()}.json"
    manifest = [{"Config": config_file, "RepoTags": [name], "Layers": [f"{layer_digest}.tar"]}]
    with tarfile.open(target, "w") as archive:
        _add(archive, "manifest.json", json.dumps(manifest).encode())
        _add(archive, config_file, description)
        archive.add(layer, arcname=f"{layer_digest}.tar")


def write_single_file_layer(target: Path, program: Path, inside: str) -> None:
    """Write a layer that contains one executable and nothing else."""
    with tarfile.open(target, "w") as layer:
        _add(layer, inside.lstrip("/"), program.read_bytes(), mode=0o755)


def _add(archive: tarfile.TarFile, name: str, data: bytes, mode: int = 0o644) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(data), mode
    archive.addfile(entry, io.BytesIO(data))
