"""Opens the development cluster, for make, the demo and the tests.

pytest-kind's `KindCluster` drives the cluster with the `kind` executable that fits the machine:
kind itself if a Docker engine answers, else `devcluster/bin/kind`. pytest-kind assumes that a
listed cluster works, and does not touch its kubeconfig; this module checks the cluster and writes
the kubeconfig.
"""

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pytest_kind import KindCluster

from devcluster import (
    base_images,
    images,
    kind_config,
    packages,
    placement,
    prerequisites,
    programs,
    wheels,
)
from devcluster.builders import docker_answers
from devcluster.commands import CommandError, run
from devcluster.layout import node_name
from devcluster.paths import DEFAULT_NAME, KIND_CONFIG, KUBECONFIG, cache, locked
from devcluster.progress import Steps

#: How long to wait for the API server and the nodes of an existing cluster, in seconds.
_ANSWER_S = 20.0


@dataclass(frozen=True)
class Engine:
    """How this machine runs clusters: the executables, and a description."""

    kind: Path
    kubectl: Path
    description: str


def engine() -> Engine:
    """Choose how to run clusters here; this builds and installs nothing."""
    if not docker_answers():
        kind = Path(__file__).resolve().parent / "bin" / "kind"
        text = f"no Docker engine answers, so {kind} runs a native node"
        return Engine(kind, programs.kubectl(), text)
    kind = programs.kind()
    kubectl = shutil.which("kubectl")
    text = f"a Docker engine answers, so {kind} runs the node"
    return Engine(kind, Path(kubectl) if kubectl else programs.kubectl(), text)


def prepare(steps: Steps, *, with_images: bool = True) -> None:
    """Install and build everything a cluster needs, in parallel.

    Args:
        steps: writes the progress.
        with_images: whether to build the project's images as well.
    """
    chosen = engine()
    work: dict[str, Callable[[], object]] = {}
    if docker_answers():
        if not chosen.kind.exists():
            work["kind"] = programs.install_kind
        if not chosen.kubectl.exists():
            work["kubectl"] = programs.install_kubectl
        if with_images:
            work["images"] = lambda: build_images(steps)
    else:
        prerequisites.require_root()
        if not programs.built():
            work["Kubernetes programs"] = lambda: programs.build(steps.say)
        if packages.missing() or with_images:
            name = "Debian packages, images" if with_images else "Debian packages"
            work[name] = lambda: _packages_and_images(steps, with_images)
    steps.run_all(work)
    if not docker_answers():
        base_images.pause_archive()


def _packages_and_images(steps: Steps, with_images: bool) -> None:
    packages.install()
    if with_images:
        build_images(steps)


def build_images(steps: Steps) -> None:
    """Build the project's images if their inputs changed."""
    steps.run_all(
        {
            f"image {images.OPERATOR}": images.build_operator,
            f"image {images.RABBITMQ}": images.build_rabbitmq,
            "wheels": lambda: wheels.download(wheels.runtime_requirements()),
        }
    )


def open_cluster(
    name: str = DEFAULT_NAME,
    kubeconfig: Path = KUBECONFIG,
    *,
    steps: Steps | None = None,
    with_images: bool = True,
) -> KindCluster:
    """Return a cluster that works, with the nodes of kind-config.yaml; create it if there is none.

    `kubeconfig` (`cluster.kubeconfig_path`) is then complete and current.

    Args:
        name: the cluster's name.
        kubeconfig: the file for its kubeconfig.
        steps: writes the progress (default: to standard error).
        with_images: whether to build the project's images as well.

    Raises:
        DevclusterError: something is missing that cannot be installed.
        subprocess.CalledProcessError: kind failed; standard error has the reason.
    """
    progress = steps or Steps()
    chosen = engine()
    progress.say(f"cluster '{name}': {chosen.description}")
    prepare(progress, with_images=with_images)
    kubeconfig.parent.mkdir(parents=True, exist_ok=True)
    # If two processes open the same cluster, the second finds what the first has created.
    with locked(cache() / "cluster-locks" / name):
        if name in run([chosen.kind, "get", "clusters"]).splitlines():
            _revive(chosen, name, kubeconfig, progress)
        cluster = KindCluster(
            name, kubeconfig, kind_path=chosen.kind, kubectl_path=chosen.kubectl.resolve()
        )
        cluster.create(config_file=KIND_CONFIG)
        names = placement.arrange(_kubectl(chosen, kubeconfig))
    progress.say(f"cluster '{name}' is ready: {', '.join(names)}; kubeconfig: {kubeconfig}")
    return cluster


def load_images(
    cluster: KindCluster,
    tags: Sequence[str] = (images.OPERATOR, images.RABBITMQ),
    *,
    steps: Steps | None = None,
) -> None:
    """Load images into a cluster; build the project's own first if they changed.

    Args:
        cluster: from `open_cluster`.
        tags: the images; others than the project's must have been built (`build_image`).
        steps: writes the progress (default: to standard error).

    Raises:
        DevclusterError: an image cannot be built.
        subprocess.CalledProcessError: kind failed; standard error has the reason.
    """
    progress = steps or Steps()
    own = {images.OPERATOR: images.build_operator, images.RABBITMQ: images.build_rabbitmq}
    progress.run_all({f"image {tag}": own[tag] for tag in tags if tag in own})
    for tag in tags:
        cluster.load_docker_image(tag)
        progress.say(f"image {tag} is loaded into cluster '{cluster.name}'")


def delete_cluster(name: str = DEFAULT_NAME, kubeconfig: Path = KUBECONFIG) -> None:
    """Delete a cluster, if it exists, and its entry in the kubeconfig."""
    chosen = engine()
    if chosen.kind.exists():
        run([chosen.kind, "delete", "cluster", f"--name={name}", f"--kubeconfig={kubeconfig}"])


def _revive(chosen: Engine, name: str, kubeconfig: Path, steps: Steps) -> None:
    """Check a listed cluster, and delete it if it is not whole."""
    run([chosen.kind, "export", "kubeconfig", f"--name={name}", f"--kubeconfig={kubeconfig}"])
    deadline = time.monotonic() + _ANSWER_S
    while trouble := _trouble(chosen, name, kubeconfig):
        if time.monotonic() > deadline:
            steps.say(f"cluster '{name}' exists, but {trouble}: creating it again")
            delete_cluster(name, kubeconfig)
            return
        time.sleep(0.5)


def _trouble(chosen: Engine, name: str, kubeconfig: Path) -> str | None:
    """Return what is wrong with a listed cluster, as a clause, or None."""
    workers = kind_config.parse(KIND_CONFIG.read_text()).workers
    expected = {node_name(name, index) for index in range(workers + 1)}
    try:
        found = placement.nodes(_kubectl(chosen, kubeconfig))
    except CommandError:
        return "its API server does not answer"
    missing = expected - {one["metadata"]["name"] for one in found if placement.is_ready(one)}
    return f"it has no Ready node {', '.join(sorted(missing))}" if missing else None


def _kubectl(chosen: Engine, kubeconfig: Path) -> placement.Kubectl:
    return [chosen.kubectl, f"--kubeconfig={kubeconfig}", "--request-timeout=5s"]
