"""Commands on TaskSchedules: run, pause, resume, backfill and next."""

from __future__ import annotations

import argparse
import time
from datetime import datetime

from taskqueue.cli.arguments import CommandParsers, add_command, add_group
from taskqueue.cli.errors import CommandFailed
from taskqueue.cli.kubectl import Object
from taskqueue.cli.selection import seconds_of
from taskqueue.cli.target import add_target, api_of
from taskqueue.cli.text_table import printable, span, table
from taskqueue.client.new_task import manifest
from taskqueue.timestamps import to_rfc3339

SCHEDULES = "taskschedules.taskqueue.dev"

_GROUP = "taskqueue.dev"
#: Says which schedule's template a Task was made of by hand.
RUN_OF = f"{_GROUP}/run-of"


def add_commands(commands: CommandParsers) -> None:
    """Add the commands."""
    parser = add_command(
        commands, "schedule", lambda _: 2, help="Run, pause or backfill schedules."
    )
    verbs = add_group(parser)
    one = add_command(verbs, "run", _run, help="Create a Task of a schedule's template, now.")
    _add_name(one)
    one = add_command(verbs, "pause", _pause, help="Create no further run; active ones go on.")
    _add_name(one)
    one.add_argument("--reason", default="by kubectl taskqueue", help="shown in its condition")
    one = add_command(verbs, "resume", _resume, help="End a pause, by hand or after failures.")
    _add_name(one)
    one = add_command(
        verbs, "backfill", _backfill, help="Create the runs of a stretch of the past."
    )
    _add_name(one)
    one.add_argument("--from", dest="begin", required=True, type=_time, metavar="TIME")
    one.add_argument("--to", dest="end", required=True, type=_time, metavar="TIME")
    one.add_argument(
        "--backfill", metavar="NAME", help="done once by this name (default: made of the times)"
    )
    one.add_argument("--allow", action="store_true", help="create them whatever runs")
    one = add_command(verbs, "next", _next, help="Show the next times of schedules.")
    one.add_argument("schedules", nargs="*", metavar="SCHEDULE", help="names (default: all)")
    add_target(one, everywhere=True)


def _add_name(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("schedule", metavar="SCHEDULE", help="name of the TaskSchedule")
    add_target(parser)


def _time(text: str) -> str:
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        found = None
    if found is None or found.tzinfo is None:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no time with a zone: give one such as 2026-01-02T03:00:00Z"
        )
    return to_rfc3339(found.timestamp(), "seconds")


def _run(options: argparse.Namespace) -> int:
    api = api_of(options)
    (schedule,) = api.objects(SCHEDULES, options.schedule)
    metadata, template = schedule["metadata"], schedule["spec"]["taskTemplate"]
    given = template.get("metadata") or {}
    made = api.create(
        manifest(
            {
                "generateName": f"{metadata['name'][:200]}-",
                "namespace": metadata["namespace"],
                "labels": given.get("labels", {}),
                "annotations": {**given.get("annotations", {}), RUN_OF: metadata["name"]},
            },
            template["spec"],
        )
    )
    print(f"task.taskqueue.dev/{made['metadata']['name']} created")
    return 0


def _pause(options: argparse.Namespace) -> int:
    return _annotate(options, "paused", {"paused": options.reason})


def _resume(options: argparse.Namespace) -> int:
    now = to_rfc3339(time.time(), "seconds")
    return _annotate(options, "resumed", {"paused": None, "resumed-at": now})


def _annotate(options: argparse.Namespace, done: str, values: dict[str, str | None]) -> int:
    api = api_of(options)
    (schedule,) = api.objects(SCHEDULES, options.schedule)
    annotations = {f"{_GROUP}/{name}": value for name, value in values.items()}
    api.patch(SCHEDULES, schedule, {"metadata": {"annotations": annotations}})
    print(f"taskschedule.taskqueue.dev/{schedule['metadata']['name']} {done}")
    if done == "resumed" and schedule["spec"].get("suspend"):
        raise CommandFailed("spec.suspend still pauses it: set it to false where its manifest is")
    return 0


def _backfill(options: argparse.Namespace) -> int:
    if seconds_of(options.begin) >= seconds_of(options.end):
        options.parser.error("--from must be before --to")
    api = api_of(options)
    (schedule,) = api.objects(SCHEDULES, options.schedule)
    stamp = f"{int(seconds_of(options.begin))}-{int(seconds_of(options.end))}"
    wanted: Object = {
        "name": options.backfill or f"from-{stamp}",
        "startTime": options.begin,
        "endTime": options.end,
    }
    if options.allow:
        wanted["concurrencyPolicy"] = "Allow"
    present = schedule["spec"].get("backfills", [])
    done = [one["name"] for one in (schedule.get("status") or {}).get("backfills", [])]
    if wanted["name"] in [*done, *(one["name"] for one in present)]:
        raise CommandFailed(
            f"a backfill {wanted['name']} is there, and is done once: give another --backfill"
        )
    version = schedule["metadata"]["resourceVersion"]  # or another's backfill would be lost
    change = {
        "metadata": {"resourceVersion": version},
        "spec": {"backfills": [*present, wanted]},
    }
    api.patch(SCHEDULES, schedule, change)
    print(f"taskschedule.taskqueue.dev/{schedule['metadata']['name']}: backfill {wanted['name']}")
    return 0


def _next(options: argparse.Namespace) -> int:
    found = api_of(options).objects(SCHEDULES, *options.schedules)
    lines = next_table(found, time.time(), with_namespace=options.all_namespaces)
    for line in lines:
        print(line)
    return 0


def next_table(schedules: list[Object], now: float, *, with_namespace: bool) -> list[str]:
    """Return the lines of a table of schedules with their next times; ``now`` in seconds."""
    header = ["NAME", "NEXT", "IN", "AFTER THAT", "ACTIVE", "MISSED", "SCHEDULE"]
    rows = []
    for one in schedules:
        status = one.get("status") or {}
        times = status.get("nextTimes", [])
        paused = "paused" if status.get("paused") else "-"
        row = [
            one["metadata"]["name"],
            times[0] if times else paused,
            span(seconds_of(times[0]) - now) if times else "-",
            times[1] if len(times) > 1 else "-",
            str(status.get("active", 0)),
            str(status.get("missed", 0)),
            printable(status.get("description") or ", ".join(one["spec"].get("schedules", []))),
        ]
        rows.append([one["metadata"]["namespace"], *row] if with_namespace else row)
    return table(["NAMESPACE", *header] if with_namespace else header, rows)
