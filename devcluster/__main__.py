"""`python -m devcluster`: the commands behind the Makefile.

up            start the cluster unless it runs, build the images and load them
down          delete the cluster; builds stay in the cache
images        build the images, and load them if the cluster runs
deploy        start the cluster, with RabbitMQ and the operator of this checkout
kubectl-path  print the path of the kubectl that fits the cluster
info          print how this machine runs clusters, and which ones run
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
    parser.add_argument(
        "--name", default=DEFAULT_NAME, help="name of the cluster (default: %(default)s)"
    )
    parser.add_argument(
        "--no-images", action="store_true", help="up: start the cluster only, without images"
    )
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
    from devcluster.cluster import load_images, open_cluster

    steps = Steps()
    cluster = open_cluster(options.name, steps=steps, with_images=not options.no_images)
    if not options.no_images:
        load_images(cluster, steps=steps)
    print(f"export KUBECONFIG={KUBECONFIG}")


def _down(options: argparse.Namespace) -> None:
    from devcluster.cluster import delete_cluster

    delete_cluster(options.name)
    print(f"cluster '{options.name}' is deleted")


def _images(options: argparse.Namespace) -> None:
    from devcluster.cluster import load_images, open_cluster, prepare

    steps = Steps()
    prepare(steps)
    if options.name in _running():
        cluster = open_cluster(options.name, steps=steps, with_images=False)
        load_images(cluster, steps=steps)
    else:
        steps.say(f"cluster '{options.name}' does not run: the images are built, but not loaded")


def _deploy(options: argparse.Namespace) -> None:
    from devcluster.cluster import open_cluster
    from devcluster.deploy import deploy

    steps = Steps()
    deploy(open_cluster(options.name, steps=steps), steps=steps)
    print(f"export KUBECONFIG={KUBECONFIG}")


def _kubectl_path(options: argparse.Namespace) -> None:
    from devcluster.cluster import engine

    print(engine().kubectl)


def _info(options: argparse.Namespace) -> None:
    from devcluster import programs
    from devcluster.cluster import engine

    print(f"engine:     {engine().description}")
    print(f"Kubernetes: {programs.kubernetes_version()}")
    print(f"kubectl:    {engine().kubectl}")
    print(f"kubeconfig: {KUBECONFIG}{'' if KUBECONFIG.exists() else ' (does not exist)'}")
    print(f"cache:      {cache()}")
    print(f"clusters:   {', '.join(_running()) or 'none'}")


def _running() -> list[str]:
    from devcluster.cluster import engine

    kind = engine().kind
    return run([kind, "get", "clusters"]).splitlines() if kind.exists() else []


if __name__ == "__main__":
    sys.exit(main())
