"""`python -m devcluster`: what the Makefile calls.

up            make the cluster (or find it), build the images and load them
down          delete it, and leave nothing behind
images        build the images, and load them when the cluster is up
deploy        up, and RabbitMQ and the operator of this checkout in it
kubectl-path  print the path of the kubectl that fits the cluster
info          print what runs clusters here, and what is up
"""

import argparse
import subprocess
import sys
from collections.abc import Callable

from devcluster.commands import DevclusterError, run
from devcluster.paths import DEFAULT_NAME, KUBECONFIG, cache
from devcluster.progress import Steps


def main() -> int:
    """Run one command and return its exit status."""
    commands: dict[str, Callable[[argparse.Namespace], None]] = {
        "up": _up,
        "down": _down,
        "images": _images,
        "deploy": _deploy,
        "kubectl-path": _kubectl_path,
        "info": _info,
    }
    parser = argparse.ArgumentParser(
        prog="python -m devcluster",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=commands, metavar="COMMAND")
    parser.add_argument("--name", default=DEFAULT_NAME, help="the cluster (default: %(default)s)")
    parser.add_argument("--no-images", action="store_true", help="up: the cluster alone")
    options = parser.parse_args()
    try:
        commands[options.command](options)
    except DevclusterError as error:
        print(f"ERROR: {error}", file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as error:
        print(f"ERROR: `{error.cmd[0]}` failed, see above", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _up(options: argparse.Namespace) -> None:
    from devcluster import cluster

    steps = Steps()
    cluster = cluster.open_cluster(options.name, steps=steps, with_images=not options.no_images)
    if not options.no_images:
        cluster.load_images(cluster, steps=steps)
    print(f"export KUBECONFIG={KUBECONFIG}")


def _down(options: argparse.Namespace) -> None:
    from devcluster import cluster

    cluster.delete_cluster(options.name)
    print(f"cluster '{options.name}' is gone")


def _images(options: argparse.Namespace) -> None:
    from devcluster import cluster

    steps = Steps()
    cluster.prepare(steps)
    if options.name in _running():
        cluster = cluster.open_cluster(options.name, steps=steps, with_images=False)
        cluster.load_images(cluster, steps=steps)
    else:
        steps.say(f"cluster '{options.name}' is not up: nothing to load the images into")


def _deploy(options: argparse.Namespace) -> None:
    from devcluster import cluster
    from devcluster.deploy import deploy

    steps = Steps()
    deploy(cluster.open_cluster(options.name, steps=steps), steps=steps)
    print(f"export KUBECONFIG={KUBECONFIG}")


def _kubectl_path(options: argparse.Namespace) -> None:
    from devcluster import cluster

    print(cluster.engine().kubectl)


def _info(options: argparse.Namespace) -> None:
    from devcluster import cluster, programs

    print(f"engine:     {cluster.engine().description}")
    print(f"Kubernetes: {programs.kubernetes_version()}")
    print(f"kubectl:    {cluster.engine().kubectl}")
    print(f"kubeconfig: {KUBECONFIG}{'' if KUBECONFIG.exists() else ' (not there)'}")
    print(f"cache:      {cache()}")
    print(f"clusters:   {', '.join(_running()) or 'none'}")


def _running() -> list[str]:
    from devcluster import cluster

    kind = cluster.engine().kind
    return run([kind, "get", "clusters"]).splitlines() if kind.exists() else []


if __name__ == "__main__":
    sys.exit(main())
