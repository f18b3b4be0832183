"""Images as an OCI layout: a folder of blobs named after their content.

All images that devcluster built without an engine are in one layout, so that images which share
layers share files. A node is sent a tar of the blobs that it does not have: after a change of
code that is one layer of some hundred kilobytes, not the image.
"""

import io
import json
import tarfile
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

#: The annotation that names an image in a layout's index.
_REFERENCE = "org.opencontainers.image.ref.name"

#: The annotation from which containerd takes an image's name as it is.
_CONTAINERD_NAME = "io.containerd.image.name"


@dataclass(frozen=True)
class LayoutImage:
    """One image of a layout."""

    layout: Path
    name: str
    #: The image's entry in the index: media type, digest and size of its manifest.
    entry: dict[str, Any]
    #: Digests of what the manifest is made of: configuration and layers.
    parts: tuple[str, ...]

    @property
    def digest(self) -> str:
        """The digest of the manifest: the image's identity."""
        return str(self.entry["digest"])

    def write(self, out: IO[bytes], *, known: Collection[str] = ()) -> None:
        """Write the image as a tar that containerd imports.

        Args:
            out: where to; it is written front to back.
            known: digests of blobs that the receiver has, to be left out.
        """
        entry = {key: value for key, value in self.entry.items() if key != "annotations"}
        entry["annotations"] = {_CONTAINERD_NAME: self.name}
        index = {"schemaVersion": 2, "manifests": [entry]}
        with tarfile.open(fileobj=out, mode="w|") as archive:
            _add(archive, "oci-layout", {"imageLayoutVersion": "1.0.0"})
            _add(archive, "index.json", index)
            for digest in (self.digest, *self.parts):
                if digest not in known:
                    blob = _blob(self.layout, digest)
                    archive.add(blob, arcname=str(blob.relative_to(self.layout)))


def find(layout: Path, name: str) -> LayoutImage | None:
    """Return the image of that name, or None."""
    for entry in _entries(layout):
        if entry.get("annotations", {}).get(_REFERENCE) == name:
            return LayoutImage(layout, name, entry, _parts(layout, entry["digest"]))
    return None


def prune(layout: Path) -> None:
    """Delete the blobs that no image of the index has any more."""
    used: set[str] = set()
    for entry in _entries(layout):
        used |= {entry["digest"], *_parts(layout, entry["digest"])}
    for blob in (layout / "blobs" / "sha256").iterdir():
        if f"sha256:{blob.name}" not in used:
            blob.unlink()


def _entries(layout: Path) -> list[dict[str, Any]]:
    try:
        index = json.loads((layout / "index.json").read_text())
    except FileNotFoundError:
        return []
    entries: list[dict[str, Any]] = index["manifests"]
    return entries


def _parts(layout: Path, digest: str) -> tuple[str, ...]:
    manifest = json.loads(_blob(layout, digest).read_text())
    return tuple(part["digest"] for part in (manifest["config"], *manifest["layers"]))


def _blob(layout: Path, digest: str) -> Path:
    return layout / "blobs" / digest.replace(":", "/")


def _add(archive: tarfile.TarFile, name: str, content: dict[str, Any]) -> None:
    data = json.dumps(content).encode()
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    archive.addfile(entry, io.BytesIO(data))
