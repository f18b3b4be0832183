"""The images that others build on, where no engine can pull them: made from Debian packages.

With a Docker engine, the Containerfiles build on the public images that `PUBLIC` names; without
one, on these. Both have the same program at the same major version, and no more is relied on.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path

from devcluster import archive, packages
from devcluster.commands import DevclusterError, run
from devcluster.node_settings import PAUSE_IMAGE
from devcluster.paths import cache, digest, locked

#: The Debian release of the base images: Python 3.13, RabbitMQ 4.0.
_SUITE = "trixie"

#: Raised when the archives are written differently.
_FORMAT = "2"

#: What no program reads in a container.
_LEFT_OUT = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*")


@dataclass(frozen=True)
class Base:
    """A base image: its packages here, its public counterpart elsewhere."""

    name: str
    packages: tuple[str, ...]
    public: str

    @property
    def key(self) -> str:
        """A hash of what it is made of."""
        return digest([_FORMAT, _SUITE, *self.packages, *_LEFT_OUT, archive.architecture()])

    @property
    def tag(self) -> str:
        """Its name in the local image store."""
        return f"localhost/taskqueue-devcluster/{self.name}:{self.key}"

    @property
    def archive(self) -> Path:
        """Its archive in the cache (there once it is made)."""
        return cache() / "bases" / f"{self.name}-{self.key}.tar"


PYTHON = Base("python", ("python3", "ca-certificates"), "python:3.13-slim")
RABBITMQ = Base("rabbitmq", ("rabbitmq-server",), "rabbitmq:4-management")


def make(base: Base) -> None:
    """Make a base image's archive unless it is in the cache."""
    target = base.archive
    with locked(target):
        if target.exists():
            return
        with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
            layer, image = Path(scratch, "layer.tar"), Path(scratch, "image.tar")
            run(
                ["mmdebstrap", "--quiet", "--variant=essential"]
                + [f"--include={','.join(base.packages)}"]
                + [f"--dpkgopt=path-exclude={pattern}" for pattern in _LEFT_OUT]
                + [_SUITE, layer],
                hint="check that this machine reaches a Debian mirror, and the space below /tmp",
            )
            search = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
            config = {"Env": [f"PATH={search}", "LANG=C.UTF-8"], "Cmd": ["sh"]}
            archive.write_image(image, base.tag, layer, config)
            image.replace(target)


def pause_archive() -> Path:
    """Return the archive of the image that holds a pod's namespaces, made when missing.

    Raises:
        DevclusterError: catatonit, the program in it, is not installed.
    """
    target = cache() / "bases" / f"pause-{digest([PAUSE_IMAGE, archive.architecture()])}.tar"
    with locked(target):
        if target.exists():
            return target
        program = packages.find("catatonit")
        if program is None:
            raise DevclusterError("catatonit is missing.\nWhat to do: `apt-get install catatonit`.")
        with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
            layer, image = Path(scratch, "layer.tar"), Path(scratch, "image.tar")
            archive.write_single_file_layer(layer, Path(program), "/pause")
            config = {"Entrypoint": ["/pause", "-P"], "User": "65535:65535"}
            archive.write_image(image, PAUSE_IMAGE, layer, config)
            image.replace(target)
    return target
