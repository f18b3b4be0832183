"""An API server in memory: the objects of `taskqueue dev`, with the rules of the CRDs.

An object is checked by the models that the CRDs are generated from, and fields they do not have are
refused. Of the CEL rules those about changes hold: the work of a Task never changes, cancel cannot
be undone, what has ended is frozen. An object that is stored is replaced, never changed.
"""

from __future__ import annotations

import random
import string
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from pydantic import ValidationError

from taskqueue.api.common import API_VERSION, TASK_PLURAL, TASKQUEUE_PLURAL, Resource
from taskqueue.api.task import TaskResource
from taskqueue.api.taskqueue import TaskQueueResource
from taskqueue.kubernetes.client import ApiError
from taskqueue.model.task import Phase
from taskqueue.timestamps import to_rfc3339

Object = dict[str, Any]

#: Where ConfigMaps are, the source of payloadFrom.
CONFIG_MAPS = "configmaps"

#: Kinds that are kept here: API version, kind, model.
_KINDS: Mapping[str, tuple[str, str, type[Resource] | None]] = {
    TASK_PLURAL: (API_VERSION, "Task", TaskResource),
    TASKQUEUE_PLURAL: (API_VERSION, "TaskQueue", TaskQueueResource),
    CONFIG_MAPS: ("v1", "ConfigMap", None),
}
PLURALS = {kind: plural for plural, (_, kind, _) in _KINDS.items()}

#: What of a Task is its work.
_WORK = ("queue", "handler", "payload", "payloadFrom")

#: A change: ADDED, MODIFIED or DELETED, the plural of the kind, the object.
Change = tuple[str, str, Object]


class MemoryApi:
    """The objects, by plural of their kind, namespace and name.

    Args:
        clock: wall time in seconds.

    Attributes:
        version: of the last change.
        listeners: called with each change, after it.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._objects: dict[tuple[str, str, str], Object] = {}
        self.version = 0
        self.listeners: list[Callable[[Change], object]] = []

    def get(self, plural: str, namespace: str, name: str) -> Object:
        """Return an object.

        Raises:
            ApiError: 404: there is none.
        """
        found = self._objects.get((plural, namespace, name))
        if found is None:
            raise ApiError(404, "NotFound", f'{plural} "{name}" not found')
        return found

    def objects(self, plural: str, namespace: str | None = None) -> list[Object]:
        """Return the objects of a kind, in one namespace or in all, by age."""
        return [
            one
            for (kind, place, _), one in self._objects.items()
            if kind == plural and namespace in (None, place)
        ]

    def dump(self) -> list[Object]:
        """Return all objects."""
        return list(self._objects.values())

    def restore(self, objects: Iterable[Object]) -> None:
        """Take objects that `dump` has returned in an earlier process."""
        for one in objects:
            metadata = {**one["metadata"], "resourceVersion": self._next_version()}
            self._store("ADDED", PLURALS[one["kind"]], {**one, "metadata": metadata})

    def create(self, plural: str, namespace: str, body: Object) -> Object:
        """Store a new object and return it.

        Raises:
            ApiError: 409: there is one of this name; 422: it is not valid.
        """
        version, kind, _ = _KINDS[plural]
        given = body.get("metadata") or {}
        name = given.get("name") or _generated(str(given.get("generateName") or ""))
        if not name:
            raise ApiError(422, "Invalid", f"{kind}: metadata.name: give it a name")
        if (plural, namespace, name) in self._objects:
            raise ApiError(409, "AlreadyExists", f'{plural} "{name}" already exists')
        kept = {
            key: given[key] for key in ("labels", "annotations", "generateName") if key in given
        }
        made: Object = {
            "apiVersion": version,
            "kind": kind,
            "metadata": {
                "name": name,
                "namespace": namespace,
                **kept,
                "uid": str(uuid.uuid4()),
                "generation": 1,
                "resourceVersion": self._next_version(),
                "creationTimestamp": to_rfc3339(self._clock(), "seconds"),
            },
            **{key: body[key] for key in ("spec", "data") if key in body},
        }
        check(plural, {**body, "metadata": made["metadata"]})
        if plural == TASK_PLURAL:
            made["status"] = {"phase": Phase.PENDING.value, "observedGeneration": -1}
        return self._store("ADDED", plural, made)

    def merge(self, plural: str, namespace: str, name: str, change: Object) -> Object:
        """Apply a JSON merge patch to an object's spec and metadata, and return it.

        Raises:
            ApiError: 404: there is none; 409: it is another object; 422: the change is refused.
        """
        before = self.get(plural, namespace, name)
        uid = (change.get("metadata") or {}).get("uid")
        if uid not in (None, before["metadata"]["uid"]):
            raise ApiError(409, "Conflict", f'{plural} "{name}" is another object: its uid differs')
        after = _merged(before, {key: change[key] for key in ("spec", "data") if key in change})
        for key in ("labels", "annotations"):
            if key in (change.get("metadata") or {}):
                only = {"metadata": {key: change["metadata"][key]}}
                after = _merged(after, only)
        check(plural, after)
        if plural == TASK_PLURAL:
            _check_change(before, after)
        changed = after.get("spec") != before.get("spec")
        return self._replace(plural, after, generations=int(changed))

    def write_status(self, namespace: str, name: str, patch: Iterable[Object]) -> Object:
        """Apply the JSON patch by which the operator writes a Task's status.

        Raises:
            ApiError: 404: there is no such Task; 422: it is another one, or has ended.
        """
        before = self.get(TASK_PLURAL, namespace, name)
        status = before.get("status") or {}
        if Phase(status.get("phase", Phase.PENDING)).terminal:
            raise ApiError(422, "Invalid", f"Task {name} has ended: its status never changes")
        for one in patch:
            path = one["path"]
            if one["op"] == "test":
                if before["metadata"]["uid"] != one["value"]:
                    raise ApiError(422, "Invalid", f"Task {name} is another one: its uid differs")
            elif path == "/status":
                status = one["value"]
            else:
                status = {**status, path.removeprefix("/status/"): one["value"]}
        return self._replace(TASK_PLURAL, {**before, "status": status})

    def delete(self, plural: str, namespace: str, name: str) -> Object:
        """Remove an object and return it.

        Raises:
            ApiError: 404: there is none.
        """
        gone = self.get(plural, namespace, name)
        del self._objects[plural, namespace, name]
        self._announce("DELETED", plural, gone)
        return gone

    def _replace(self, plural: str, after: Object, *, generations: int = 0) -> Object:
        metadata = {
            **after["metadata"],
            "generation": after["metadata"]["generation"] + generations,
            "resourceVersion": self._next_version(),
        }
        return self._store("MODIFIED", plural, {**after, "metadata": metadata})

    def _store(self, event: str, plural: str, one: Object) -> Object:
        metadata = one["metadata"]
        self._objects[plural, metadata["namespace"], metadata["name"]] = one
        self._announce(event, plural, one)
        return one

    def _announce(self, event: str, plural: str, one: Object) -> None:
        for listener in tuple(self.listeners):
            listener((event, plural, one))

    def _next_version(self) -> str:
        self.version += 1
        return str(self.version)


def check(plural: str, body: Object) -> None:
    """Refuse an object that the API server would refuse, or whose fields it does not know.

    Raises:
        ApiError: 422: it is not valid; the text names the field.
    """
    _, kind, model = _KINDS[plural]
    name = (body.get("metadata") or {}).get("name", "")
    if model is None:
        return
    try:
        model.model_fields["spec"].annotation.model_validate(  # type: ignore[union-attr]
            body.get("spec") or {}, extra="forbid", by_alias=True, by_name=False
        )
    except ValidationError as error:
        found = "; ".join(
            f"spec.{'.'.join(map(str, one['loc']))}: {one['msg']}"
            for one in error.errors(include_url=False, include_context=False)
        )
        raise ApiError(422, "Invalid", f'{kind} "{name}" is invalid: {found}') from None
    if name in (body.get("spec") or {}).get("dependsOn", ()):
        raise ApiError(
            422,
            "Invalid",
            f'Task "{name}" is invalid: the Task depends on itself: remove its own name from '
            "spec.dependsOn",
        )


def _check_change(before: Object, after: Object) -> None:
    """Refuse what the CEL rules of a Task refuse."""
    old, new, name = before["spec"], after["spec"], before["metadata"]["name"]
    ended = Phase((before.get("status") or {}).get("phase", Phase.PENDING)).terminal
    changed = [field for field in _WORK if old.get(field) != new.get(field)]
    problems = [f"{field} is immutable: create a new Task" for field in changed]
    if ended and old != new:
        problems.append("the spec of a finished Task is frozen: create a new Task to run it again")
    if old.get("cancel") and not new.get("cancel"):
        problems.append("cancel cannot be undone: create a new Task to run it again")
    if problems:
        text = "; ".join(problems)
        raise ApiError(422, "Invalid", f'Task "{name}" is invalid: spec: {text}')


def _merged(target: Any, change: Any) -> Any:
    """Return what RFC 7396 makes of both."""
    if not isinstance(change, dict):
        return change
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in change.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = _merged(result.get(key), value)
    return result


def _generated(prefix: str) -> str:
    letters = random.choices(string.ascii_lowercase + string.digits, k=5)  # noqa: S311
    return prefix + "".join(letters) if prefix else ""
