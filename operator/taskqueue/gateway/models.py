"""What requests and answers have that is no object of the API server; those are in `taskqueue.api`.

Requests may have no other fields than these.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from taskqueue.api.common import DNS_SUBDOMAIN_PATTERN
from taskqueue.api.task import TaskResource, TaskResourceSpec
from taskqueue.api.taskqueue import TaskQueueResource
from taskqueue.api.taskqueue_status import TaskQueueResourceStatus
from taskqueue.api.taskschedule import TaskScheduleResource
from taskqueue.limits import HANDLER_NAME_LENGTH, OBJECT_NAME_LENGTH, SHORT_STRING_BYTES

_NAME_LENGTH = OBJECT_NAME_LENGTH
_PREFIX_LENGTH = 200
_LABELS = 64


class GatewayModel(BaseModel):
    """The base: camelCase names, and no others."""

    model_config = ConfigDict(
        frozen=True, alias_generator=to_camel, validate_by_name=False, extra="forbid"
    )


Texts = Annotated[dict[str, str], Field(max_length=_LABELS)]


class NewTaskMetadata(GatewayModel):
    """What a caller may say of a new Task's metadata."""

    name: (
        Annotated[str, Field(min_length=1, max_length=_NAME_LENGTH, pattern=DNS_SUBDOMAIN_PATTERN)]
        | None
    ) = Field(None, description="Name of the Task. When absent, it is generated.")
    generate_name: (
        Annotated[
            str,
            Field(min_length=1, max_length=_PREFIX_LENGTH, pattern=r"^[a-z0-9]([-a-z0-9]*)$"),
        ]
        | None
    ) = Field(None, description="What a generated name begins with. When absent, the queue's name.")
    labels: Texts = Field(default_factory=dict, description="Labels of the Task.")
    annotations: Texts = Field(default_factory=dict, description="Annotations of the Task.")


class NewTask(GatewayModel):
    """A Task to create: a manifest, as for kubectl. Only spec is required."""

    api_version: Literal["taskqueue.dev/v1alpha1"] = Field(
        "taskqueue.dev/v1alpha1", description="The version of the schema."
    )
    kind: Literal["Task"] = Field("Task", description="The kind of the object.")
    metadata: NewTaskMetadata = Field(
        default_factory=NewTaskMetadata, description="Names, labels and annotations."
    )
    spec: TaskResourceSpec = Field(description="The work, as in docs/reference/api.md.")


class NewMessage(GatewayModel):
    """A direct message: work without a Task."""

    handler: (
        Annotated[str, Field(min_length=1, max_length=HANDLER_NAME_LENGTH, pattern=r"^[!-~]+$")]
        | None
    ) = Field(None, description="Name of the handler. When absent, the workers' default handler.")
    payload: dict[str, Any] = Field(
        default_factory=dict, description="Input of the handler: a JSON object."
    )
    correlation_id: (
        Annotated[str, Field(min_length=1, max_length=SHORT_STRING_BYTES, pattern=r"^[ -~]+$")]
        | None
    ) = Field(None, description="Repeated in the completion event.")


class Sent(GatewayModel):
    """A message is in its queue."""

    queue: str = Field(description="Namespace and name of the TaskQueue.")


class _Page(GatewayModel):
    next_page: str | None = Field(
        None,
        alias="continue",
        description="Where the next page begins. Absent on the last one.",
    )


class TaskPage(_Page):
    """Some of the Tasks of a namespace. A page may be shorter than its limit, and empty."""

    items: list[TaskResource] = Field(description="The Tasks, as the API server has them.")


class TaskQueuePage(_Page):
    """Some of the TaskQueues of a namespace."""

    items: list[TaskQueueResource] = Field(description="The TaskQueues.")


class TaskSchedulePage(_Page):
    """Some of the TaskSchedules of a namespace."""

    items: list[TaskScheduleResource] = Field(description="The TaskSchedules.")


class ScalingView(GatewayModel):
    """Why a TaskQueue has as many workers as it has."""

    explanation: str = Field("", description="How desiredReplicas was computed: a sentence.")
    stop_policy: str = Field("None", description="spec.stopPolicy: None, Hold or HoldAndDrain.")
    scaling: dict[str, Any] = Field(default_factory=dict, description="spec.scaling.")
    status: TaskQueueResourceStatus = Field(
        default_factory=TaskQueueResourceStatus, description="The status it follows from."
    )


class HistoryEntry(GatewayModel):
    """A Task that has ended, whether its object still exists or not."""

    model_config = ConfigDict(extra="allow")

    uid: str = Field(description="Identity of the Task.")
    name: str = Field(description="Its name.")
    queue: str = Field(description="Its TaskQueue.")
    handler: str = Field(description="That was asked for.")
    phase: str = Field(description="Succeeded, Failed or Cancelled.")
    reason: str = Field(description="As in its status.")
    message: str = Field(description="As in its status.")
    completed: datetime = Field(description="When it ended.")


class HistoryPageView(_Page):
    """Some of the Tasks that have ended; the last that ended first."""

    items: list[HistoryEntry] = Field(description="The Tasks.")
