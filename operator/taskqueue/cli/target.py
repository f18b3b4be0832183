"""Options that say which cluster, namespace and user, the same as kubectl's."""

from __future__ import annotations

import argparse

from taskqueue.cli.kubectl import Kubectl

_PASSED_ON = {
    "kubeconfig": "path of the kubeconfig",
    "context": "name of the context in the kubeconfig",
    "cluster": "name of the cluster in the kubeconfig",
    "user": "name of the user in the kubeconfig",
    "as": "user to act as",
    "as-group": "group to act as",
    "server": "address of the API server",
    "token": "bearer token",
    "request-timeout": "of each request to the API server, such as 10s",
}


def add_target(parser: argparse.ArgumentParser, *, everywhere: bool = False) -> None:
    """Add the options; ``everywhere``: also that for all namespaces."""
    group = parser.add_argument_group("where, as for kubectl")
    place = group.add_mutually_exclusive_group()
    place.add_argument("--namespace", "-n", help="of the objects (default: the context's)")
    if everywhere:
        place.add_argument("--all-namespaces", "-A", action="store_true", help="in all namespaces")
    else:
        parser.set_defaults(all_namespaces=False)
    for name, text in _PASSED_ON.items():
        group.add_argument(f"--{name}", metavar="VALUE", help=text)


def kubectl_of(options: argparse.Namespace) -> Kubectl:
    """Return kubectl as the options say."""
    given = {name: getattr(options, name.replace("-", "_")) for name in _PASSED_ON}
    flags = tuple(f"--{name}={value}" for name, value in given.items() if value is not None)
    if options.all_namespaces:
        return Kubectl(flags, ("--all-namespaces",))
    return Kubectl(flags, ("--namespace", options.namespace) if options.namespace else ())
