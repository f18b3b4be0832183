"""Opening the development cluster: the one way in, for make, the demo and the tests.

Whatever runs the cluster, it is driven by pytest-kind's `KindCluster`, with a `kind` executable
that fits the machine: kind itself where a Docker engine answers, `devcluster/bin/kind` where
none does. pytest-kind takes a cluster that is listed for one that works and leaves its
kubeconfig alone; here both are made sure of.
"""

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pytest_kind import KindCluster

from devcluster import base_images, images, packages, prerequisites, programs, wheels
from devcluster.builders import docker_answers
from devcluster.commands import run, succeeds
from devcluster.paths import DEFAULT_NAME, KIND_CONFIG, KUBECONFIG, cache, locked
from devcluster.progress import Steps

#: Seconds that the API server of a cluster found running gets to answer.
_ANSWER_S = 20.0


@dataclass(frozen=True)
class Engine:
    """What runs clusters on this machine."""

    kind: Path
    kubectl: Path
    description: str


def engine() -> Engine:
    """Choose what runs clusters here; nothing is built or installed for it yet."""
    if not docker_answers():
        kind = Path(__file__).resolve().parent / "bin" / "kind"
        text = f"no Docker engine answers: a native node by {kind}"
        return Engine(kind, programs.kubectl(), text)
    kind = programs.kind()
    kubectl = shutil.which("kubectl")
    text = f"a Docker engine answers: kind, {kind}"
    return Engine(kind, Path(kubectl) if kubectl else programs.kubectl(), text)


def prepare(steps: Steps, *, with_images: bool = True) -> None:
    """Put everything on the machine that a cluster takes, side by side.

    Args:
        steps: where progress is told.
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
    """Build the project's images where their inputs changed."""
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
    """Return a cluster that works, made when it does not exist.

    Its kubeconfig is at `kubeconfig` then (`cluster.kubeconfig_path`), complete and current.

    Args:
        name: the cluster's name.
        kubeconfig: the file for its kubeconfig.
        steps: where progress is told (default: standard error).
        with_images: whether to build the project's images beside what the cluster itself takes.

    Raises:
        DevclusterError: something is missing that cannot be installed.
        subprocess.CalledProcessError: kind failed; it has said why on standard error.
    """
    told = steps or Steps()
    chosen = engine()
    told.say(f"cluster '{name}': {chosen.description}")
    prepare(told, with_images=with_images)
    kubeconfig.parent.mkdir(parents=True, exist_ok=True)
    # Two that open the same cluster: the second finds what the first has made.
    with locked(cache() / "opening" / name):
        if name in run([chosen.kind, "get", "clusters"]).splitlines():
            _revive(chosen, name, kubeconfig, told)
        cluster = KindCluster(
            name, kubeconfig, kind_path=chosen.kind, kubectl_path=chosen.kubectl.resolve()
        )
        cluster.create(config_file=KIND_CONFIG)
    told.say(f"cluster '{name}' is up; kubeconfig: {kubeconfig}")
    return cluster


def load_images(
    cluster: KindCluster,
    tags: Sequence[str] = (images.OPERATOR, images.RABBITMQ),
    *,
    steps: Steps | None = None,
) -> None:
    """Load images into a cluster; the project's own are built first where they changed.

    Args:
        cluster: from `open_cluster`.
        tags: the images; others than the project's must have been built (`build_image`).
        steps: where progress is told (default: standard error).

    Raises:
        DevclusterError: an image cannot be built.
        subprocess.CalledProcessError: kind failed; it has said why on standard error.
    """
    told = steps or Steps()
    own = {images.OPERATOR: images.build_operator, images.RABBITMQ: images.build_rabbitmq}
    told.run_all({f"image {tag}": own[tag] for tag in tags if tag in own})
    for tag in tags:
        cluster.load_docker_image(tag)
        told.say(f"image {tag} is in cluster '{cluster.name}'")


def delete_cluster(name: str = DEFAULT_NAME, kubeconfig: Path = KUBECONFIG) -> None:
    """Delete a cluster and its entry in the kubeconfig; one that is not there is no error."""
    chosen = engine()
    if chosen.kind.exists():
        run([chosen.kind, "delete", "cluster", f"--name={name}", f"--kubeconfig={kubeconfig}"])


def _revive(chosen: Engine, name: str, kubeconfig: Path, steps: Steps) -> None:
    """See to it that a cluster that is listed can be used, or is gone."""
    run([chosen.kind, "export", "kubeconfig", f"--name={name}", f"--kubeconfig={kubeconfig}"])
    question = [chosen.kubectl, f"--kubeconfig={kubeconfig}", "--request-timeout=5s"]
    deadline = time.monotonic() + _ANSWER_S
    while not succeeds([*map(str, question), "get", "--raw", "/readyz"]):
        if time.monotonic() > deadline:
            steps.say(f"cluster '{name}' exists, but its API server does not answer: made anew")
            delete_cluster(name, kubeconfig)
            return
        time.sleep(0.5)
