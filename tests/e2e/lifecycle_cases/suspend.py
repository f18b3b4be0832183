"""spec.suspend of a Task, and stopPolicy and priority of a TaskQueue."""

from dataclasses import replace

from tests.e2e.checks import (
    began_after,
    due_after,
    ran,
    ran_in_order,
    waited,
    was_never,
    was_stopped,
)
from tests.e2e.lifecycle_case import (
    FromNow,
    LifecycleCase,
    blocked,
    cancelled,
    flaky,
    nap,
    no_workers,
    retrying,
    running,
    scheduled,
    succeeded,
    suspended,
    task,
    workers,
)
from tests.e2e.steps import (
    broker_has,
    cancel,
    consumer_receives,
    consumer_reports,
    create,
    edit,
    edit_queue,
    no_worker_left,
    queue_has_condition,
    reaches,
    resume,
    suspend,
    time_passes,
    workers_added,
)

_RETRYING = retrying("ConnectionError", "*ConnectionError: the network is away at attempt 1")
_RETRIED = ("1 Failed ConnectionError", "2 Succeeded")

SUSPEND = (
    LifecycleCase(
        "suspended from the start, then resumed",
        {"it": nap(0.1, suspend=True)},
        when=(reaches(suspended()), resume()),
        then={"it": succeeded(resumed=True)},
        also=(ran(1), began_after("resume")),
    ),
    LifecycleCase(
        "suspended in the operator, behind a full window, then resumed",
        {"first": task(), "it": task()},
        when=(
            broker_has(1),
            suspend(),
            reaches(suspended()),
            edit_queue(dispatch={"maxPublished": 9}),
            create("last", task()),
            broker_has(2),
            resume(),
            broker_has(3),
            workers_added(),
        ),
        then={"it": succeeded(resumed=True), "first": succeeded(), "last": succeeded()},
        on=no_workers(dispatch={"maxPublished": 1}),
    ),
    LifecycleCase(
        "suspended at the broker: recalled, resumed under another epoch, run once",
        {"it": nap(0.1)},
        when=(
            broker_has(1),
            suspend(),
            reaches(suspended(epoch=1)),
            resume(),
            broker_has(2),
            workers_added(),
        ),
        then={"it": succeeded(epoch=1, resumed=True)},
        also=(ran(1),),
        on=no_workers(),
    ),
    LifecycleCase(
        "suspended while it runs in a thread: the attempt is not counted",
        {"it": nap(7, "watch")},
        when=(reaches(running()), suspend(), reaches(suspended(attempts=1, epoch=1)), resume()),
        then={"it": succeeded(epoch=1, resumed=True)},
        also=(ran(2), was_never("Retrying")),
    ),
    LifecycleCase(
        "suspended while it runs as a coroutine: its worker stops it",
        {"it": nap(30, "watch_async")},
        when=(reaches(running()), suspend(), reaches(suspended(attempts=1, epoch=1))),
        also=(was_stopped(), ran(1)),
    ),
    LifecycleCase(
        "suspended while it runs where sync handlers run by default: its worker stops it",
        {"it": nap(30, "watch_process")},
        when=(reaches(running()), suspend(), reaches(suspended(attempts=1, epoch=1))),
        also=(was_stopped(), ran(1)),
    ),
    LifecycleCase(
        "suspended twice while it runs: an epoch each",
        {"it": nap(7, "watch")},
        when=(
            reaches(running()),
            suspend(),
            reaches(suspended(attempts=1, epoch=1)),
            resume(),
            reaches(running(epoch=1, resumed=True)),
            suspend(),
            reaches(suspended(attempts=1, epoch=2)),
            resume(),
        ),
        then={"it": succeeded(epoch=2, resumed=True)},
        also=(ran(3),),
    ),
    LifecycleCase(
        "suspended between two attempts: the wait goes on after the resume",
        {"it": flaky(1, wait=12)},
        when=(
            reaches(_RETRYING),
            suspend(),
            reaches(suspended(attempts=1, history=("1 Failed ConnectionError",), due=True)),
            due_after(12),
            resume(),
            reaches(replace(_RETRYING, resumed=True)),
        ),
        then={"it": succeeded(attempts=2, history=_RETRIED, result={"attempt": 2}, resumed=True)},
        also=(waited(12),),
        runs_last=True,
    ),
    LifecycleCase(
        "suspended between two attempts for longer than the wait: run when resumed",
        {"it": flaky(1, wait=8)},
        when=(
            reaches(_RETRYING),
            suspend(),
            reaches(suspended(attempts=1, history=("1 Failed ConnectionError",), due=True)),
            time_passes(8),
            resume(),
        ),
        then={"it": succeeded(attempts=2, history=_RETRIED, resumed=True)},
        also=(ran(2),),
    ),
    LifecycleCase(
        "suspended while it waits for a dependency, resumed when that is Complete",
        {"dep": nap(8), "it": nap(0.1, dependsOn=["dep"])},
        when=(
            reaches(blocked("WaitingForDependencies", "spec.dependsOn: waits for Task {dep} *")),
            suspend(),
            reaches(suspended()),
            reaches(succeeded(), "dep"),
            time_passes(1),
            resume(),
        ),
        then={"it": succeeded(resumed=True)},
        also=(ran(1), began_after("resume")),
    ),
    LifecycleCase(
        "suspended before startAfter, which passes meanwhile",
        {"it": nap(0.1, startAfter=FromNow(8))},
        when=(
            reaches(scheduled()),
            suspend(),
            reaches(suspended(due=True)),
            time_passes(8),
            resume(),
        ),
        then={"it": succeeded(resumed=True)},
        also=(ran(1), began_after("resume")),
    ),
    LifecycleCase(
        "suspended while it runs, then cancelled",
        {"it": nap(30, "watch")},
        when=(reaches(running()), suspend(), reaches(suspended(attempts=1, epoch=1)), cancel()),
        then={"it": cancelled(attempts=1, epoch=1)},
        also=(was_stopped(), ran(1)),
    ),
    LifecycleCase(
        "resumed, and nothing is left of the suspension but its time",
        {"it": task(suspend=True, dependsOn=["dep"])},
        when=(
            reaches(suspended()),
            resume(),
            reaches(blocked("DependencyNotFound", "*there is no Task *", resumed=True)),
            create("dep", task()),
        ),
        then={"it": succeeded(resumed=True)},
    ),
    LifecycleCase(
        "suspended: an outcome that comes late does not count",
        {"it": task()},
        when=(
            consumer_receives(),
            consumer_reports(0, "started"),
            reaches(running()),
            suspend(),
            reaches(suspended(attempts=1, epoch=1)),
            consumer_reports(0, "succeeded", result={"from": "the former attempt"}),
            resume(),
            consumer_receives(),
            consumer_reports(
                0, "failed", error={"type": "Late", "message": "", "retryable": False}
            ),
            consumer_reports(1, "succeeded", result={"from": "the attempt that counts"}),
        ),
        then={"it": succeeded(epoch=1, resumed=True, result={"from": "the attempt that counts"})},
        on=no_workers(),
    ),
)

STOP_POLICY = (
    LifecycleCase(
        "stopPolicy Hold: what runs goes on, what waits keeps waiting until None",
        {"it": nap(10)},
        when=(
            reaches(running()),
            edit_queue(stopPolicy="Hold"),
            queue_has_condition("Ready", "True", "Held"),
            create("next", nap(0.1)),
            reaches(succeeded()),
            broker_has(0),
            edit_queue(stopPolicy="None"),
            queue_has_condition("Ready", "True", "Ready"),
        ),
        then={"next": succeeded()},
        also=(ran_in_order("it", "next"), was_never("Blocked", "Suspended", role="next")),
        on=workers(),
    ),
    LifecycleCase(
        "stopPolicy HoldAndDrain: the workers go when what runs has ended, until None",
        {"it": nap(10)},
        when=(
            reaches(running()),
            edit_queue(stopPolicy="HoldAndDrain"),
            create("next", nap(0.1)),
            reaches(succeeded()),
            no_worker_left(),
            queue_has_condition("Ready", "True", "Held"),
            edit_queue(stopPolicy="None"),
        ),
        then={"it": succeeded(), "next": succeeded()},
        also=(ran(1, "next"), was_never("Blocked", "Suspended", role="next")),
        on=workers(),
    ),
    LifecycleCase(
        "stopPolicy Hold: what waits can be cancelled and suspended",
        {"it": task(), "other": task()},
        when=(cancel(), suspend("other"), broker_has(0)),
        then={"it": cancelled(), "other": suspended()},
        on=no_workers(stopPolicy="Hold"),
    ),
)

PRIORITY = (
    LifecycleCase(
        "priority: the highest is dispatched first, of equals the older",
        {
            "first": nap(6),
            "low": nap(0.1, priority=-1),
            "old": nap(0.1),
            "young": nap(0.1),
            "high": nap(0.1, priority=1000),
        },
        then={role: succeeded() for role in ("first", "low", "old", "young", "high")},
        also=(ran_in_order("first", "high", "old", "young", "low"),),
        on=workers(slots=1, dispatch={"maxPublished": 1}),
    ),
    LifecycleCase(
        "priority raised while it waits: it goes first",
        {"first": nap(6), "other": nap(0.1), "it": nap(0.1)},
        when=(edit(priority=1),),
        then={role: succeeded() for role in ("first", "other", "it")},
        also=(ran_in_order("first", "it", "other"),),
        on=workers(slots=1, dispatch={"maxPublished": 1}),
    ),
)

CASES = SUSPEND + STOP_POLICY + PRIORITY
