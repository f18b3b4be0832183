"""Commands on TaskBatches: status and retry-failed."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator

from taskqueue.cli.arguments import CommandParsers, add_command, add_group
from taskqueue.cli.errors import CommandFailed
from taskqueue.cli.kubectl import Object, read_json
from taskqueue.cli.target import Api, add_target, api_of
from taskqueue.cli.text_table import printable
from taskqueue.limits import INLINE_BYTES, INLINE_ITEMS

BATCHES = "taskbatches.taskqueue.dev"
#: Says which TaskBatch a TaskBatch is a retry of.
RETRY_OF = "taskqueue.dev/retry-of"
#: What a retry does not take over: it would hold the new TaskBatch, or end it at once.
_NOT_RETRIED = ("cancel", "suspend", "count", "items", "itemsFrom")
_KEY = "items.jsonl"
_FINISHED = ("Succeeded", "Failed", "Cancelled")


def add_commands(commands: CommandParsers) -> None:
    """Add the commands."""
    text = "Show a TaskBatch, or retry what failed of it."
    parser = commands.add_parser("batch", help=text, description=text, allow_abbrev=False)
    verbs = add_group(parser)
    one = add_command(verbs, "status", _status, help="Show the items of a TaskBatch, and errors.")
    _add_one(one)
    one = add_command(
        verbs, "retry-failed", _retry_failed, help="Create a TaskBatch of the items that failed."
    )
    _add_one(one)


def _add_one(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("batch", metavar="BATCH", help="name of the TaskBatch")
    add_target(parser)


def _status(options: argparse.Namespace) -> int:
    (batch,) = api_of(options).objects(BATCHES, options.batch)
    for line in status_lines(batch):
        print(line)
    return 0


def status_lines(batch: Object) -> Iterator[str]:
    """Yield what is said of a TaskBatch."""
    status = batch.get("status", {})
    phase, reason = status.get("phase", "Pending"), status.get("reason", "")
    yield f"Phase:      {phase}" + (f" ({printable(reason)})" if reason else "")
    if status.get("message"):
        yield f"            {printable(status['message'])}"
    total = status.get("total")
    yield f"Items:      {'not known yet' if total is None else total}"
    for name in ("succeeded", "failed", "cancelled", "active", "retried"):
        if status.get(name):
            yield f"{name.capitalize() + ':':<12}{status[name]}"
    if total:
        yield f"Percent:    {status.get('percent', 0)}"
    if status.get("failedIndexes"):
        more = " and more" if status.get("failedIndexesTruncated") else ""
        yield f"Failed at:  {printable(status['failedIndexes'])}{more}"
    for error in status.get("errors", ()):
        shown = ", ".join(map(str, error.get("indexes", ())))
        message = printable(error.get("message", ""))
        yield f"  {error['count']} x {printable(error['type'])} (such as {shown}): {message}"


def _retry_failed(options: argparse.Namespace) -> int:
    api = api_of(options)
    (batch,) = api.objects(BATCHES, options.batch)
    indexes = failed_indexes(batch)
    items = _items(api, batch, indexes)
    lines = [json.dumps(item) for item in items]
    if len(lines) <= INLINE_ITEMS and sum(map(len, lines)) <= INLINE_BYTES // 2:
        source: Object = {"items": items}
    else:
        source = {"itemsFrom": {"configMapKeyRef": _keep(api, batch, lines)}}
    made = api.create(retry_of(batch, source))
    name = made["metadata"]["name"]
    print(f"taskbatch.taskqueue.dev/{name} created with {len(indexes)} items")
    return 0


def failed_indexes(batch: Object) -> list[int]:
    """Return the indexes of the items that have failed.

    Raises:
        CommandFailed: it has not ended, nothing failed, or the status does not name them all.
    """
    from taskqueue.controller.batches import index_set  # not for a help text

    name, status = batch["metadata"]["name"], batch.get("status", {})
    if status.get("phase") not in _FINISHED:
        raise CommandFailed(f"TaskBatch {name} has not ended: wait, or cancel it")
    failed = status.get("failed", 0)
    if not failed:
        raise CommandFailed(f"no item of TaskBatch {name} has failed: there is nothing to retry")
    indexes = list(index_set.decode(status.get("failedItems", ""), status["total"]))
    if len(indexes) != failed:
        raise CommandFailed(
            f"{failed} items of TaskBatch {name} have failed, too many and too scattered for its "
            "status to name them all: create a TaskBatch of what is to be done again"
        )
    return indexes


def retry_of(batch: Object, source: Object) -> Object:
    """Return the TaskBatch that runs items of a finished one again.

    Args:
        batch: the finished one.
        source: the field of the spec that has the items.
    """
    metadata, spec = batch["metadata"], batch["spec"]
    kept = {key: value for key, value in spec.items() if key not in _NOT_RETRIED}
    return {
        "apiVersion": "taskqueue.dev/v1alpha1",
        "kind": "TaskBatch",
        "metadata": {
            "generateName": f"{metadata['name'][:200]}-retry-",
            "namespace": metadata["namespace"],
            "annotations": {RETRY_OF: metadata["name"]},
        },
        "spec": {**kept, **source},
    }


def _items(api: Api, batch: Object, indexes: list[int]) -> list[Object]:
    """Return the payloads of these items."""
    spec, name = batch["spec"], batch["metadata"]["name"]
    if "count" in spec:
        return [{"index": index} for index in indexes]
    items: list[Object] = spec.get("items", [])
    if "itemsFrom" in spec:
        source = spec["itemsFrom"]["configMapKeyRef"]
        (found,) = api.objects("configmaps", source["name"])
        text = found.get("data", {}).get(source["key"], "")
        items = [read_json(line) for line in map(str.strip, text.split("\n")) if line]
    if len(items) != batch["status"]["total"]:
        raise CommandFailed(
            f"TaskBatch {name} had {batch['status']['total']} items, there are {len(items)} now: "
            "create a TaskBatch of what is to be done again"
        )
    return [items[index] for index in indexes]


def _keep(api: Api, batch: Object, lines: list[str]) -> Object:
    """Create a ConfigMap of JSON lines and return a reference to it."""
    metadata = batch["metadata"]
    made = api.create(
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {
                "generateName": f"{metadata['name'][:200]}-failed-",
                "namespace": metadata["namespace"],
            },
            "data": {_KEY: "\n".join(lines)},
        }
    )
    return {"name": made["metadata"]["name"], "key": _KEY}
