"""What a row of the table says: given these manifests, when this happens, then this follows.

A row names its Tasks by roles: ``it`` is the one the row is about. Where a row says a role, as in
``dependsOn`` or in braces in a message, the name of that Task is meant; see `Play` for the rest.

`Shows` is exact: whatever it does not say must not be there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Protocol

from tests.e2e.api import Body
from tests.e2e.harness import conditions, true_conditions

if TYPE_CHECKING:
    from tests.e2e.scenario_runner import Play

FINAL = ("Succeeded", "Failed", "Cancelled")

_ENDED_BADLY = {"Finished", "Failed", "Stalled"}
#: The conditions that are True in a phase; Reconciling in any other.
_TRUE = {
    "Succeeded": {"Finished", "Complete"},
    "Failed": _ENDED_BADLY,
    "Cancelled": _ENDED_BADLY,
    "Suspended": {"Suspended", "Reconciling"},
}


class _Any:
    """Whatever it is."""

    def __repr__(self) -> str:
        return "ANYTHING"


ANYTHING = _Any()


@dataclass(frozen=True)
class In:
    """So many seconds from when the manifest is applied, as a time of day."""

    seconds: float

    def timestamp(self) -> str:
        """Return it as the API has times."""
        at = datetime.now(UTC) + timedelta(seconds=self.seconds)
        return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


@dataclass(frozen=True, kw_only=True)
class Shows:
    """A Task's status, all of it but for times.

    Attributes:
        phase: status.phase.
        reason: status.reason.
        message: status.message; ``*`` stands for anything, ``{role}`` for the name of a Task.
        attempts: status.attempts.
        history: of each attempt that ended "number outcome reason".
        epoch: status.epoch.
        result: status.result, ANYTHING for one that is not known before; None: there is none.
        key: status.concurrencyKey.
        due: there is a nextAttemptTime; None: as the phase has it.
        resumed: the Task was suspended once and is not any more.
    """

    phase: str
    reason: str = ""
    message: str = ""
    attempts: int = 0
    history: tuple[str, ...] = ()
    epoch: int = 0
    result: Any = None
    key: str = ""
    due: bool | None = None
    resumed: bool = False

    def is_meant(self, task: Body, names: Mapping[str, str]) -> bool:
        """Tell whether this is the version of a Task to look at, or may be called a wrong one."""
        status = task["status"]
        if status["phase"] in FINAL:
            return True
        return (
            (status["phase"], status.get("reason")) == (self.phase, self.reason)
            and status["epoch"] == self.epoch
            and _is_like(status["message"], self.message.format_map(names))
        )

    def assert_shown_by(self, task: Body, names: Mapping[str, str]) -> None:
        """Fail with every difference to a Task's status."""
        status, final = task["status"], self.phase in FINAL
        told = [(one["attempt"], one["outcome"], one["reason"]) for one in status["history"]]
        due = self.phase in ("Scheduled", "Retrying") if self.due is None else self.due
        suspended = conditions(status).get("Suspended")
        shown: Body = {
            "phase": status["phase"],
            "reason": status["reason"],
            "attempts": status["attempts"],
            "history": tuple(" ".join(map(str, one)).strip() for one in told),
            "epoch": status["epoch"],
            "result": status.get("result"),
            "concurrencyKey": status.get("concurrencyKey", ""),
            "nextAttemptTime": "nextAttemptTime" in status,
            "startTime": "startTime" in status,
            "completionTime": "completionTime" in status,
            "resumed": suspended is not None and suspended["status"] == "False",
            "conditions": true_conditions(status),
        }
        expected: Body = {
            "phase": self.phase,
            "reason": self.reason,
            "attempts": self.attempts,
            "history": self.history,
            "epoch": self.epoch,
            "result": shown["result"] if self.result is ANYTHING else self.result,
            "concurrencyKey": self.key.format_map(names),
            "nextAttemptTime": due,
            "startTime": self.attempts > 0,
            "completionTime": final,
            "resumed": self.resumed,
            "conditions": _TRUE.get(self.phase, {"Reconciling"}),
        }
        if self.result is ANYTHING:
            assert shown["result"] is not None, "there is no result"
        if final:
            shown["observedGeneration"] = status["observedGeneration"]
            expected["observedGeneration"] = task["metadata"]["generation"]
        assert shown == expected
        pattern = self.message.format_map(names)
        assert _is_like(status["message"], pattern), (status["message"], pattern)


def _is_like(message: str, pattern: str) -> bool:
    regex = ".*".join(re.escape(part) for part in pattern.split("*"))
    return re.fullmatch(regex, message, re.DOTALL) is not None


def succeeded(**expected: Any) -> Shows:
    """A Task that succeeded, unless told otherwise at the first attempt, with any result."""
    defaults: Body = {"attempts": 1, "history": ("1 Succeeded",), "result": ANYTHING}
    return Shows(phase="Succeeded", **{**defaults, **expected})


def failed(reason: str, message: str, **expected: Any) -> Shows:
    """A Task that failed for good."""
    return Shows(phase="Failed", reason=reason, message=message, **expected)


def cancelled(**expected: Any) -> Shows:
    """A Task that was cancelled."""
    return Shows(phase="Cancelled", reason="Cancelled", message="spec.cancel is true", **expected)


def blocked(reason: str, message: str, **expected: Any) -> Shows:
    """A Task that waits for something outside itself."""
    return Shows(phase="Blocked", reason=reason, message=message, **expected)


def suspended(**expected: Any) -> Shows:
    """A Task that is suspended."""
    return Shows(phase="Suspended", reason="Suspended", message="spec.suspend is true", **expected)


def scheduled(**expected: Any) -> Shows:
    """A Task whose time has not come."""
    text = "spec.startAfter has not come"
    return Shows(phase="Scheduled", reason="StartAfter", message=text, **expected)


def running(attempts: int = 1, **expected: Any) -> Shows:
    """A Task with a worker."""
    return Shows(phase="Running", attempts=attempts, **expected)


def retrying(reason: str, message: str, **expected: Any) -> Shows:
    """A Task between two attempts, unless told otherwise the first two."""
    defaults: Body = {"attempts": 1, "history": (f"1 Failed {reason}",)}
    return Shows(phase="Retrying", reason=reason, message=message, **{**defaults, **expected})


def task(handler: str = "echo", payload: Body | None = None, **spec: Any) -> Body:
    """A Task's spec but for its queue, which is the row's."""
    return {"handler": handler, "payload": payload or {}, **spec}


def nap(seconds: float, handler: str = "nap", **spec: Any) -> Body:
    """A Task whose handler takes that long, deaf unless it is ``watch`` or ``watch_async``."""
    return task(handler, {"seconds": seconds}, **spec)


def flaky(failures: int, *, wait: float = 0.2, **spec: Any) -> Body:
    """A Task whose first attempts fail, with as many seconds between them."""
    retry = {"maxAttempts": failures + 1, "backoff": {"initialSeconds": wait}}
    retry |= spec.pop("retry", {})
    return task("flaky", {"failures": failures}, retry=retry, **spec)


@dataclass(frozen=True)
class Queue:
    """A TaskQueue of the row's own, as changes to the usual one."""

    changes: Mapping[str, Any] = field(default_factory=dict)


def workers(count: int = 1, slots: int = 4, *, grace: int = 6, **changes: Any) -> Queue:
    """A TaskQueue of the row's own with so many workers; 5 s of the grace are not for handlers."""
    scaling = {"minReplicas": count, "maxReplicas": count}
    template = {"spec": {"terminationGracePeriodSeconds": grace}}
    pool = {"concurrency": slots, "template": template}
    return Queue({"scaling": scaling, "workers": pool, **changes})


def no_workers(**changes: Any) -> Queue:
    """A TaskQueue of the row's own without workers: what is published stays at the broker."""
    return Queue({"workers": {"template": None}, **changes})


class Step(Protocol):
    """Something that happens, or must come to be seen, before the row goes on."""

    def __call__(self, play: Play, /) -> None:
        """Do it, or wait for it."""


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        title: what is tried.
        given: the Tasks by role, created in this order.
        when: what happens then, in this order.
        then: the final status of each Task told about; all others are left alone.
        also: what else must be true at the end.
        calm: played when no other row is any more: it looks at fractions of a second.
        on: the TaskQueue: one of `SHARED_QUEUES` by name, or one of the row's own. None: there is
            none yet.
    """

    title: str
    given: Mapping[str, Body] = field(default_factory=dict)
    when: tuple[Step, ...] = ()
    then: Mapping[str, Shows] = field(default_factory=dict)
    also: tuple[Step, ...] = ()
    calm: bool = False
    on: str | Queue | None = "q"


#: TaskQueues that rows share, by name: none of their rows takes all of their slots.
SHARED_QUEUES: Mapping[str, Queue] = {
    # The usual one. Two workers, so that what must not run at once could.
    "q": workers(2, slots=100),
    # What is published there stays at the broker.
    "shelf": no_workers(),
    # Says much about its Tasks.
    "strict": workers(
        slots=50,
        taskDefaults={
            "retry": {
                "maxAttempts": 2,
                "backoff": {"initialSeconds": 2.5},
                "nonRetryable": ["ConnectionError"],
            },
            "attemptTimeoutSeconds": 2,
            "activeDeadlineSeconds": 8,
        },
    ),
    # Two of a concurrencyKey at a time.
    "pair": workers(slots=50, concurrencyLimits={"perKey": 2}),
}
