"""Our side: one handler that does nothing, for each place where a handler can run."""

from __future__ import annotations

from typing import Any

from taskqueue import task


@task("noop")
def noop(payload: dict[str, Any]) -> None:
    """Run where sync handlers run by default."""


@task("noop-thread", thread=True)
def noop_thread(payload: dict[str, Any]) -> None:
    """Run in a thread of the worker."""


@task("noop-async")
async def noop_async(payload: dict[str, Any]) -> None:
    """Run on the loop of async handlers."""
