"""The kopf handlers of TaskQueues; they pass every change on to the engine."""

from __future__ import annotations

from typing import Any

import kopf

from taskqueue.api.common import GROUP, TASKQUEUE_PLURAL, VERSION
from taskqueue.controller.engine import Engine


def register(registry: kopf.OperatorRegistry, engine: Engine) -> None:
    """Register the handlers of TaskQueues."""
    resource = (GROUP, VERSION, TASKQUEUE_PLURAL)

    @kopf.on.resume(*resource, registry=registry)
    @kopf.on.create(*resource, registry=registry)
    @kopf.on.update(*resource, registry=registry)
    async def applied(*, body: kopf.Body, **_: Any) -> None:
        _put(engine, body)

    # on.event, not on.delete: a deletion handler would put kopf's finalizer on every TaskQueue.
    # Only events show a TaskQueue that is being deleted, and one that was restored or copied with
    # kopf's annotation, or has that of another installation: it says that it is known already.
    @kopf.on.event(*resource, registry=registry)
    async def changed(*, event: kopf.RawEvent, body: kopf.Body, **_: Any) -> None:
        metadata = body.metadata
        key, uid = (metadata.namespace or "", metadata.name or ""), metadata.uid or ""
        if event["type"] == "DELETED":
            engine.remove_queue(key, uid)
        elif "deletionTimestamp" in metadata or not engine.knows(_plain(body)):
            _put(engine, body)


def _put(engine: Engine, body: kopf.Body) -> None:
    try:
        engine.put_queue(_plain(body))
    except ValueError as problem:
        raise kopf.PermanentError(f"TaskQueue cannot be read: {problem}") from problem


def _plain(body: kopf.Body) -> dict[str, Any]:
    return {key: body[key] for key in ("metadata", "spec", "status") if key in body}
