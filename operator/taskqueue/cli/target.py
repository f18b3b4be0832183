"""Options that say which cluster, namespace and user, the same as kubectl's."""

from __future__ import annotations

import argparse
import os
from typing import TypeAlias

from taskqueue.cli.kubectl import Kubectl
from taskqueue.cli.local import DEFAULT_URL, LocalApi
from taskqueue.defaults import DEV_VARIABLE

#: What is asked for objects.
Api: TypeAlias = Kubectl | LocalApi

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
    group.add_argument(
        "--dev",
        action="store_true",
        help=f"ask 'taskqueue dev' on this machine, at ${DEV_VARIABLE} (default: {DEFAULT_URL})",
    )
    for name, text in _PASSED_ON.items():
        group.add_argument(f"--{name}", metavar="VALUE", help=text)


def api_of(options: argparse.Namespace) -> Api:
    """Return what to ask, as the options say: an API server by kubectl, or `taskqueue dev`."""
    if options.dev or os.environ.get(DEV_VARIABLE):
        url = os.environ.get(DEV_VARIABLE) or DEFAULT_URL
        everywhere = options.all_namespaces
        return LocalApi(url, None if everywhere else options.namespace or "default")
    given = {name: getattr(options, name.replace("-", "_")) for name in _PASSED_ON}
    flags = tuple(f"--{name}={value}" for name, value in given.items() if value is not None)
    if options.all_namespaces:
        return Kubectl(flags, ("--all-namespaces",))
    return Kubectl(flags, ("--namespace", options.namespace) if options.namespace else ())
