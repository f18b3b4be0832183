"""The template of the Tasks of a TaskSchedule: a Task's fields without what is of one Task.

Rules that forbid a change are left out: another Task may be made of a template that was changed.
"""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import Field, GetJsonSchemaHandler
from pydantic_core import CoreSchema

from taskqueue.api.common import ApiModel
from taskqueue.api.task import TaskResourceSpec
from taskqueue.limits import LABEL_LENGTH

_RULES = "x-kubernetes-validations"
#: Whoever creates a Task does not want it suspended or cancelled, and its time is the schedule's.
_OF_ONE_TASK = ("suspend", "cancel", "startAfter")
_LABELS_MAX_ITEMS = 32
_ANNOTATION_MAX_LENGTH = 4096

LabelValue = Annotated[str, Field(max_length=LABEL_LENGTH)]
AnnotationValue = Annotated[str, Field(max_length=_ANNOTATION_MAX_LENGTH)]


class TaskTemplateMetadata(ApiModel):
    """Labels and annotations of the Tasks."""

    labels: dict[str, LabelValue] = Field(
        default_factory=dict,
        max_length=_LABELS_MAX_ITEMS,
        description=f"Labels of each Task, at most {_LABELS_MAX_ITEMS}. Empty when absent.",
    )
    annotations: dict[str, AnnotationValue] = Field(
        default_factory=dict,
        max_length=_LABELS_MAX_ITEMS,
        description=f"Annotations of each Task, at most {_LABELS_MAX_ITEMS}. Empty when absent.",
    )


class TaskTemplateSpec(TaskResourceSpec):
    """The spec of the Tasks."""

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """Return the schema of a Task's spec without what concerns one Task, and its changes."""
        reference = handler(core_schema)
        schema = handler.resolve_ref_schema(reference)
        _drop_changes(schema)
        fields = schema["properties"]
        for name in _OF_ONE_TASK:
            del fields[name]
        for name, field in fields.items():
            fields[name] = field = dict(field)
            _drop_changes(field)
            field.pop("default", None)  # a Task has none that is stored
            field["description"] = _of_a_template(field["description"])
        return reference


class TaskTemplate(ApiModel):
    """What each Task is made of."""

    metadata: TaskTemplateMetadata = Field(
        default_factory=TaskTemplateMetadata,
        description="Labels and annotations of each Task. The operator adds its own.",
    )
    spec: TaskTemplateSpec = Field(
        description=(
            "The spec of each Task, without suspend, cancel and startAfter. A change is for the "
            "Tasks created from then on."
        )
    )


def _drop_changes(schema: dict[str, Any]) -> None:
    rules = [one for one in schema.pop(_RULES, ()) if "oldSelf" not in one["rule"]]
    if rules:
        schema[_RULES] = rules


def _of_a_template(description: str) -> str:
    """Return a description without what it says of changes."""
    text = re.sub(r" Immutable\.| No effect once the Task is dispatched\.", "", description)
    return text.replace(" The list is immutable, the ConfigMaps are not.", "")
