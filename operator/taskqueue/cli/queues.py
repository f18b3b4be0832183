"""Commands on TaskQueues: hold, drain and resume."""

from __future__ import annotations

import argparse

from taskqueue.cli.arguments import CommandParsers, add_command
from taskqueue.cli.kubectl import QUEUES
from taskqueue.cli.target import add_target, api_of

_POLICIES = {
    "hold": ("Hold", "Dispatch nothing new; what is dispatched continues."),
    "drain": ("HoldAndDrain", "Dispatch nothing new, and remove the workers as their work ends."),
    "resume": ("None", "Dispatch again."),
}


def add_commands(commands: CommandParsers) -> None:
    """Add the commands."""
    for name, (_, text) in _POLICIES.items():
        parser = add_command(commands, name, _set_policy, help=text)
        parser.set_defaults(verb=name)
        parser.add_argument("queues", nargs="+", metavar="QUEUE", help="names of TaskQueues")
        add_target(parser)


def _set_policy(options: argparse.Namespace) -> int:
    api = api_of(options)
    policy, _ = _POLICIES[options.verb]
    for queue in api.objects(QUEUES, *options.queues):
        api.patch(QUEUES, queue, {"spec": {"stopPolicy": policy}})
        print(f"taskqueue.taskqueue.dev/{queue['metadata']['name']}: stopPolicy {policy}")
    return 0
