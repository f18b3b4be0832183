"""A lifecycle case: given these manifests, when this happens, then exactly this follows.

A case names its Tasks by role; ``it`` is the one the case is about. A role in ``dependsOn``, or in
braces in a message, stands for the name of that Task. `RunningCase` has the other names.

`ExpectedStatus` is exact: what it does not list must be absent.
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
    from tests.e2e.case_runner import RunningCase

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
    """Equals no value; stands for any of them."""

    def __repr__(self) -> str:
        return "ANYTHING"


ANYTHING = _Any()


@dataclass(frozen=True)
class FromNow:
    """A time this many seconds after the manifest is applied."""

    seconds: float

    def timestamp(self) -> str:
        """Return the time in RFC 3339, with milliseconds, counted from now."""
        at = datetime.now(UTC) + timedelta(seconds=self.seconds)
        return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


@dataclass(frozen=True, kw_only=True)
class ExpectedStatus:
    """The expected status of a Task: everything but the times.

    Attributes:
        phase: status.phase.
        reason: status.reason.
        message: status.message; ``*`` stands for anything, ``{role}`` for the name of a Task.
        attempts: status.attempts.
        history: ``"number outcome reason"`` of each attempt that ended.
        epoch: status.epoch.
        result: status.result; ANYTHING for any result, None for no result.
        key: status.concurrencyKey.
        due: whether there is a nextAttemptTime; None: the phase decides.
        resumed: whether the Task was suspended earlier and is not now.
        also: conditions that are True besides those of the phase.
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
    also: frozenset[str] = frozenset()

    def is_candidate(self, task: Body, names: Mapping[str, str]) -> bool:
        """Say whether to compare this version: it has the phase and message, or is final."""
        status = task["status"]
        if status["phase"] in FINAL:
            return True
        return (
            (status["phase"], status.get("reason", "")) == (self.phase, self.reason)
            and status["epoch"] == self.epoch
            and _is_like(status.get("message", ""), self.message.format_map(names))
        )

    def assert_matches(self, task: Body, names: Mapping[str, str]) -> None:
        """Fail with every difference from a Task's status."""
        status, final = task["status"], self.phase in FINAL
        ended = [
            (one["attempt"], one["outcome"], one.get("reason", ""))
            for one in status.get("history", [])
        ]
        due = self.phase in ("Scheduled", "Retrying") if self.due is None else self.due
        suspended = conditions(status).get("Suspended")
        shown: Body = {
            "phase": status["phase"],
            "reason": status.get("reason", ""),
            "attempts": status["attempts"],
            "history": tuple(" ".join(map(str, one)).strip() for one in ended),
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
            "conditions": _TRUE.get(self.phase, {"Reconciling"}) | self.also,
        }
        if self.result is ANYTHING:
            assert shown["result"] is not None, "there is no result"
        if final:
            shown["observedGeneration"] = status["observedGeneration"]
            expected["observedGeneration"] = task["metadata"]["generation"]
        assert shown == expected
        pattern = self.message.format_map(names)
        assert _is_like(status.get("message", ""), pattern), (status.get("message", ""), pattern)


def _is_like(message: str, pattern: str) -> bool:
    regex = ".*".join(re.escape(part) for part in pattern.split("*"))
    return re.fullmatch(regex, message, re.DOTALL) is not None


def succeeded(**expected: Any) -> ExpectedStatus:
    """A Task that succeeded: at the first attempt and with any result, by default."""
    defaults: Body = {"attempts": 1, "history": ("1 Succeeded",), "result": ANYTHING}
    return ExpectedStatus(phase="Succeeded", **{**defaults, **expected})


def failed(reason: str, message: str, **expected: Any) -> ExpectedStatus:
    """A Task that failed for good."""
    return ExpectedStatus(phase="Failed", reason=reason, message=message, **expected)


def cancelled(**expected: Any) -> ExpectedStatus:
    """A Task that was cancelled."""
    return ended("Cancelled", "spec.cancel is true", **expected)


def ended(reason: str, message: str, **expected: Any) -> ExpectedStatus:
    """A Task that was cancelled by the operator."""
    return ExpectedStatus(phase="Cancelled", reason=reason, message=message, **expected)


def blocked(reason: str, message: str, **expected: Any) -> ExpectedStatus:
    """A Task that waits for something outside itself."""
    return ExpectedStatus(phase="Blocked", reason=reason, message=message, **expected)


def suspended(**expected: Any) -> ExpectedStatus:
    """A Task that is suspended."""
    return ExpectedStatus(
        phase="Suspended", reason="Suspended", message="spec.suspend is true", **expected
    )


def scheduled(**expected: Any) -> ExpectedStatus:
    """A Task that waits for spec.startAfter."""
    text = "spec.startAfter has not come"
    return ExpectedStatus(phase="Scheduled", reason="StartAfter", message=text, **expected)


def running(attempts: int = 1, **expected: Any) -> ExpectedStatus:
    """A Task that a worker runs."""
    return ExpectedStatus(phase="Running", attempts=attempts, **expected)


def retrying(reason: str, message: str, **expected: Any) -> ExpectedStatus:
    """A Task between two attempts: the first two, by default."""
    defaults: Body = {"attempts": 1, "history": (f"1 Failed {reason}",)}
    return ExpectedStatus(
        phase="Retrying", reason=reason, message=message, **{**defaults, **expected}
    )


def task(handler: str = "echo", payload: Body | None = None, **spec: Any) -> Body:
    """Return a Task's spec without its queue, which the case adds."""
    return {"handler": handler, "payload": payload or {}, **spec}


def nap(seconds: float, handler: str = "nap", **spec: Any) -> Body:
    """A Task whose handler sleeps; only ``watch`` and ``watch_async`` react to cancellation."""
    return task(handler, {"seconds": seconds}, **spec)


def flaky(failures: int, *, wait: float = 0.2, **spec: Any) -> Body:
    """A Task whose first attempts fail, with ``wait`` seconds between them."""
    retry = {"maxAttempts": failures + 1, "backoff": {"initialSeconds": wait}}
    retry |= spec.pop("retry", {})
    return task("flaky", {"failures": failures}, retry=retry, **spec)


@dataclass(frozen=True)
class Queue:
    """A TaskQueue for one case, as changes to the usual spec."""

    changes: Mapping[str, Any] = field(default_factory=dict)


def workers(count: int = 1, slots: int = 4, *, grace: int = 6, **changes: Any) -> Queue:
    """A TaskQueue for one case with ``count`` workers; handlers get the grace less 5 s."""
    scaling = {"minReplicas": count, "maxReplicas": count}
    template = {"spec": {"terminationGracePeriodSeconds": grace}}
    pool = {"concurrency": slots, "template": template}
    return Queue({"scaling": scaling, "workers": pool, **changes})


def no_workers(**changes: Any) -> Queue:
    """A TaskQueue for one case without workers: what is published stays at the broker."""
    return Queue({"workers": {"template": None}, **changes})


class Step(Protocol):
    """Something that the case does, or waits for, before it goes on."""

    def __call__(self, case: RunningCase, /) -> None:
        """Do it, or wait for it."""


@dataclass(frozen=True)
class LifecycleCase:
    """A test of one Task's life.

    Attributes:
        title: what is tested; the id of the test.
        given: the Tasks by role, created in this order.
        when: the steps that follow, in this order.
        then: the final status by role; Tasks left out are not checked.
        also: what else must hold at the end.
        runs_last: start it when all others have ended: it measures fractions of a second.
        on: the TaskQueue: a name in `SHARED_QUEUES`, or one for this case alone. None: it does not
            exist yet.
    """

    title: str
    given: Mapping[str, Body] = field(default_factory=dict)
    when: tuple[Step, ...] = ()
    then: Mapping[str, ExpectedStatus] = field(default_factory=dict)
    also: tuple[Step, ...] = ()
    runs_last: bool = False
    on: str | Queue | None = "q"


#: TaskQueues that cases share, by name. No case may occupy all slots of one.
SHARED_QUEUES: Mapping[str, Queue] = {
    # The default. With two workers, two runs of one key could overlap if the operator failed.
    "q": workers(2, slots=100),
    # What is published there stays at the broker.
    "shelf": no_workers(),
    # Sets most task defaults.
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
    # Runs two Tasks of a concurrencyKey at a time.
    "pair": workers(slots=50, concurrencyLimits={"perKey": 2}),
    # Of a concurrencyKey the newest is kept, or runs at once.
    "newest": workers(slots=20, concurrencyLimits={"onConflict": "KeepNewest"}),
    "at-once": workers(slots=20, concurrencyLimits={"onConflict": "CancelRunning"}),
    # Has all of spec.flow; only one waits.
    "fair": workers(
        slots=8,
        dispatch={"maxPublished": 1},
        flow={
            "fairness": {"key": {"type": "Label", "name": "team"}},
            "rateLimits": [{"name": "often", "attempts": 600, "periodSeconds": 60}],
            "priorityAgeing": {"perSeconds": 60, "step": 1},
            "maxWaiting": 1,
        },
    ),
}
