"""The states a Task and a TaskQueue can be in, written as the operator writes them.

They are put into the schemas served under the tests' own group, where no operator writes. Status
and conditions are the operator's own: made by its code from the domain's values.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from taskqueue.controller.queues.conditions import conditions
from taskqueue.controller.queues.conditions.settings import ConditionSettings
from taskqueue.controller.tasks.missing_handlers import MissingHandlers
from taskqueue.kubernetes.task_codec import read_task, status_patch
from taskqueue.kubernetes.taskqueue_codec import queue_status_patch, read_queue
from taskqueue.model.queue import Condition, QueueStatus
from taskqueue.model.task import Phase, TaskState
from tests.conftest import Kubectl
from tests.e2e.api import Api as ApiServer
from tests.integration.admission import QUEUES, TASKS, Api, Body, queue, task

Seen = Mapping[str, Body]
NOW = 1_767_323_045.25


@dataclass(frozen=True)
class State:
    """A state, and what it is for kstatus and for Argo CD.

    ``status`` is what the operator writes, None: nothing yet. ``spec`` is added to the manifest
    before it is written, ``changed`` after.
    """

    name: str
    kstatus: str
    argo: str
    status: TaskState | tuple[Condition, ...] | None = None
    spec: Mapping[str, Any] | None = None
    changed: Mapping[str, Any] | None = None


def _task(
    name: str,
    kstatus: str,
    argo: str,
    phase: Phase,
    reason: str = "",
    *,
    spec: Mapping[str, Any] | None = None,
    changed: Mapping[str, Any] | None = None,
    **more: Any,
) -> State:
    """Return the state of a Task of this phase; what more its status says is in ``more``."""
    message = f"why it is {phase}" if reason else ""
    status = TaskState(phase=phase, reason=reason, message=message, **more)
    return State(name, kstatus, argo, status, spec, changed)


_WAITS = ("InProgress", "Progressing")
_SUSPENDED = ("InProgress", "Suspended")
_DONE = ("Current", "Healthy")
_LOST = ("Failed", "Degraded")
_RAN: dict[str, Any] = {"attempts": 2, "start_time": NOW - 9, "worker": "w-1"}
_ENDED: dict[str, Any] = {**_RAN, "completion_time": NOW}

TASK_STATES = (
    State("new", *_WAITS),
    _task("pending", *_WAITS, Phase.PENDING, attempts=1, epoch=1),
    _task("queue-not-found", *_WAITS, Phase.BLOCKED, "QueueNotFound"),
    _task("unknown-handler", *_WAITS, Phase.BLOCKED, "UnknownHandler"),
    _task("dependency-not-found", *_WAITS, Phase.BLOCKED, "DependencyNotFound"),
    _task("waiting-for-dependencies", *_WAITS, Phase.BLOCKED, "WaitingForDependencies"),
    _task("payload-unresolved", *_WAITS, Phase.BLOCKED, "PayloadUnresolved"),
    _task("concurrency-limit", *_WAITS, Phase.BLOCKED, "ConcurrencyLimit"),
    _task("start-after", *_WAITS, Phase.SCHEDULED, "StartAfter", next_attempt_time=NOW + 60),
    _task("running", *_WAITS, Phase.RUNNING, **_RAN),
    _task("keyed", *_WAITS, Phase.RUNNING, **_RAN, concurrency_key="customer 1"),
    _task("resumed", *_WAITS, Phase.RUNNING, **_RAN, epoch=1, resumed_time=NOW - 5),
    _task("retrying", *_WAITS, Phase.RETRYING, "ValueError", **_RAN, next_attempt_time=NOW + 4),
    _task("changed", *_WAITS, Phase.RUNNING, **_RAN, changed={"priority": 7}),
    _task("suspended", *_SUSPENDED, Phase.SUSPENDED, "Suspended", epoch=1, spec={"suspend": True}),
    _task(
        "just-resumed",
        *_WAITS,
        Phase.SUSPENDED,
        "Suspended",
        epoch=1,
        spec={"suspend": True},
        changed={"suspend": False},
    ),
    _task("succeeded", *_DONE, Phase.SUCCEEDED, **_ENDED, result={"width": 1}),
    _task("resumed-succeeded", *_DONE, Phase.SUCCEEDED, **_ENDED, resumed_time=NOW - 5),
    _task("retries-exhausted", *_LOST, Phase.FAILED, "RetriesExhausted", **_ENDED),
    _task("non-retryable", *_LOST, Phase.FAILED, "NonRetryable", **_ENDED),
    _task("worker-lost", *_LOST, Phase.FAILED, "WorkerLost", **_ENDED),
    _task("deadline-exceeded", *_LOST, Phase.FAILED, "DeadlineExceeded", **_ENDED),
    _task("dependency-failed", *_LOST, Phase.FAILED, "DependencyFailed", completion_time=NOW),
    _task("invalid", *_LOST, Phase.FAILED, "Invalid", completion_time=NOW),
    _task(
        "cancelled",
        *_LOST,
        Phase.CANCELLED,
        "Cancelled",
        completion_time=NOW,
        spec={"cancel": True},
    ),
)


_BROKER = Condition("BrokerConnected", True, "Connected")
_NO_BROKER = Condition("BrokerConnected", False, "BrokerUnavailable", "nobody answers")
_NO_SECRET = Condition("BrokerConnected", False, "SecretNotFound", "Secret x: create it")
_WORKERS = Condition("WorkersAvailable", True, "Available")
_REFUSED = Condition("WorkersAvailable", False, "InvalidTemplate", "fix spec.workers")
_SCALING = Condition("ScalingActive", True, "Backlog")

QUEUE_STATES = (
    State("queue-new", *_WAITS),
    State("queue-ready", *_DONE, (_BROKER, _WORKERS, _SCALING)),
    State("queue-held", *_DONE, (_BROKER, _WORKERS, _SCALING), {"stopPolicy": "Hold"}),
    State("queue-connecting", *_WAITS, (_NO_BROKER, _WORKERS, _SCALING)),
    State("queue-without-secret", *_LOST, (_NO_SECRET, _WORKERS, _SCALING)),
    State("queue-refused", *_LOST, (_BROKER, _REFUSED, _SCALING)),
    State(
        "queue-changed",
        *_WAITS,
        (_BROKER, _WORKERS, _SCALING),
        changed={"dispatch": {"maxPublished": 7}},
    ),
)

STATES = (*TASK_STATES, *QUEUE_STATES)


def put_into_states(kubectl: Kubectl, server: ApiServer, states: Iterable[State]) -> Seen:
    """Create an object for each state in a namespace for as long as this takes; return them."""
    namespace = f"test-{uuid.uuid4().hex[:10]}"
    kubectl.ok("create", "namespace", namespace)
    try:
        api = Api(kubectl, namespace, server)
        states = tuple(states)
        _ok(api.run("create", "-f", "-", body=_list(_manifest(state) for state in states)))
        created = _read(api)
        for state in states:
            _write(api, state, created[state.name])
        return _read(api)
    finally:
        kubectl.ok("delete", "namespace", namespace, "--wait=false")


def _read(api: Api) -> Seen:
    return {one["metadata"]["name"]: one for one in api.json("get", f"{TASKS},{QUEUES}")["items"]}


def _manifest(state: State) -> Body:
    made = task if state in TASK_STATES else queue
    return made(state.name, **(state.spec or {}))


def _write(api: Api, state: State, body: Body) -> None:
    what = f"{TASKS if body['kind'] == 'Task' else QUEUES}/{state.name}"
    if isinstance(state.status, TaskState):
        patch = json.loads(status_patch(read_task(body), state.status, now=NOW))
        _ok(api.json_patch(what, patch, subresource="status"))
    elif state.status is not None:
        _ok(api.patch(what, _queue_patch(body, state.status), subresource="status"))
    if state.changed is not None:
        _ok(api.patch(what, {"spec": dict(state.changed)}))


def _queue_patch(body: Body, parts: tuple[Condition, ...]) -> Body:
    config = read_queue(body)
    broker, workers, scaling = parts
    listed = conditions(
        config,
        broker=broker,
        credentials=Condition("CredentialsReady", True, "Shared"),
        credentials_missing=False,
        workers=workers,
        scaling=scaling,
        refused=not workers.status,
        missing=MissingHandlers(),
        dead_letter_count=0,
        many_finished=0,
        settings=ConditionSettings(operator_namespace="taskqueue-system"),
        misplaced_seconds=None,
    )
    status = QueueStatus(observed_generation=config.generation, conditions=listed, backlog=3)
    return queue_status_patch(config.key, status, {one.type: NOW for one in listed})


def _list(items: Iterable[Body]) -> Body:
    return {"apiVersion": "v1", "kind": "List", "items": list(items)}


def _ok(done: Any) -> None:
    assert done.returncode == 0, done.stderr
