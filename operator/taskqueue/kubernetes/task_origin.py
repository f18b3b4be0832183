"""Reads who submitted and cancelled a Task from the metadata of its object.

An annotation says so where a program has set one on behalf of a person. Otherwise it is the field
manager: the name of the program that wrote, such as ``kubectl-create`` or ``argocd-controller``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from taskqueue.api.common import GROUP
from taskqueue.model.origin import TaskOrigin

#: Set by programs that write for somebody else.
SUBMITTED_BY = f"{GROUP}/submitted-by"
CANCELLED_BY = f"{GROUP}/cancelled-by"
#: The name of the Task that is run again: an annotation, and a label where it fits into one.
RETRY_OF = f"{GROUP}/retry-of"


#: Characters of a name: annotations have room for much more than an event of an end.
_LENGTH = 256


def origin_of(metadata: Mapping[str, Any] | None, *, cancelled: bool) -> TaskOrigin:
    """Return what an object's metadata says; ``cancelled``: its spec.cancel is true."""
    if not metadata:
        return TaskOrigin()
    labels, annotations = metadata.get("labels") or {}, metadata.get("annotations") or {}
    # The operator writes to the status only.
    writes = [one for one in metadata.get("managedFields") or () if not one.get("subresource")]
    writes.sort(key=lambda one: one.get("time") or "")
    submitted = writes[0].get("manager", "") if writes else ""
    cancelling = [one for one in writes if _has_cancel(one)] if cancelled else []
    return TaskOrigin(
        labels=labels,
        submitted_by=(annotations.get(SUBMITTED_BY) or submitted)[:_LENGTH],
        cancelled_by=(annotations.get(CANCELLED_BY) or _last_manager(cancelling))[:_LENGTH]
        if cancelled
        else "",
        retry_of=(annotations.get(RETRY_OF) or labels.get(RETRY_OF, ""))[:_LENGTH],
    )


def _has_cancel(write: Mapping[str, Any]) -> bool:
    fields = write.get("fieldsV1") or {}
    return "f:cancel" in (fields.get("f:spec") or {})


def _last_manager(writes: list[Mapping[str, Any]]) -> str:
    return str(writes[-1].get("manager", "")) if writes else ""
