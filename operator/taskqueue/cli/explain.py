"""Why a Task is where it is, and what to do about it: pure, from the objects alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from taskqueue.cli.selection import FINISHED, seconds_of
from taskqueue.cli.text_table import span

Object = Mapping[str, Any]


def explain(task: Object, queue: Object | None, now: float) -> list[str]:
    """Return sentences: where the Task is, what holds it, what to do.

    Args:
        task: the object.
        queue: its TaskQueue; None: there is none.
        now: in seconds since the epoch.
    """
    status = task.get("status") or {}
    phase = status.get("phase", "Pending")
    name, at = task["metadata"]["name"], task["metadata"]["namespace"]
    if phase in FINISHED:
        return [_end(name, status), *_advice_after(task)]
    if phase == "Running":
        return _running(name, status, now)
    lines = [f"Task {at}/{name} is {phase}{_because(status)}."]
    if queue is None:
        wanted = task["spec"]["queue"]
        lines.append(f"There is no TaskQueue {at}/{wanted}: create it, and the Task goes on.")
        return lines
    if phase in ("Scheduled", "Retrying") and (due := status.get("nextAttemptTime")):
        left = seconds_of(due) - now
        lines.append(f"It is due {f'in {span(left)}' if left > 0 else 'now'}, at {due}.")
        if phase == "Retrying":
            lines += _last_attempt(status)
    elif phase == "Suspended":
        lines.append(
            f"It goes on when spec.suspend is false: kubectl patch tqt {name} -n {at} --type=merge "
            """-p '{"spec":{"suspend":false}}'."""
        )
    return lines + _queue_lines(queue, waits=phase in ("Pending", "Retrying"))


def _because(status: Object) -> str:
    return "".join(f", {status[field]}" for field in ("reason", "message") if status.get(field))


def _end(name: str, status: Object) -> str:
    attempts = status.get("attempts", 0)
    counted = "1 attempt" if attempts == 1 else f"{attempts} attempts"
    when = f" at {status['completionTime']}" if "completionTime" in status else ""
    return f"Task {name} has ended: {status['phase']}{when} after {counted}{_because(status)}."


def _advice_after(task: Object) -> list[str]:
    status, name, at = task["status"], task["metadata"]["name"], task["metadata"]["namespace"]
    if status["phase"] == "Succeeded":
        return []
    lines = _last_attempt(status)
    if status.get("attempts"):
        lines.append(f"What its worker said: kubectl taskqueue logs {name} -n {at}.")
    return [*lines, f"To run its work again: kubectl taskqueue retry {name} -n {at}."]


def _last_attempt(status: Object) -> list[str]:
    history = status.get("history") or []
    if not history:
        return []
    last = history[-1]
    return [
        f"Attempt {last['attempt']} {last['outcome'].lower()}"
        f"{' on ' + last['worker'] if last.get('worker') else ''}{_because(last)}."
    ]


def _running(name: str, status: Object, now: float) -> list[str]:
    worker = status.get("worker") or "a worker"
    lines = [f"Task {name} runs on {worker}, attempt {status.get('attempts', 0)}."]
    if "startTime" in status:
        lines.append(f"Its first attempt began {span(now - seconds_of(status['startTime']))} ago.")
    progress = status.get("progress")
    if progress:
        percent = f"{progress['percent']}% " if "percent" in progress else ""
        lines.append(f"Progress: {percent}{progress.get('message', '')}".rstrip() + ".")
    return lines


def _queue_lines(queue: Object, *, waits: bool) -> list[str]:
    """Return what the queue has to do with it, if the Task could run otherwise."""
    spec, status = queue["spec"], queue.get("status") or {}
    name = queue["metadata"]["name"]
    at = queue["metadata"]["namespace"]
    lines = []
    if spec.get("stopPolicy", "None") != "None":
        lines.append(
            f"The queue is held (stopPolicy {spec['stopPolicy']}): "
            f"kubectl taskqueue resume {name} -n {at}."
        )
    lines += [
        f"The queue's condition {one['type']} is {one['status']}: {one.get('message', '')}"
        for one in status.get("conditions", [])
        if (one["type"], one["status"])
        in {
            *(("Ready", "False"), ("BrokerConnected", "False"), ("WorkersAvailable", "False")),
            *(("ScalingActive", "False"), ("Stalled", "True"), ("DispatchLimited", "True")),
        }
    ]
    if waits:
        lines.append(
            f"Queue {name}: {status.get('pending', 0)} wait in the operator, "
            f"{status.get('ready', 0)} for a worker, {status.get('running', 0)} run on "
            f"{status.get('replicas', 0)} workers"
            + (f" ({status['scaling']})." if status.get("scaling") else ".")
        )
    return lines
