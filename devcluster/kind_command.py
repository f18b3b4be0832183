"""kind's command line for native nodes, as far as pytest-kind and people use it.

Supported flags have kind's names, spellings (``--name X`` and ``--name=X``) and effects. Any other
flag fails with status 2, so that none is silently ignored. An error is a sentence on standard error
and status 1. Standard output has only the requested data.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from devcluster import (
    base_images,
    cluster_state,
    kind_config,
    kubeconfig,
    native_cluster,
    node_images,
    prerequisites,
    programs,
)
from devcluster.builders import Buildah
from devcluster.commands import DevclusterError
from devcluster.kind_config import KindConfig
from devcluster.progress import Steps

#: kind's own default.
DEFAULT_CLUSTER = "kind"


class _Parser(argparse.ArgumentParser):
    """A parser that, with all its sub-parsers, accepts no abbreviated flags."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, allow_abbrev=False)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line; `handler` is the function to call."""
    top = _Parser(prog="kind", description="kind's commands for a node without Docker.")
    commands = top.add_subparsers(metavar="COMMAND", required=True)

    version = commands.add_parser("version", help="show the version")
    version.set_defaults(handler=_version)

    get = _group(commands, "get", "show something")
    clusters = get.add_parser("clusters", help="the names of running clusters")
    clusters.set_defaults(handler=_get_clusters)
    config = get.add_parser("kubeconfig", help="a cluster's kubeconfig")
    config.set_defaults(handler=_get_kubeconfig)
    _add_name(config)

    export = _group(commands, "export", "write something")
    exported = export.add_parser("kubeconfig", help="put a cluster's kubeconfig into a file")
    exported.set_defaults(handler=_export_kubeconfig)
    _add_name(exported)
    _add_kubeconfig(exported)

    create = _group(commands, "create", "create something")
    cluster = create.add_parser("cluster", help="create a cluster and wait until it is ready")
    cluster.set_defaults(handler=_create_cluster)
    _add_name(cluster)
    _add_kubeconfig(cluster)
    cluster.add_argument("--config", type=Path, help="a kind configuration file")
    cluster.add_argument(
        "--image",
        help="accepted and ignored with a note: a native node has no node image",
    )
    cluster.add_argument(
        "--wait", help="accepted and ignored: creation always waits for a native node"
    )

    delete = _group(commands, "delete", "delete something")
    deletion = delete.add_parser(
        "cluster", help="delete a cluster and everything it left on this machine"
    )
    deletion.set_defaults(handler=_delete_cluster)
    _add_name(deletion)
    _add_kubeconfig(deletion)

    load = _group(commands, "load", "load images")
    image = load.add_parser("docker-image", help="load images that devcluster has built")
    image.set_defaults(handler=_load_image)
    _add_name(image)
    image.add_argument("images", nargs="+", metavar="IMAGE")
    return top


def main(arguments: Sequence[str]) -> int:
    """Run one command and return its exit status."""
    options = parser().parse_args(arguments)
    try:
        options.handler(options)
    except DevclusterError as error:
        print(f"ERROR: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("ERROR: interrupted", file=sys.stderr)
        return 130
    return 0


def _group(
    commands: "argparse._SubParsersAction[_Parser]", name: str, text: str
) -> "argparse._SubParsersAction[_Parser]":
    group = commands.add_parser(name, help=text)
    return group.add_subparsers(metavar="WHAT", required=True)


def _add_name(command: argparse.ArgumentParser) -> None:
    command.add_argument("--name", help=f"the cluster's name (default: {DEFAULT_CLUSTER})")


def _add_kubeconfig(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--kubeconfig", type=Path, help="the file to change (default: $KUBECONFIG, ~/.kube/config)"
    )


def _version(options: argparse.Namespace) -> None:
    print(f"kind (devcluster, native node) Kubernetes {programs.kubernetes_version()}")


def _get_clusters(options: argparse.Namespace) -> None:
    names = cluster_state.names()
    if names:
        print("\n".join(names))
    else:
        print("No kind clusters found.", file=sys.stderr)


def _get_kubeconfig(options: argparse.Namespace) -> None:
    content = native_cluster.admin_kubeconfig(options.name or DEFAULT_CLUSTER)
    print(kubeconfig.to_yaml(content), end="")


def _export_kubeconfig(options: argparse.Namespace) -> None:
    name = options.name or DEFAULT_CLUSTER
    target = options.kubeconfig or kubeconfig.default_path()
    kubeconfig.add(target, native_cluster.admin_kubeconfig(name), programs.kubectl())


def _create_cluster(options: argparse.Namespace) -> None:
    config = KindConfig()
    if options.config:
        try:
            config = kind_config.parse(options.config.read_text())
        except OSError as error:
            raise DevclusterError(f"{options.config} cannot be read: {error.strerror}.") from error
    name = cluster_state.check_name(options.name or config.name or DEFAULT_CLUSTER)
    steps = Steps()
    if options.image:
        steps.say(f"--image {options.image}: ignored, because a native node has no node image")
    prerequisites.prepare_node(steps)

    def create() -> None:
        native_cluster.create(
            name,
            workers=config.workers,
            binaries=programs.folder(),
            pause_archive=base_images.pause_archive(),
            feature_gates=config.feature_gates,
            say=steps.say,
        )

    steps.run(f"cluster '{name}'", create)
    _export_kubeconfig(argparse.Namespace(name=name, kubeconfig=options.kubeconfig))
    target = options.kubeconfig or kubeconfig.default_path()
    steps.say(f"kubeconfig: {target} (context {kubeconfig.entry_name(name)})")


def _delete_cluster(options: argparse.Namespace) -> None:
    name = options.name or DEFAULT_CLUSTER
    print(f'Deleting cluster "{name}" ...', file=sys.stderr)
    native_cluster.delete(name)
    target = options.kubeconfig or kubeconfig.default_path()
    kubeconfig.remove(target, name, programs.kubectl())


def _load_image(options: argparse.Namespace) -> None:
    name = options.name or DEFAULT_CLUSTER
    for image in options.images:
        node_images.load(name, Buildah().export(image))
