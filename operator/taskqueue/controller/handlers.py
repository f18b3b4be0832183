"""What kopf tells the operator about TaskQueues; the engine does the rest."""

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

    # Events rather than on.delete: a handler of deletions would put kopf's finalizer on every
    # TaskQueue. One that is on its way out is shown by events alone.
    @kopf.on.event(*resource, registry=registry)
    async def seen(*, event: kopf.RawEvent, body: kopf.Body, **_: Any) -> None:
        if event["type"] == "DELETED":
            gone = body.metadata
            engine.drop_queue((gone.namespace or "", gone.name or ""), gone.uid or "")
        elif "deletionTimestamp" in body.metadata:
            _put(engine, body)


def _put(engine: Engine, body: kopf.Body) -> None:
    try:
        engine.put_queue(_plain(body))
    except ValueError as problem:
        raise kopf.PermanentError(f"TaskQueue cannot be read: {problem}") from problem


def _plain(body: kopf.Body) -> dict[str, Any]:
    return {key: body[key] for key in ("metadata", "spec", "status") if key in body}
