"""The Kubernetes programs, built from their published Go modules.

One Go module of our own (``kubernetes/go.mod``) pins every version, and one ``go install`` builds
all programs, so that what they have in common is compiled once. The result is kept in the cache
under a name made from everything that went into it: a second build, or one in another checkout,
finds it there.
"""

import os
import platform
import re
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

from devcluster.commands import CommandError, DevclusterError, run
from devcluster.paths import cache, digest, locked, tree_digest

#: What a node is made of, and kubectl.
PROGRAMS = (
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kubelet",
    "kube-proxy",
    "kubectl",
    "coredns",
)

#: Gigabytes that a build from nothing takes (modules, compiler cache, programs).
SPACE_GB = 6

#: kind itself, for machines where a Docker engine answers and kind is not installed.
KIND_VERSION = "v0.33.0"

#: An S3 server over a folder, for tests of results in a bucket.
S3_GATEWAY_VERSION = "v1.8.0"

#: Debugging information is a fifth of the compiler's work, and the linker would drop it anyway.
_FLAGS = ("-trimpath", "-gcflags=all=-dwarf=false")

#: Compiling in fewer rounds of garbage collection takes a sixth less time, and more memory, up to
#: the limit that each compiler then keeps to.
_COMPILER_MEMORY = {"GOGC": "400", "GOMEMLIMIT": "2GiB"}

_MODULE = Path(__file__).resolve().parent / "kubernetes"


def kubernetes_version() -> str:
    """Return the Kubernetes version that go.mod pins, such as ``v1.34.4``."""
    found = re.search(r"^\s*(?:require )?k8s\.io/kubernetes (v\S+)", _go_mod(), re.MULTILINE)
    if not found:
        raise DevclusterError(f"{_MODULE / 'go.mod'} requires no k8s.io/kubernetes.")
    return found[1]


def folder() -> Path:
    """Return where the programs are, or will be once they are built."""
    key = digest([tree_digest(_MODULE), platform.machine(), *_FLAGS])
    return cache() / "programs" / f"{kubernetes_version()}-{key}"


def built() -> bool:
    """Return whether all programs are built."""
    return all((folder() / name).exists() for name in PROGRAMS)


def build(say: Callable[[str], None] = lambda text: None) -> None:
    """Build the programs that are not in the cache yet.

    Args:
        say: called now and then with the progress of the build.

    Raises:
        DevclusterError: no Go, too little space, or the build failed.
    """
    target = folder()
    with locked(target):
        if built():
            return
        go = _go()
        _check_space()
        # Installed beside the target and moved, so that a build cut short leaves no half program.
        with tempfile.TemporaryDirectory(prefix=target.name, dir=target.parent) as scratch:
            command = [go, "install", "-v", *_flags(), "tool", "./coredns"]
            environment = {"GOBIN": scratch, "CGO_ENABLED": "0", **_COMPILER_MEMORY}
            _run_counting(command, environment, say)
            target.mkdir(exist_ok=True)
            for name in PROGRAMS:
                Path(scratch, name).replace(target / name)


def kubectl() -> Path:
    """Return where the kubectl of the cluster's version is, or will be."""
    return folder() / "kubectl"


def install_kubectl() -> None:
    """Build kubectl alone, for a machine where kind runs the cluster."""
    with locked(folder()):
        if not kubectl().exists():
            environment = {"GOBIN": str(folder()), "CGO_ENABLED": "0"}
            hint = "install kubectl yourself and put it on PATH"
            command = [_go(), "install", *_flags(), "k8s.io/kubernetes/cmd/kubectl"]
            run(command, cwd=_MODULE, env=environment, hint=hint)


def kind() -> Path:
    """Return where kind is: on PATH, or where `install_kind` puts it."""
    installed = shutil.which("kind")
    return Path(installed) if installed else cache() / "kind" / KIND_VERSION / "kind"


def install_kind() -> None:
    """Install kind into the cache by Go, unless it is there."""
    with locked(kind().parent):
        if not kind().exists():
            run(
                [_go(), "install", f"sigs.k8s.io/kind@{KIND_VERSION}"],
                env={"GOBIN": str(kind().parent)},
                hint="install kind yourself and put it on PATH",
            )


def s3_gateway() -> Path:
    """Return where versitygw is: on PATH, or where `install_s3_gateway` puts it."""
    installed = shutil.which("versitygw")
    return (
        Path(installed) if installed else cache() / "versitygw" / S3_GATEWAY_VERSION / "versitygw"
    )


def install_s3_gateway() -> None:
    """Install versitygw into the cache by Go, unless it is there."""
    with locked(s3_gateway().parent):
        if not s3_gateway().exists():
            run(
                [
                    _go(),
                    "install",
                    f"github.com/versity/versitygw/cmd/versitygw@{S3_GATEWAY_VERSION}",
                ],
                env={"GOBIN": str(s3_gateway().parent), "CGO_ENABLED": "0"},
                hint="install versitygw yourself and put it on PATH",
            )


def _flags() -> list[str]:
    version = f"-X k8s.io/component-base/version.gitVersion={kubernetes_version()}"
    return [*_FLAGS, f"-ldflags=-s -w {version}"]


def _go_mod() -> str:
    return (_MODULE / "go.mod").read_text()


def _go() -> str:
    go = shutil.which("go") or shutil.which("go", path="/usr/local/go/bin")
    if go is None:
        wanted = re.search(r"^go (\S+)", _go_mod(), re.MULTILINE)
        raise DevclusterError(
            "The Kubernetes programs are built with Go, and there is no `go` on PATH.\n"
            f"What to do: install Go {wanted[1] if wanted else ''} or newer."
        )
    return go


def _check_space() -> None:
    folder().parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder().parent).free / 1e9
    if free < SPACE_GB:
        raise DevclusterError(
            f"Building Kubernetes takes about {SPACE_GB} GB below {cache()}, and {free:.1f} GB "
            "are free.\nWhat to do: make space, or set XDG_CACHE_HOME to a folder that has it."
        )


def _run_counting(
    command: list[str], environment: dict[str, str], say: Callable[[str], None]
) -> None:
    """Run the build; `go install -v` names each package when it is compiled."""
    lines: list[str] = []
    with subprocess.Popen(
        command,
        cwd=_MODULE,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as build:
        ended = threading.Event()

        def report() -> None:
            while not ended.wait(30):
                say(f"Go build: {len(lines)} packages compiled")

        threading.Thread(target=report, daemon=True).start()
        if build.stdout is None:  # a PIPE was asked for
            raise AssertionError
        lines.extend(line for line in build.stdout)
        ended.set()
    if build.returncode != 0:
        hint = "read the lines above; the usual causes are `go env` and a full disk"
        raise CommandError(command, build.returncode, "".join(lines), hint)
