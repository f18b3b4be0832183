"""Handlers for tests, mounted into worker pods; see harness.py.

Those that run many at once do so in threads, which cost least. What `counted` wraps leaves two
lines in the log of its worker for each run, whatever becomes of the run later: see `Harness.runs`.
"""

import asyncio
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from taskqueue import Context, Fail, Retry, task

Payload = dict[str, Any]


@contextmanager
def counted(ctx: Context) -> Iterator[None]:
    """Leave a trace of a run's beginning, and of its end."""
    run = uuid.uuid4().hex
    ctx.logger.info(f"run.began {run} {ctx.fence}")
    try:
        yield
    finally:
        ctx.logger.info(f"run.ended {run} {ctx.fence}")


@task(default=True)
def echo(payload: Payload, ctx: Context) -> Payload:
    """Return the payload."""
    ctx.logger.info("echo.ran")
    return payload


@task
def scheduled(payload: Payload, ctx: Context) -> Payload:
    """Return the time of the run of a schedule."""
    return {"at": str(ctx.scheduled_time)}


@task(thread=True)
def nap(payload: Payload, ctx: Context) -> Payload:
    """Sleep for ``seconds``, deaf to whatever is said meanwhile."""
    with counted(ctx):
        time.sleep(payload["seconds"])
    return {"pod": os.environ["POD_NAME"]}


@task(thread=True)
def watch(payload: Payload, ctx: Context) -> Payload:
    """Sleep for ``seconds``, but no longer than it is wanted."""
    with counted(ctx):
        end = time.monotonic() + payload["seconds"]
        while time.monotonic() < end and not ctx.cancelled:
            time.sleep(0.05)
    return {"pod": os.environ["POD_NAME"]}


@task
def watch_process(payload: Payload, ctx: Context) -> Payload:
    """Do as ``watch`` does, where sync handlers are run that say nothing else."""
    return watch(payload, ctx)


@task
async def watch_async(payload: Payload, ctx: Context) -> Payload:
    """Sleep for ``seconds``; asyncio ends it when it is not wanted any more."""
    with counted(ctx):
        await asyncio.sleep(payload["seconds"])
    return {"pod": os.environ["POD_NAME"]}


@task(thread=True)
def tell_fence(payload: Payload, ctx: Context) -> Payload:
    """Sleep for ``seconds``; tell when, by this node's clock, and with which fence."""
    with counted(ctx):
        began = time.time()
        time.sleep(payload["seconds"])
        return {"began": began, "ended": time.time(), "fence": ctx.fence}


@task
def sized(payload: Payload) -> Payload:
    """Return an object of ``bytes`` bytes of JSON."""
    return {"text": "x" * (payload["bytes"] - len('{"text":""}'))}


@task(thread=True)
def flaky(payload: Payload, ctx: Context) -> Payload:
    """Fail ``failures`` times, then succeed."""
    with counted(ctx):
        if ctx.attempt <= payload["failures"]:
            raise ConnectionError(f"the network is away at attempt {ctx.attempt}")
    return {"attempt": ctx.attempt}


@task
def give_up(payload: Payload) -> None:
    """Fail for good."""
    raise Fail("there is no such page", type="NotFound")


@task
def rate_limited(payload: Payload, ctx: Context) -> None:
    """Ask for a retry after ``after`` seconds, once."""
    if ctx.attempt == 1:
        raise Retry("the rate limit is reached", after=payload["after"])


@task
async def die(payload: Payload) -> None:
    """End the whole worker, where async handlers run, as a killed one ends."""
    os._exit(137)


@task
def steps(payload: Payload, ctx: Context) -> Payload:
    """Do so many steps; continue after the last checkpoint, which says what was begun, too."""
    saved = ctx.last_checkpoint or {"done": 0, "begun": []}
    for step in range(saved["done"], payload["steps"]):
        saved["begun"].append(step)
        ctx.checkpoint(saved)
        time.sleep(payload["seconds"])
        saved["done"] = step + 1
        ctx.checkpoint(saved)
    return {"begun": saved["begun"]}


@task
def every_second(payload: Payload, ctx: Context) -> Payload:
    """Fail for every second item of a TaskBatch."""
    if payload["index"] % 2:
        raise ValueError("odd")
    return {"index": ctx.index}


@task
def knows_its_index(payload: Payload, ctx: Context) -> None:
    """Fail unless the payload of an item has its index."""
    if payload["index"] != ctx.index:
        raise ValueError(f"{ctx.index} has the payload {payload}")
