"""spec.concurrencyKey: how many of a key run at once, by what the handlers recorded."""

from typing import Any

from tests.e2e.api import Body
from tests.e2e.checks import at_once, fences_grow, never_two_at_once, ran
from tests.e2e.lifecycle_case import (
    ExpectedStatus,
    LifecycleCase,
    blocked,
    cancelled,
    ended,
    failed,
    flaky,
    nap,
    retrying,
    running,
    succeeded,
    suspended,
    workers,
)
from tests.e2e.steps import cancel, create, delete, edit_queue, reaches, resume, suspend

_LIMITED = blocked(
    "ConcurrencyLimit",
    "spec.concurrencyKey: as many Tasks of key {case}-k are dispatched as the TaskQueue's "
    "spec.concurrencyLimits.perKey allows",
)
_RUNNING = running(key="{case}-k")


def _keyed(seconds: float, handler: str = "tell_fence", key: str = "k", **spec: Any) -> Body:
    return nap(seconds, handler, concurrencyKey=key, **spec)


def _until_cancelled(key: str = "k", **spec: Any) -> Body:
    """A Task that runs until the case cancels it, however long what it waits for takes."""
    return _keyed(600, "watch", key, **spec)


def _cancelled(**expected: Any) -> ExpectedStatus:
    return cancelled(attempts=1, history=("1 Cancelled Cancelled",), **expected)


def _superseded(by: str, policy: str, **expected: Any) -> ExpectedStatus:
    return ended(
        "Superseded",
        f"spec.concurrencyKey: Task {{{by}}} is newer and has the same key {{case}}-k, and "
        f"spec.concurrencyLimits.onConflict of the TaskQueue is {policy}",
        **expected,
    )


CASES = (
    LifecycleCase(
        "concurrencyKey, KeepNewest: only the newest follows the one that runs",
        {"it": _until_cancelled()},
        when=(
            reaches(_RUNNING),
            create("two", _keyed(0.1)),
            create("three", _keyed(0.1)),
            reaches(_superseded("three", "KeepNewest"), "two"),
            cancel(),
        ),
        then={"it": _cancelled(), "three": succeeded()},
        also=(never_two_at_once("it", "two", "three"), fences_grow("it", "three")),
        on="newest",
    ),
    LifecycleCase(
        "concurrencyKey, CancelRunning: a newer one ends the one that runs",
        {"it": _until_cancelled()},
        when=(reaches(_RUNNING), create("two", _keyed(0.1))),
        then={
            "it": _superseded(
                "two", "CancelRunning", attempts=1, history=("1 Cancelled Superseded",)
            ),
            "two": succeeded(),
        },
        also=(never_two_at_once("it", "two"), fences_grow("it", "two")),
        on="at-once",
    ),
    LifecycleCase(
        "flow.maxWaiting: one waits, the other is Blocked until there is room",
        {"it": nap(600, "watch")},
        when=(
            reaches(running()),
            create("two", nap(0.1)),
            create("three", nap(0.1)),
            reaches(
                blocked(
                    "QueueFull",
                    "as many Tasks wait for their turn as the TaskQueue's spec.flow.maxWaiting "
                    "allows: this one follows when there is room",
                ),
                "three",
            ),
            cancel(),
        ),
        then={"it": _cancelled(), "two": succeeded(), "three": succeeded()},
        on="fair",
    ),
    LifecycleCase(
        "concurrencyKey: never two at once, and the fence grows",
        {role: _keyed(1) for role in ("it", "two", "three", "four")},
        then={role: succeeded() for role in ("it", "two", "three", "four")},
        also=(
            never_two_at_once("it", "two", "three", "four"),
            fences_grow("it", "two", "three", "four"),
        ),
    ),
    LifecycleCase(
        "concurrencyKey: a waiting Task says what it waits for",
        {"it": _until_cancelled()},
        when=(reaches(_RUNNING), create("two", _keyed(0.1)), reaches(_LIMITED, "two"), cancel()),
        then={"it": _cancelled(), "two": succeeded()},
        also=(never_two_at_once("it", "two"), fences_grow("it", "two")),
    ),
    LifecycleCase(
        "concurrencyKey: a higher priority goes first",
        {"it": _until_cancelled()},
        when=(
            reaches(_RUNNING),
            create("low", _keyed(0.1)),
            create("high", _keyed(0.1, priority=5)),
            reaches(_LIMITED, "low"),
            reaches(_LIMITED, "high"),
            cancel(),
        ),
        then={"it": _cancelled(), "low": succeeded(), "high": succeeded()},
        also=(never_two_at_once("it", "low", "high"), fences_grow("it", "high", "low")),
    ),
    LifecycleCase(
        "concurrencyKey with a limit of 2: two at once, never three",
        {
            "it": _until_cancelled(),
            "two": _until_cancelled(),
            "three": _keyed(0.1),
            "four": _keyed(0.1),
        },
        when=(
            reaches(_RUNNING),
            reaches(_RUNNING, "two"),
            reaches(_LIMITED, "three"),
            reaches(_LIMITED, "four"),
            cancel(),
            cancel("two"),
        ),
        then={
            **{role: _cancelled() for role in ("it", "two")},
            **{role: succeeded() for role in ("three", "four")},
        },
        also=(
            never_two_at_once("it", "two", "three", "four", but=2),
            at_once(2, "it", "two", "three", "four"),
        ),
        on="pair",
    ),
    LifecycleCase(
        "concurrencyKey: another key runs beside it",
        {
            "it": _until_cancelled(),
            "two": _keyed(0.1),
            "other": _until_cancelled("other"),
            "none": nap(600, "watch"),
        },
        when=(
            reaches(_RUNNING),
            reaches(running(key="{case}-other"), "other"),
            reaches(running(), "none"),
            reaches(_LIMITED, "two"),
            *(cancel(role) for role in ("it", "other", "none")),
        ),
        then={
            "two": succeeded(),
            **{role: _cancelled() for role in ("it", "other", "none")},
        },
        also=(never_two_at_once("it", "two"), at_once(3, "it", "other", "none")),
    ),
    LifecycleCase(
        "concurrencyKey is free between two attempts",
        {"it": flaky(1, wait=5, concurrencyKey="k")},
        when=(
            reaches(retrying("ConnectionError", "attempt 1 of 2: *")),
            create("two", _keyed(0.1)),
            reaches(succeeded(), "two"),
        ),
        then={"it": succeeded(attempts=2, history=("1 Failed ConnectionError", "2 Succeeded"))},
        also=(never_two_at_once("it", "two"),),
    ),
    LifecycleCase(
        "concurrencyKey is free after a failure",
        {"it": flaky(9, concurrencyKey="k", retry={"maxAttempts": 1}), "two": _keyed(0.1)},
        then={
            "it": failed(
                "RetriesExhausted",
                "attempt 1 of 1: *",
                attempts=1,
                history=("1 Failed ConnectionError",),
            ),
            "two": succeeded(),
        },
        also=(never_two_at_once("it", "two"),),
    ),
    LifecycleCase(
        "concurrencyKey is free after a cancel, when the worker has stopped",
        {"it": _until_cancelled(), "two": _keyed(0.1)},
        when=(reaches(_RUNNING), reaches(_LIMITED, "two"), cancel()),
        then={"it": _cancelled(), "two": succeeded()},
        also=(never_two_at_once("it", "two"),),
    ),
    LifecycleCase(
        "concurrencyKey is free after a deletion, when the worker has stopped",
        {"it": _keyed(30, "watch_async"), "two": _keyed(0.1)},
        when=(reaches(_RUNNING), reaches(_LIMITED, "two"), delete()),
        then={"two": succeeded()},
        also=(never_two_at_once("it", "two"),),
    ),
    LifecycleCase(
        "concurrencyKey is free while suspended, and waited for when resumed",
        {"it": _until_cancelled()},
        when=(
            reaches(_RUNNING),
            suspend(),
            reaches(suspended(attempts=1, epoch=1)),
            create("two", _until_cancelled()),
            reaches(_RUNNING, "two"),
            resume(),
            reaches(
                ExpectedStatus(
                    phase="Blocked",
                    reason="ConcurrencyLimit",
                    message=_LIMITED.message,
                    attempts=1,
                    epoch=1,
                    resumed=True,
                )
            ),
            cancel("two"),
            reaches(running(key="{case}-k", epoch=1, resumed=True)),
            cancel(),
        ),
        then={"it": _cancelled(epoch=1, resumed=True), "two": _cancelled()},
        also=(ran(2), never_two_at_once("it", "two")),
    ),
    LifecycleCase(
        "concurrencyKey: a limit that is raised lets the next one in",
        {"it": _until_cancelled(), "two": _until_cancelled(), "three": _keyed(0.1)},
        when=(
            reaches(_RUNNING),
            reaches(_LIMITED, "two"),
            edit_queue(concurrencyLimits={"perKey": 2}),
            reaches(_RUNNING, "two"),
            cancel(),
            cancel("two"),
        ),
        then={"it": _cancelled(), "two": _cancelled(), "three": succeeded()},
        also=(
            at_once(2, "it", "two"),
            never_two_at_once("it", "two", "three", but=2),
        ),
        on=workers(),
    ),
)
