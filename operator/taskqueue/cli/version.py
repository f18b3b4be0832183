"""`version`: of this command and of the operator, with a warning where they are too far apart."""

from __future__ import annotations

import argparse
import sys

from taskqueue import __version__
from taskqueue.cli.arguments import CommandParsers, add_command
from taskqueue.cli.errors import CommandFailed
from taskqueue.cli.kubectl import Object
from taskqueue.cli.local import LocalApi
from taskqueue.cli.target import add_target, api_of

_DEPLOYMENTS = "deployments.apps"
_OPERATORS = "app.kubernetes.io/name=taskqueue-operator"


def add_commands(commands: CommandParsers) -> None:
    """Add the command."""
    parser = add_command(
        commands, "version", _version, help="Print the versions of this command and the operator."
    )
    parser.add_argument("--client", action="store_true", help="only of this command")
    add_target(parser, everywhere=True)


def _version(options: argparse.Namespace) -> int:
    print(f"Client: {__version__}")
    api = api_of(options)
    if options.client or isinstance(api, LocalApi):
        return 0
    try:
        arguments = [f"--selector={_OPERATORS}"]
        if not options.namespace:
            arguments.append("--all-namespaces")
        found = api.objects(_DEPLOYMENTS, arguments=arguments)
    except CommandFailed as error:
        print(f"Operator: not known: {error}", file=sys.stderr)
        return 1
    for one in found:
        where = f"{one['metadata']['namespace']}/{one['metadata']['name']}"
        version = image_version(one)
        print(f"Operator: {version or 'not known'} ({where})")
        if warning := skew(__version__, version):
            print(warning, file=sys.stderr)
    if not found:
        print("Operator: none found: give the --namespace where it runs", file=sys.stderr)
    return 0


def image_version(deployment: Object) -> str:
    """Return the tag of an operator's image; "": it has none that is a version."""
    for container in deployment["spec"]["template"]["spec"]["containers"]:
        name, colon, tag = container["image"].partition("@")[0].rpartition(":")
        if colon and "/" not in tag and name.rpartition("/")[2].startswith("taskqueue"):
            return str(tag)
    return ""


def skew(client: str, operator: str) -> str:
    """Return a warning if two versions are more than one minor version apart; "": they are not."""
    try:
        ours, theirs = (tuple(map(int, one.split(".")[:2])) for one in (client, operator))
    except ValueError:
        return ""  # a tag such as dev says nothing
    if len(ours) != 2 or len(theirs) != 2:
        return ""
    if ours[0] == theirs[0] and abs(ours[1] - theirs[1]) <= 1:
        return ""
    return (
        f"warning: this command is {client} and the operator {operator}, more than one minor "
        "version apart: install the command of the operator's version"
    )
