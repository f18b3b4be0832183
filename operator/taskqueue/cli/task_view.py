"""Tasks as people see them: a table of many, all about one. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from taskqueue.cli.selection import seconds_of
from taskqueue.cli.text_table import span, table

#: Characters of a payload or result that `described` shows.
_JSON_LENGTH = 2000


def task_table(
    tasks: Sequence[Mapping[str, Any]], now: float, *, wide: bool, with_namespace: bool
) -> list[str]:
    """Return the lines of a table of Tasks; ``now`` in seconds since the epoch."""
    header = ["NAME", "QUEUE", "HANDLER", "PHASE", "ATTEMPTS", "REASON", "DURATION", "AGE"]
    if with_namespace:
        header.insert(0, "NAMESPACE")
    if wide:
        header += ["WORKER", "MESSAGE"]
    rows = []
    for task in tasks:
        metadata, spec, status = task["metadata"], task["spec"], task.get("status") or {}
        row = [
            metadata["name"],
            spec["queue"],
            spec["handler"],
            status.get("phase", "Pending"),
            str(status.get("attempts", 0)),
            status.get("reason") or "-",
            _run_time(status, now),
            span(now - seconds_of(metadata["creationTimestamp"])),
        ]
        if with_namespace:
            row.insert(0, metadata["namespace"])
        if wide:
            row += [status.get("worker") or "-", status.get("message") or "-"]
        rows.append(row)
    return table(header, rows)


def described(task: Mapping[str, Any], now: float) -> list[str]:
    """Return what there is to say about one Task: what it is, how it is, its attempts."""
    metadata, spec, status = task["metadata"], task["spec"], task.get("status") or {}
    conditions = spec.get("dependencies", [])
    facts = {
        "Name": metadata["name"],
        "Namespace": metadata["namespace"],
        "Queue": spec["queue"],
        "Handler": spec["handler"],
        "Labels": ", ".join(f"{k}={v}" for k, v in metadata.get("labels", {}).items()),
        "Phase": status.get("phase", "Pending"),
        "Reason": status.get("reason", ""),
        "Message": status.get("message", ""),
        "Created": _ago(metadata["creationTimestamp"], now),
        "Started": _ago(status.get("startTime"), now),
        "Due": status.get("nextAttemptTime", ""),
        "Ended": _ago(status.get("completionTime"), now),
        "Worker": status.get("worker", ""),
        "Priority": str(spec.get("priority", 0)),
        "Key": spec.get("concurrencyKey", ""),
        "Depends on": ", ".join([*spec.get("dependsOn", []), *map(_dependency, conditions)]),
        "Progress": _progress(status.get("progress")),
        "Payload": _json(spec.get("payload")),
        "Checkpoint": _json(status.get("checkpoint")),
        "Result": _json(status.get("result")),
        "Stored": _json(status.get("resultRef")),
    }
    width = max(map(len, facts)) + 3
    lines = [f"{name + ':':{width}}{value}" for name, value in facts.items() if value]
    history = status.get("history", [])
    if history:
        rows = [_attempt(entry) for entry in history]
        header = ["ATTEMPT", "STARTED", "TOOK", "OUTCOME", "WORKER", "WHY"]
        lines += ["", "Attempts:", *(f"  {line}" for line in table(header, rows))]
    return lines


def _dependency(one: Mapping[str, Any]) -> str:
    return f"{one['name']} ({one.get('when', 'Succeeded')})"


def _attempt(entry: Mapping[str, Any]) -> list[str]:
    why = ": ".join(part for part in (entry.get("reason"), entry.get("message")) if part)
    took = "-"
    if "startTime" in entry and "finishTime" in entry:
        took = span(seconds_of(entry["finishTime"]) - seconds_of(entry["startTime"]))
    return [
        str(entry["attempt"]),
        entry.get("startTime", "-"),
        took,
        entry["outcome"],
        entry.get("worker") or "-",
        why or "-",
    ]


def _run_time(status: Mapping[str, Any], now: float) -> str:
    if "startTime" not in status:
        return "-"
    end = seconds_of(status["completionTime"]) if "completionTime" in status else now
    return span(end - seconds_of(status["startTime"]))


def _ago(at: str | None, now: float) -> str:
    return f"{at} ({span(now - seconds_of(at))} ago)" if at else ""


def _progress(progress: Mapping[str, Any] | None) -> str:
    if not progress:
        return ""
    percent = f"{progress['percent']}%" if "percent" in progress else ""
    return " ".join(part for part in (percent, progress.get("message", "")) if part)


def _json(value: object) -> str:
    if not value:
        return ""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _JSON_LENGTH else f"{text[:_JSON_LENGTH]}…"
