"""Commands on Tasks: get, describe, why, logs, submit, cancel and retry.

Exit codes: 0 done, 1 not (all) done, 2 wrong usage; of ``submit --wait`` 0 succeeded, 1 failed or
cancelled, 124 not ended in time.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from taskqueue.cli.arguments import CommandParsers, add_command, at_least
from taskqueue.cli.errors import CommandFailed
from taskqueue.cli.explain import explain
from taskqueue.cli.kubectl import QUEUES, TASKS, Object, read_json
from taskqueue.cli.selection import FINISHED, PHASES, Filter, duration
from taskqueue.cli.target import Api, add_target, api_of
from taskqueue.cli.task_view import described, task_table
from taskqueue.cli.text_table import printable
from taskqueue.client.new_task import manifest, retry_of

#: More than these are asked about, unless with ``--yes``.
_ASK_ABOVE = 10
_TIMED_OUT = 124

#: What every line about an attempt has, and who asks for its log knows.
_KNOWN_FIELDS = frozenset(
    {"event", "time", "level", "logger", "namespace", "queue", "task", "uid", "attempt", "handler"}
)


def add_commands(commands: CommandParsers) -> None:
    """Add the commands."""
    parser = add_command(commands, "get", _get, help="List Tasks, or show those named.")
    _add_selection(parser)
    parser.add_argument(
        "--output",
        "-o",
        choices=("table", "wide", "json", "name"),
        default="table",
        help="format (default: %(default)s)",
    )
    parser = add_command(
        commands, "describe", _describe, help="Show a Task with the history of its attempts."
    )
    _add_one(parser)
    parser = add_command(
        commands, "why", _why, help="Say what keeps a Task, and what to do about it."
    )
    _add_one(parser)
    _add_logs(commands)
    _add_submit(commands)
    for name, run, text in (
        ("cancel", _cancel, "Cancel Tasks: those named, or all that match."),
        ("retry", _retry, "Run finished Tasks again, each as a new Task with the same spec."),
    ):
        parser = add_command(commands, name, run, help=text)
        _add_selection(parser)
        parser.add_argument("--dry-run", action="store_true", help="only list them")
        parser.add_argument(
            "--yes", "-y", action="store_true", help=f"do not ask, even above {_ASK_ABOVE}"
        )


def _add_one(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("task", type=_task_name, metavar="TASK", help="name of the Task")
    add_target(parser)


def _add_selection(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("tasks", nargs="*", type=_task_name, metavar="TASK", help="names of Tasks")
    group = parser.add_argument_group("filters, all of which must match")
    group.add_argument("--selector", "-l", metavar="LABELS", help="labels, as for kubectl")
    group.add_argument("--queue", "-q", default="", help="of this TaskQueue")
    group.add_argument("--handler", default="", help="for this handler")
    group.add_argument(
        "--phase",
        action="append",
        default=[],
        choices=PHASES,
        metavar="PHASE",
        help=f"in this phase; may be repeated: {', '.join(PHASES)}",
    )
    group.add_argument(
        "--reason", default="", help="with this reason, of the Task or of its last attempt"
    )
    group.add_argument(
        "--older-than",
        type=duration,
        default=0.0,
        metavar="DURATION",
        help="created at least so long ago, such as 90s, 2h or 1d",
    )
    add_target(parser, everywhere=True)


def _add_logs(commands: CommandParsers) -> None:
    parser = add_command(
        commands, "logs", _logs, help="Print what a worker logged about an attempt of a Task."
    )
    _add_one(parser)
    parser.add_argument("--follow", "-f", action="store_true", help="go on as lines come")
    parser.add_argument(
        "--attempt", type=at_least(1), metavar="N", help="of this attempt (default: the last)"
    )
    parser.add_argument("--raw", action="store_true", help="the lines as the worker wrote them")


def _add_submit(commands: CommandParsers) -> None:
    parser = add_command(commands, "submit", _submit, help="Create a Task.")
    parser.add_argument("queue", metavar="QUEUE", help="name of the TaskQueue")
    parser.add_argument("handler", metavar="HANDLER", help="name of the handler")
    parser.add_argument(
        "payload",
        nargs="?",
        default="{}",
        metavar="PAYLOAD",
        help="a JSON object, @FILE, or - for standard input (default: {})",
    )
    parser.add_argument("--name", help="of the Task (default: the queue's name and a suffix)")
    parser.add_argument("--priority", type=int, metavar="N", help="-1000 to 1000")
    parser.add_argument(
        "--label",
        action="append",
        default=[],
        type=_label,
        metavar="KEY=VALUE",
        help="of the Task; may be repeated",
    )
    parser.add_argument(
        "--wait",
        action="store_true",
        help="until it has ended: its result goes to standard output, what happens to standard "
        "error, and the exit code is 1 if it has not succeeded",
    )
    parser.add_argument(
        "--timeout",
        type=duration,
        metavar="DURATION",
        help=f"wait no longer; the exit code is {_TIMED_OUT} then",
    )
    add_target(parser)


def _task_name(text: str) -> str:
    """Parse a name, also as kubectl prints it: task/NAME, tasks.taskqueue.dev/NAME."""
    kind, slash, name = text.rpartition("/")
    if slash and kind not in ("task", "tasks", "tqt", "task.taskqueue.dev", TASKS):
        raise argparse.ArgumentTypeError(f"{text!r} is no Task: give TASK or task/TASK")
    if not name or name.startswith("-"):
        raise argparse.ArgumentTypeError(f"no Task can be called {name!r}")
    return name


def _label(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is no label: give KEY=VALUE")
    return key, value


# Reading.


def _get(options: argparse.Namespace) -> int:
    tasks = _selected(api_of(options), options)
    if options.output == "json":
        print(json.dumps({"kind": "List", "apiVersion": "v1", "items": tasks}, indent=2))
    elif options.output == "name":
        for task in tasks:
            print(f"task.taskqueue.dev/{task['metadata']['name']}")
    elif not tasks:
        print("No Tasks found.", file=sys.stderr)
    else:
        wide, everywhere = options.output == "wide", options.all_namespaces
        _print(task_table(tasks, time.time(), wide=wide, with_namespace=everywhere))
    return 0


def _describe(options: argparse.Namespace) -> int:
    (task,) = api_of(options).objects(TASKS, options.task)
    _print(described(task, time.time()))
    return 0


def _why(options: argparse.Namespace) -> int:
    api = api_of(options)
    (task,) = api.objects(TASKS, options.task)
    queue = api.object(QUEUES, task["spec"]["queue"], task["metadata"]["namespace"])
    _print(explain(task, queue, time.time()))
    return 0


def _logs(options: argparse.Namespace) -> int:
    api = api_of(options)
    (task,) = api.objects(TASKS, options.task)
    status, metadata = task.get("status") or {}, task["metadata"]
    number = options.attempt or max(status.get("attempts", 0), 1)
    pod, since = _attempt_of(status, number)
    if not pod:
        raise CommandFailed(
            f"no worker is known to have run attempt {number} of {metadata['name']}: "
            f"kubectl taskqueue why {metadata['name']} -n {metadata['namespace']}"
        )
    arguments = [pod, *(["--follow"] if options.follow else [])]
    queue = api.object(QUEUES, task["spec"]["queue"], metadata["namespace"]) or {}
    workers = (queue.get("spec") or {}).get("workers") or {}
    if container := workers.get("container"):  # else the first, which is kubectl's default
        arguments.append(f"--container={container}")
    if since:
        arguments.append(f"--since-time={since}")
    try:
        for line in api.logs(arguments, metadata["namespace"]):
            shown = _log_line(line, metadata["uid"], number, raw=options.raw)
            if shown is not None:
                print(shown, flush=True)
    except CommandFailed as error:
        raise CommandFailed(f"pod {pod}, which ran attempt {number}: {error}") from error
    return 0


def _attempt_of(status: Mapping[str, Any], number: int) -> tuple[str, str]:
    """Return the pod of an attempt, and when it started; empty: not known."""
    for entry in status.get("history", []):
        if entry["attempt"] == number:
            return entry.get("worker", ""), entry.get("startTime", "")
    return (status.get("worker", ""), "") if number == status.get("attempts", 0) else ("", "")


def _log_line(line: str, uid: str, attempt: int, *, raw: bool) -> str | None:
    """Return a line of a worker's log if it is about this attempt; else None."""
    try:
        fields = read_json(line)
    except ValueError:
        return None
    if fields.get("uid") != uid or fields.get("attempt") != attempt:
        return None
    if raw:
        return line.rstrip("\n")
    text = fields.get("text")
    if text is None:
        more = [f"{k}={v}" for k, v in fields.items() if k not in _KNOWN_FIELDS and v is not None]
        text = " ".join([str(fields.get("event", "")), *more])
    return printable(f"{fields.get('time', '')} {fields.get('level', ''):<7} {text}")


# Writing.


def _submit(options: argparse.Namespace) -> int:
    api = api_of(options)
    spec: Object = {"queue": options.queue, "handler": options.handler}
    spec["payload"] = _payload(options)
    if options.priority is not None:
        spec["priority"] = options.priority
    metadata: Object = {"name": options.name} if options.name else {}
    if not options.name:
        metadata["generateName"] = f"{options.queue}-"
    if options.label:
        metadata["labels"] = dict(options.label)
    made = api.create(manifest(metadata, spec))
    name, namespace = made["metadata"]["name"], made["metadata"]["namespace"]
    if not options.wait:
        print(f"task.taskqueue.dev/{name} created")
        return 0
    print(f"task.taskqueue.dev/{name} created", file=sys.stderr)
    return _wait(api, name, namespace, options.timeout)


def _payload(options: argparse.Namespace) -> Object:
    from taskqueue.exact_json import decode  # not for a help text

    text = options.payload
    try:
        if text == "-":
            text = sys.stdin.read()
        elif text.startswith("@"):
            with open(text[1:], encoding="utf-8") as file:
                text = file.read()
        payload: Object = decode(text, "payload")
    except (OSError, ValueError) as error:
        options.parser.error(f"the payload cannot be read as JSON: {error}")
    if not isinstance(payload, dict):
        options.parser.error(
            f"the payload is a JSON {type(payload).__name__}, not an object: "
            """give one such as '{"name": "value"}'"""
        )
    return payload


def _wait(api: Api, name: str, namespace: str, timeout: float | None) -> int:
    """Follow a Task to its end, and return the exit code."""
    deadline = None if timeout is None else time.monotonic() + timeout
    said = ""
    try:
        for task in api.watch(TASKS, name, namespace, seconds=timeout):
            status = task.get("status") or {}
            progress = (status.get("progress") or {}).get("message")
            parts = (_phase(task), status.get("reason"), status.get("message"), progress)
            now = ", ".join(part for part in parts if part)
            if now != said:
                print(printable(now), file=sys.stderr)
                said = now
            if _phase(task) in FINISHED:
                _print_result(name, status)
                return 0 if _phase(task) == "Succeeded" else 1
        problem = "it was deleted, or the watch of it has ended"
    except CommandFailed as error:
        problem = str(error)
    if deadline is not None and time.monotonic() >= deadline - 1:
        print(f"not ended within {timeout:g} s; it goes on", file=sys.stderr)
        return _TIMED_OUT
    raise CommandFailed(f"cannot follow Task {namespace}/{name}: {problem}")


def _print_result(name: str, status: Mapping[str, Any]) -> None:
    """Print what the status has of a result: itself, or on standard error where it is."""
    if "result" in status:
        print(json.dumps(status["result"]))
    elif (stored := status.get("resultRef")) is not None:
        print(
            printable(
                f"the result of {name}, {stored.get('sizeBytes')} bytes of "
                f"{stored.get('contentType')}, is in the store under {stored.get('key')}: "
                "read it with TaskClient, as docs/guides/results.md says"
            ),
            file=sys.stderr,
        )


def _cancel(options: argparse.Namespace) -> int:
    api = api_of(options)
    tasks = [task for task in _chosen(api, options) if _phase(task) not in FINISHED]
    return _act(
        options,
        tasks,
        "cancel",
        lambda task: api.patch(TASKS, task, {"spec": {"cancel": True}}),
        api,
        nothing="Nothing to cancel: none of them is unfinished.",
    )


def _retry(options: argparse.Namespace) -> int:
    api = api_of(options)

    def retry(task: Object) -> None:
        print(f"task.taskqueue.dev/{api.create(retry_of(task))['metadata']['name']} created")

    tasks = [task for task in _chosen(api, options) if _phase(task) in FINISHED]
    return _act(
        options,
        tasks,
        "retry",
        retry,
        api,
        nothing="Nothing to retry: none of them has ended.",
    )


def _act(
    options: argparse.Namespace,
    tasks: Sequence[Object],
    verb: str,
    run: Callable[[Object], None],
    api: Api,
    *,
    nothing: str,
) -> int:
    """Do something to Tasks, if it is wanted; return the exit code."""
    if not tasks:
        print(nothing, file=sys.stderr)
        return 0
    if options.dry_run:
        _print(task_table(tasks, time.time(), wide=False, with_namespace=options.all_namespaces))
        print(f"would {verb} {len(tasks)}", file=sys.stderr)
        return 0
    if len(tasks) > _ASK_ABOVE and not options.yes and not _confirmed(f"{verb} {len(tasks)} Tasks"):
        print("nothing done; --yes does not ask", file=sys.stderr)
        return 1
    failed = api.each(run, tasks)
    for line in failed:
        print(printable(line), file=sys.stderr)
    done = len(tasks) - len(failed)
    print(f"{verb}: {done} done{f', {len(failed)} not' if failed else ''}", file=sys.stderr)
    return 1 if failed else 0


def _confirmed(what: str) -> bool:
    if not sys.stdin.isatty():
        return False
    print(f"{what}? [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _chosen(api: Api, options: argparse.Namespace) -> list[Object]:
    """Return the Tasks to act on; all of them must be asked for by name or by a filter."""
    if not options.tasks and _filter(options).is_empty and not options.selector:
        options.parser.error("give names of Tasks, or a filter such as --reason or --queue")
    return _selected(api, options)


def _selected(api: Api, options: argparse.Namespace) -> list[Object]:
    wanted, now = _filter(options), time.time()
    if options.tasks and (options.selector or options.all_namespaces):
        options.parser.error("names exclude --selector and --all-namespaces")
    arguments = [] if options.tasks else wanted.field_selector()
    if options.selector:
        arguments.append(f"--selector={options.selector}")
    found = api.objects(TASKS, *options.tasks, arguments=arguments)
    return [task for task in found if wanted.matches(task, now)]


def _filter(options: argparse.Namespace) -> Filter:
    return Filter(
        queue=options.queue,
        handler=options.handler,
        phases=tuple(options.phase),
        reason=options.reason,
        older_than=options.older_than,
    )


def _phase(task: Object) -> str:
    return str((task.get("status") or {}).get("phase", "Pending"))


def _print(lines: Sequence[str]) -> None:
    for line in lines:
        print(printable(line))
