"""The Debian packages a native node and its images are made with.

They are installed when missing, without asking and without starting services. A machine that
has the programs from elsewhere is left alone: what counts is the program, not the package.
"""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from devcluster.commands import CommandError, DevclusterError, run, succeeds
from devcluster.paths import cache, locked

#: package: a file that proves it, as a program on PATH or as an absolute path.
PACKAGES = {
    "etcd-server": "etcd",
    "containerd": "containerd",
    "runc": "runc",
    "containernetworking-plugins": "/usr/lib/cni/ptp",
    "iptables": "iptables",
    "conntrack": "conntrack",
    "socat": "socat",
    "iproute2": "ip",
    "util-linux": "unshare",
    "openssl": "openssl",
    "catatonit": "catatonit",
    "buildah": "buildah",
    "mmdebstrap": "mmdebstrap",
}

#: The same for the servers of results that tests run.
STORES = {
    "postgresql": "/usr/lib/postgresql",
    "redis-server": "redis-server",
}

#: Where system programs are even if the caller's PATH leaves them out.
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

#: apt asks nothing, and waits when another apt is at work.
_APT = ["apt-get", "-y", "-q", "-o", "DPkg::Lock::Timeout=300"]


def find(program: str) -> str | None:
    """Return the path of a program or file of the system, or None."""
    if program.startswith("/"):
        return program if Path(program).exists() else None
    return shutil.which(program, path=f"{os.environ.get('PATH', '')}:{SYSTEM_PATH}")


def missing(packages: Mapping[str, str] = PACKAGES) -> list[str]:
    """Return the packages whose program is not on this machine."""
    return [package for package, proof in packages.items() if find(proof) is None]


def install(packages: Mapping[str, str] = PACKAGES) -> None:
    """Install what is missing.

    Args:
        packages: as `PACKAGES`.

    Raises:
        DevclusterError: there is no apt, this is not root, or apt failed.
    """
    wanted = missing(packages)
    if not wanted:
        return
    if os.geteuid() != 0:
        raise DevclusterError(
            f"These packages are missing and only root can install them: {' '.join(wanted)}.\n"
            "What to do: install them, and run this command as root."
        )
    if shutil.which("apt-get") is None:
        raise DevclusterError(
            f"These programs are missing: {', '.join(packages[one] for one in wanted)}, and this "
            "system has no apt-get to install them with.\n"
            "What to do: install them by the system's own means, or run a Docker engine."
        )
    with locked(cache() / "packages"):
        wanted = missing(packages)
        if not wanted:
            return
        # An index that is old or absent is the usual reason for a package not to be found.
        if not succeeds([*_APT, "--simulate", "install", *wanted], timeout=60):
            run([*_APT, "update"], hint="check that the machine reaches its Debian mirror")
        environment = {"DEBIAN_FRONTEND": "noninteractive"}
        command = [*_APT, "--no-install-recommends", "install", *wanted]
        try:
            run(command, env=environment)
        except CommandError:
            # The index knew the packages but the mirror has newer ones by now.
            run([*_APT, "update"], hint="check that the machine reaches its Debian mirror")
            run(command, env=environment, hint=f"run `apt-get install {' '.join(wanted)}` yourself")
