"""Completion of commands, options and names, in bash, zsh and fish, and through kubectl.

The shells ask ``taskqueue __complete WORD…`` for what may stand in place of the last word. kubectl
asks the program ``kubectl_complete-taskqueue``, and reads a directive after the words.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence

from taskqueue.cli.arguments import CommandParsers, add_command

#: What kubectl reads: complete no file names.
_NO_FILES = ":4"

#: How long a completion may ask the API server.
_SECONDS = "2s"

#: By the metavar of an argument, what kind of objects it names.
_KINDS = {"TASK": "tasks", "QUEUE": "taskqueues", "SCHEDULE": "taskschedules"}
#: Likewise by an option's own name.
_OPTION_KINDS = {"--queue": "taskqueues", "-q": "taskqueues", "--namespace": "namespaces"}
_OPTION_KINDS["-n"] = "namespaces"

_SCRIPTS = {
    "bash": """\
_taskqueue() {
    local IFS=$'\\n'
    COMPREPLY=($(taskqueue __complete "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null))
}
complete -o default -F _taskqueue taskqueue
""",
    "zsh": """\
#compdef taskqueue
_taskqueue() {
    local -a found
    found=(${(f)"$(taskqueue __complete "${(@)words[2,CURRENT]}" 2>/dev/null)"})
    if (( ${#found} )); then compadd -a found; else _files; fi
}
compdef _taskqueue taskqueue
""",
    "fish": """\
function __taskqueue_complete
    set -l words (commandline -opc) (commandline -ct)
    taskqueue __complete $words[2..-1] 2>/dev/null
end
complete -c taskqueue -f -a '(__taskqueue_complete)'
""",
}


def add_commands(commands: CommandParsers) -> None:
    """Add the command."""
    parser = add_command(
        commands, "completion", _print_script, help="Print a script of completion for a shell."
    )
    parser.description = (
        "Print a script of completion for a shell. bash: source <(taskqueue completion bash), "
        "in ~/.bashrc; zsh: the same, after compinit; fish: taskqueue completion fish | source. "
        "kubectl taskqueue completes by itself where kubectl does."
    )
    parser.add_argument("shell", choices=tuple(_SCRIPTS))


def _print_script(options: argparse.Namespace) -> int:
    sys.stdout.write(_SCRIPTS[options.shell])
    return 0


def complete_for_kubectl() -> None:
    """Answer kubectl: what may stand in place of the last word."""
    from taskqueue.cli.main import make_parser

    for word in completions(make_parser(), sys.argv[1:]):
        print(word)
    print(_NO_FILES)


def completions(parser: argparse.ArgumentParser, words: Sequence[str]) -> list[str]:
    """Return what may stand in place of the last of ``words``, which may be empty."""
    *before, last = words or [""]
    positional: list[str] = []
    pending: argparse.Action | None = None
    for word in before:
        if pending is not None:
            pending = None
        elif word.startswith("-"):
            action = parser._option_string_actions.get(word)
            pending = action if action is not None and action.nargs != 0 else None
        elif (sub := _commands(parser).get(word)) is not None:
            parser, positional = sub, []
        else:
            positional.append(word)
    if pending is not None:
        found = _values(pending, before)
    elif last.startswith("-"):
        found = [one for one in parser._option_string_actions if one.startswith("--")]
    elif commands := _commands(parser):
        found = [] if positional else list(commands)
    else:
        found = [
            one for one in _arguments(parser, len(positional), before) if one not in positional
        ]
    return sorted(one for one in found if one.startswith(last))


def _commands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def _arguments(parser: argparse.ArgumentParser, place: int, before: Sequence[str]) -> list[str]:
    actions = [one for one in parser._actions if not one.option_strings]
    for action in actions[min(place, len(actions) - 1) :] if actions else ():
        if place < len(actions) or action.nargs in ("*", "+"):
            return _values(action, before)
    return []


def _values(action: argparse.Action, before: Sequence[str]) -> list[str]:
    if action.choices is not None:
        return [str(one) for one in action.choices]
    kinds = [_OPTION_KINDS[one] for one in action.option_strings if one in _OPTION_KINDS]
    if not action.option_strings:
        kinds = [_KINDS[str(action.metavar)]] if action.metavar in _KINDS else []
    return _names(kinds[0], before) if kinds else []


def _names(kind: str, before: Sequence[str]) -> list[str]:
    """Return the names of the objects of a kind; none where the API server does not answer."""
    where = [
        word
        for flag, value in zip(before, [*before[1:], ""], strict=True)
        if flag in ("-n", "--namespace", "--context", "--kubeconfig") and kind != "namespaces"
        for word in (flag, value)
    ]
    full = kind if kind == "namespaces" else f"{kind}.taskqueue.dev"
    try:
        found = subprocess.run(
            ["kubectl", "get", full, "-o", "name", f"--request-timeout={_SECONDS}", *where],
            capture_output=True,
            text=True,
            timeout=5,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [line.partition("/")[2] for line in found.stdout.splitlines()]
