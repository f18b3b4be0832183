"""Two ways to build a Containerfile: with a Docker engine, and with buildah without one.

Both keep a label on what they built, so that an image whose inputs have not changed is
recognized, and both use their layer cache for the rest.
"""

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from devcluster import base_images, oci_layout
from devcluster.commands import CommandError, DevclusterError, run, succeeds
from devcluster.oci_layout import LayoutImage
from devcluster.paths import cache, locked

#: The label that holds the hash of an image's inputs.
CONTENT_LABEL = "taskqueue.devcluster.content"


class Builder(Protocol):
    """What a builder of images can do."""

    def base(self, base: base_images.Base) -> str:
        """Return the name of a base image, having made it available."""

    def identity(self, image: str) -> str:
        """Return what changes when the image does; empty when it is not there."""

    def label(self, image: str) -> str:
        """Return the image's content label; empty when it has none or is not there."""

    def build(
        self,
        tag: str,
        containerfile: Path,
        context: Path,
        build_args: Mapping[str, str],
        label: str,
    ) -> None:
        """Build an image."""


@functools.cache
def docker_answers() -> bool:
    """Return whether a Docker engine answers on this machine."""
    return succeeds(["docker", "info"], timeout=10)


def builder() -> Builder:
    """Return the way to build images on this machine."""
    return Docker() if docker_answers() else Buildah()


def canonical(tag: str) -> str:
    """Return an image's name as containerd stores what manifests call by its short name."""
    first = tag.split("/")[0]
    if "/" not in tag:
        return f"docker.io/library/{tag}"
    has_host = "." in first or ":" in first or first == "localhost"
    return tag if has_host else f"docker.io/{tag}"


class Docker:
    """Builds with the Docker engine."""

    def base(self, base: base_images.Base) -> str:
        """Return the public image's name; the engine pulls it."""
        return base.public

    def identity(self, image: str) -> str:
        """Return the image's id."""
        return self._inspect(image, "{{.Id}}")

    def label(self, image: str) -> str:
        """Return the image's content label."""
        label = self._inspect(image, f'{{{{index .Config.Labels "{CONTENT_LABEL}"}}}}')
        return "" if label == "<no value>" else label

    def build(
        self,
        tag: str,
        containerfile: Path,
        context: Path,
        build_args: Mapping[str, str],
        label: str,
    ) -> None:
        """Build an image by BuildKit or the classic builder."""
        run(
            ["docker", "build", f"--tag={tag}", f"--file={containerfile}"]
            + [f"--build-arg={name}={value}" for name, value in build_args.items()]
            + [f"--label={CONTENT_LABEL}={label}", context],
        )

    def _inspect(self, image: str, template: str) -> str:
        try:
            return run(["docker", "image", "inspect", f"--format={template}", image]).strip()
        except CommandError:
            return ""


class Buildah:
    """Builds with buildah, in a store of its own below the cache."""

    def __init__(self) -> None:
        store = cache() / "buildah"
        store.mkdir(parents=True, exist_ok=True)
        self._buildah: list[str | Path] = ["buildah", f"--root={store}/storage"]
        self._buildah += [f"--runroot={store}/run", "--storage-driver=overlay"]

    def base(self, base: base_images.Base) -> str:
        """Return the base image's name, made and stored when missing."""
        base_images.make(base)
        # One at a time: two pulls of one image would both write its layer.
        with locked(cache() / "buildah" / base.name):
            if not self.identity(base.tag):
                self._run("pull", "--quiet", f"docker-archive:{base.archive}")
        return base.tag

    def identity(self, image: str) -> str:
        """Return the image's id."""
        return str(self._inspect(image).get("FromImageID", ""))

    def label(self, image: str) -> str:
        """Return the image's content label."""
        config = self._inspect(image).get("OCIv1", {}).get("config", {})
        labels: dict[str, str] = config.get("Labels") or {}
        return labels.get(CONTENT_LABEL, "")

    def build(
        self,
        tag: str,
        containerfile: Path,
        context: Path,
        build_args: Mapping[str, str],
        label: str,
    ) -> None:
        """Build an image; only chroot is taken for isolation, no namespaces of its own."""
        self._run(
            *("build-using-dockerfile", "--quiet", "--isolation=chroot", "--layers"),
            *("--pull-never", "--format=oci", f"--tag={canonical(tag)}"),
            *(f"--build-arg={name}={value}" for name, value in build_args.items()),
            *(f"--label={CONTENT_LABEL}={label}", f"--file={containerfile}", str(context)),
        )

    def export(self, tag: str) -> LayoutImage:
        """Return the image as part of an OCI layout in the cache, brought up to date.

        Raises:
            DevclusterError: there is no such image.
        """
        name = canonical(tag)
        image_id = self.identity(name)
        if not image_id:
            raise DevclusterError(
                f"There is no image '{tag}' in devcluster's store.\n"
                "What to do: `make images`, or `devcluster.build_image(...)` for one of your own."
            )
        layout = cache() / "images"
        with locked(layout):
            exported = oci_layout.find(layout, name)
            if exported and image_id in exported.parts[0]:
                return exported
            self._run("push", "--quiet", image_id, f"oci:{layout}:{name}")
            oci_layout.prune(layout)
            exported = oci_layout.find(layout, name)
        if exported is None:
            raise DevclusterError(f"buildah exported '{tag}', but {layout} does not have it.")
        return exported

    def _inspect(self, image: str) -> dict[str, Any]:
        try:
            shown = self._run("inspect", "--type=image", canonical(image))
        except CommandError:
            return {}
        description: dict[str, Any] = json.loads(shown)
        return description

    def _run(self, *arguments: str | Path) -> str:
        return run([*self._buildah, *arguments])
