"""Handlers for tests, mounted into worker pods; see lab.py."""

import os
import time
from typing import Any

from taskqueue import Context, Fail, Retry, task

Payload = dict[str, Any]


@task(default=True)
def echo(payload: Payload, ctx: Context) -> Payload:
    """Return the payload."""
    ctx.logger.info("echo.ran")
    return payload


@task
def nap(payload: Payload, ctx: Context) -> Payload:
    """Sleep for ``seconds``."""
    ctx.logger.info("nap.began")
    time.sleep(payload["seconds"])
    return {"pod": os.environ["POD_NAME"]}


@task
def flaky(payload: Payload, ctx: Context) -> Payload:
    """Fail ``failures`` times, then succeed."""
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
def die(payload: Payload) -> None:
    """End the whole worker, as a killed one ends."""
    os._exit(137)
