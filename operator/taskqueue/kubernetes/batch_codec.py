"""Converts TaskBatches between JSON and the values of the model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import orjson

from taskqueue.api.common import GROUP, VERSION
from taskqueue.api.task import TaskResourceSpec
from taskqueue.api.taskbatch import TaskBatchResource
from taskqueue.api.taskbatch_status import TaskBatchResourceStatus
from taskqueue.kubernetes.task_codec import read_overrides
from taskqueue.model.batch import Batch, BatchRecord, BatchState, ItemErrors
from taskqueue.model.task import PayloadSource, Phase, PolicyOverrides
from taskqueue.timestamps import to_rfc3339

BATCHES_PATH = f"/apis/{GROUP}/{VERSION}/taskbatches"

#: What an error's type, or an item's reason, must be to be the reason of a condition.
_REASON = re.compile(r"[A-Za-z][A-Za-z0-9]*")
_SUSPENDED = "Suspended"
#: Conditions that are True in a phase, as those of Tasks are.
_TRUE_IN: Mapping[Phase, tuple[str, ...]] = {
    Phase.SUSPENDED: (_SUSPENDED, "Reconciling"),
    Phase.SUCCEEDED: ("Finished", "Complete"),
    Phase.FAILED: ("Finished", "Failed", "Stalled"),
    Phase.CANCELLED: ("Finished", "Failed", "Stalled"),
}


def batch_path(namespace: str, name: str) -> str:
    """Return the path of a TaskBatch object."""
    return f"/apis/{GROUP}/{VERSION}/namespaces/{namespace}/taskbatches/{name}"


def read_batch(raw: Mapping[str, Any]) -> Batch:
    """Convert a TaskBatch object, without its items.

    Raises:
        pydantic.ValidationError: the object does not follow the schema of this operator's version.
    """
    spec = {name: value for name, value in raw["spec"].items() if name != "items"}
    resource = TaskBatchResource.model_validate({**raw, "spec": spec, "status": {}})
    wanted, metadata = resource.spec, resource.metadata
    source = None if wanted.items_from is None else wanted.items_from.config_map_key_ref
    return Batch(
        namespace=metadata.namespace,
        name=metadata.name,
        uid=metadata.uid,
        generation=metadata.generation,
        created=metadata.creation_timestamp.timestamp() if metadata.creation_timestamp else 0.0,
        queue=wanted.queue,
        handler=wanted.template.spec.handler,
        overrides=_overrides(wanted.queue, spec["template"]["spec"]),
        count=wanted.count,
        items_from=None if source is None else PayloadSource(source.name, source.key),
        parallelism=wanted.parallelism,
        max_failed=wanted.max_failed_items,
        priority=wanted.priority,
        suspend=wanted.suspend,
        cancel=wanted.cancel,
        active_deadline_seconds=wanted.active_deadline_seconds,
        ttl_seconds=wanted.ttl_seconds_after_finished,
        deleting=metadata.deletion_timestamp is not None,
    )


def read_inline(raw: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the items in a TaskBatch object."""
    return list(raw["spec"].get("items") or ())


def read_state(raw: Mapping[str, Any]) -> BatchState:
    """Return what the status of a TaskBatch object says.

    Raises:
        pydantic.ValidationError: the status does not follow the schema.
    """
    status = TaskBatchResourceStatus.model_validate(raw.get("status") or {})
    resumed = next(
        (one for one in status.conditions if one.type == _SUSPENDED and one.status == "False"), None
    )
    record = None
    if status.total is not None:
        found = raw["status"]
        record = BatchRecord(
            total=status.total,
            begun=status.begun,
            open=status.open_items,
            succeeded=status.succeeded,
            failures=status.failed,
            retried=status.retried,
            epoch=status.epoch,
            failed=status.failed_items if "failedItems" in found or not status.failed else None,
            failed_ranges=status.failed_indexes,
            failed_ranges_cut=status.failed_indexes_truncated,
            errors=tuple(
                ItemErrors(one.type, one.count, one.indexes, one.message) for one in status.errors
            ),
        )
    return BatchState(
        phase=Phase(status.phase),
        reason=status.reason,
        message=status.message,
        record=record,
        active=status.active,
        digest=status.items_digest,
        start_time=status.start_time.timestamp() if status.start_time else None,
        completion_time=status.completion_time.timestamp() if status.completion_time else None,
        resumed_time=None if resumed is None else resumed.last_transition_time.timestamp(),
        observed_generation=status.observed_generation,
    )


def status_patch(batch: Batch, state: BatchState, *, now: float) -> bytes:
    """Return the JSON patch that replaces the status of this very TaskBatch."""
    return orjson.dumps(
        [
            {"op": "test", "path": "/metadata/uid", "value": batch.uid},
            {"op": "add", "path": "/status", "value": status_body(batch, state, now=now)},
        ]
    )


def status_body(batch: Batch, state: BatchState, *, now: float) -> dict[str, Any]:
    """Return the status of a TaskBatch; what is empty is left out."""
    record = state.record
    body: dict[str, Any] = {
        "reason": state.reason,
        "message": state.message,
        "cancelled": state.cancelled,
        "active": state.active,
        "itemsDigest": state.digest,
    }
    if record is not None:
        body |= {
            "succeeded": record.succeeded,
            "failed": record.failures,
            "retried": record.retried,
            "percent": 100 * record.ended // record.total if record.total else 100,
            "failedIndexes": record.failed_ranges,
            "failedIndexesTruncated": record.failed_ranges_cut,
            "errors": [
                {
                    "type": one.type,
                    "count": one.count,
                    "indexes": list(one.indexes),
                    "message": one.message,
                }
                for one in record.errors
            ],
            "begun": record.begun,
            "openItems": record.open,
            "failedItems": record.failed,
            "epoch": record.epoch,
        }
    times = {"startTime": state.start_time, "completionTime": state.completion_time}
    body |= {name: to_rfc3339(at) for name, at in times.items() if at is not None}
    body = {name: value for name, value in body.items() if value}
    body |= {"observedGeneration": batch.generation, "phase": state.phase.value}
    if record is not None:
        body["total"] = record.total
    body["conditions"] = _conditions(batch, state, now=now)
    return body


def _conditions(batch: Batch, state: BatchState, *, now: float) -> list[dict[str, Any]]:
    conditions = [
        {
            "type": kind,
            "status": "True",
            "reason": state.reason if _REASON.fullmatch(state.reason) else state.phase.value,
            "message": state.message,
            "lastTransitionTime": to_rfc3339(
                batch.created if kind == "Reconciling" else state.completion_time or now
            ),
        }
        for kind in _TRUE_IN.get(state.phase, ("Reconciling",))
    ]
    if state.resumed_time is not None and state.phase is not Phase.SUSPENDED:
        conditions.append(
            {
                "type": _SUSPENDED,
                "status": "False",
                "reason": "Resumed",
                "message": "spec.suspend is false again",
                "lastTransitionTime": to_rfc3339(state.resumed_time),
            }
        )
    return conditions


def _overrides(queue: str, template: Mapping[str, Any]) -> PolicyOverrides:
    """Return what the template says."""
    return read_overrides(TaskResourceSpec.model_validate({**template, "queue": queue}))
