"""Whether everything became what it must be: the demo's exit status.

Nothing here talks to the cluster; a problem is a sentence that names the object.
"""

import base64
import binascii
import hashlib
from collections.abc import Iterator, Sequence
from datetime import timedelta
from io import BytesIO

from PIL import Image

from examples.thumbnails.thumbnails import UnreadablePhotograph
from examples.thumbnails.watching import Snapshot
from examples.thumbnails.work import MAX_ATTEMPTS, MAX_WORKERS, Job
from taskqueue.api.task import TaskResource
from taskqueue.api.task_status import TERMINAL_PHASES

#: What the broken file's Task must end with.
BROKEN_REASON = "RetriesExhausted"

#: The wait between its attempts is 3 s by taskqueue.yaml; the times are rounded.
_SHORTEST_WAIT = timedelta(seconds=2.9)


def finished(jobs: Sequence[Job], snapshot: Snapshot) -> bool:
    """Return whether there is nothing left to wait for, whatever the verdict will be."""
    if snapshot.queue is None or snapshot.workers or max(snapshot.pool_sizes) == 0:
        return False
    status = snapshot.queue.status
    if status.replicas != 0 or status.desired_replicas != 0 or status.backlog != 0:
        return False
    tasks = [snapshot.tasks.get(job.name) for job in jobs]
    return all(task is not None and task.status.phase in TERMINAL_PHASES for task in tasks)


def problems(jobs: Sequence[Job], snapshot: Snapshot) -> list[str]:
    """Return what is not as it must be; empty when all is well."""
    found: list[str] = []
    for job in jobs:
        task = snapshot.tasks.get(job.name)
        if task is None:
            found.append(f"Task {job.name} is not there")
        else:
            judge = _broken_problems if job.broken else _good_problems
            found += [f"Task {job.name}: {text}" for text in judge(job, task)]
    found += [
        f"Task {name} is none of the demo's"
        for name in snapshot.tasks.keys() - {job.name for job in jobs}
    ]
    return [*found, *_pool_problems(snapshot), *_queue_problems(jobs, snapshot)]


def jpeg(task: TaskResource) -> bytes:
    """Return the thumbnail in a Task's result.

    Raises:
        ValueError: there is none, or not the one that the result describes.
    """
    result = task.status.result
    if result is None:
        raise ValueError("it has no result")
    try:
        data = base64.b64decode(result["jpeg"], validate=True)
        promised = result["sha256"], (result["width"], result["height"])
    except (KeyError, TypeError, binascii.Error) as problem:
        raise ValueError(f"its result has no thumbnail ({problem!r})") from problem
    if hashlib.sha256(data).hexdigest() != promised[0]:
        raise ValueError("the thumbnail is not the one whose sha256 the result has")
    with Image.open(BytesIO(data)) as image:
        image.load()
        if image.format != "JPEG" or image.size != promised[1]:
            raise ValueError(f"the thumbnail is {image.format} {image.size}, not {promised[1]}")
    return data


def _good_problems(job: Job, task: TaskResource) -> Iterator[str]:
    status = task.status
    if status.phase != "Succeeded":
        yield f"{status.phase} {status.reason} {status.message}".rstrip()
        return
    if status.attempts != 1:
        yield f"{status.attempts} attempts, not 1"
    if not _holds(task, "Complete"):
        yield "its condition Complete is not True"
    try:
        jpeg(task)
    except (ValueError, OSError) as problem:
        yield str(problem)
        return
    result = status.result or {}
    if result.get("file") != job.file:
        yield f"its thumbnail is of {result.get('file')}, not of {job.file}"
    if max(result["width"], result["height"]) != job.variant.width:
        yield f"its thumbnail is not {job.variant.width} pixels wide or high"


def _broken_problems(job: Job, task: TaskResource) -> Iterator[str]:
    status = task.status
    if status.phase != "Failed" or status.reason != BROKEN_REASON:
        yield f"{status.phase} {status.reason}, not Failed {BROKEN_REASON}".replace(" ,", ",")
    if status.attempts != MAX_ATTEMPTS:
        yield f"{status.attempts} attempts, not {MAX_ATTEMPTS}"
    if not _holds(task, "Failed"):
        yield "its condition Failed is not True"
    if job.file not in status.message:
        yield f"its message does not name {job.file}: {status.message!r}"
    if status.result is not None:
        yield "it has a result"
    numbers = [each.attempt for each in status.history]
    if numbers != list(range(1, MAX_ATTEMPTS + 1)):
        yield f"its history has the attempts {numbers}"
    for each in status.history:
        if (each.outcome, each.reason) != ("Failed", UnreadablePhotograph.__name__):
            yield f"attempt {each.attempt} ended as {each.outcome} {each.reason}"
    for before, after in zip(status.history, status.history[1:], strict=False):
        if before.finish_time is None or after.start_time is None:
            yield f"attempt {after.attempt} has no times"
        elif after.start_time - before.finish_time < _SHORTEST_WAIT:
            yield f"attempt {after.attempt} began without a wait"


def _pool_problems(snapshot: Snapshot) -> Iterator[str]:
    sizes = snapshot.pool_sizes
    if sizes[0] != 0:
        yield f"the pool began with {sizes[0]} workers, not with 0"
    if not 0 < max(sizes) <= MAX_WORKERS:
        yield f"the pool had up to {max(sizes)} workers, not 1 to {MAX_WORKERS}"
    if sizes[-1] != 0:
        yield f"the pool still has {sizes[-1]} workers"


def _queue_problems(jobs: Sequence[Job], snapshot: Snapshot) -> Iterator[str]:
    if snapshot.queue is None:
        yield "the TaskQueue is not there"
        return
    status = snapshot.queue.status
    for name, value in (
        ("replicas", status.replicas),
        ("desiredReplicas", status.desired_replicas),
        ("backlog", status.backlog),
    ):
        if value != 0:
            yield f"TaskQueue: status.{name} is {value}, not 0"
    totals = status.totals
    broken = sum(job.broken for job in jobs)
    if (totals.succeeded, totals.failed, totals.cancelled) != (len(jobs) - broken, broken, 0):
        yield (
            f"TaskQueue: status.totals are {totals.succeeded} succeeded, {totals.failed} failed, "
            f"{totals.cancelled} cancelled, not {len(jobs) - broken}, {broken} and 0"
        )
    if not any(each.type == "Ready" and each.status == "True" for each in status.conditions):
        yield "TaskQueue: its condition Ready is not True"


def _holds(task: TaskResource, condition: str) -> bool:
    return any(each.type == condition and each.status == "True" for each in task.status.conditions)
