"""spec.cancel, and the deletion of a Task."""

from tests.e2e.checks import ran, was_never, was_stopped
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
)
from tests.e2e.steps import (
    broker_has,
    cancel,
    create,
    delete,
    edit,
    reaches,
    refused,
    workers_added,
)

_STOPPED = cancelled(attempts=1, history=("1 Cancelled Cancelled",))

CASES = (
    LifecycleCase(
        "cancelled in the operator, behind a full window",
        {"first": nap(1), "it": nap(1)},
        when=(broker_has(1), cancel()),
        then={"it": cancelled()},
        also=(broker_has(1), was_never("Running")),
        on=no_workers(dispatch={"maxPublished": 1}),
    ),
    LifecycleCase(
        "cancelled at the broker, a worker that comes later runs only others",
        {"it": nap(1), "next": nap(1)},
        when=(
            broker_has(2),
            cancel(),
            reaches(cancelled()),
            workers_added(),
        ),
        then={"it": cancelled(), "next": succeeded()},
        also=(ran(0), ran(1, "next")),
        on=no_workers(),
    ),
    LifecycleCase(
        "cancelled while it runs in a thread",
        {"it": nap(30, "watch")},
        when=(reaches(running()), cancel()),
        then={"it": _STOPPED},
        also=(was_stopped(), ran(1)),
    ),
    LifecycleCase(
        "cancelled while it runs where sync handlers run by default",
        {"it": nap(30, "watch_process")},
        when=(reaches(running()), cancel()),
        then={"it": _STOPPED},
        also=(was_stopped(), ran(1)),
    ),
    LifecycleCase(
        "cancelled while it runs as a coroutine",
        {"it": nap(30, "watch_async")},
        when=(reaches(running()), cancel()),
        then={"it": _STOPPED},
        also=(was_stopped(), ran(1)),
    ),
    LifecycleCase(
        "cancelled while it runs, and ignores it: what it returns later does not count",
        {"it": nap(10)},
        when=(reaches(running()), cancel(), reaches(_STOPPED)),
        then={"it": _STOPPED},
        also=(ran(1),),
    ),
    LifecycleCase(
        "cancelled between two attempts",
        {"it": flaky(1, wait=60)},
        when=(
            reaches(retrying("ConnectionError", "attempt 1 of 2: ConnectionError: *")),
            cancel(),
        ),
        then={"it": cancelled(attempts=1, history=("1 Failed ConnectionError",))},
        also=(ran(1),),
    ),
    LifecycleCase(
        "cancelled while it waits for a dependency",
        {"it": task(dependsOn=["dep"])},
        when=(
            reaches(
                blocked("DependencyNotFound", "spec.dependsOn: there is no Task {case}-dep in*")
            ),
            cancel(),
        ),
        then={"it": cancelled()},
    ),
    LifecycleCase(
        "cancelled without a TaskQueue",
        {"it": task()},
        when=(
            reaches(
                blocked("QueueNotFound", "spec.queue: there is no TaskQueue {ns}/{q}: create*")
            ),
            cancel(),
        ),
        then={"it": cancelled()},
        on=None,
    ),
    LifecycleCase(
        "cancelled before startAfter",
        {"it": task(startAfter=FromNow(3600))},
        when=(reaches(scheduled()), cancel()),
        then={"it": cancelled()},
    ),
    LifecycleCase(
        "cancelled while suspended",
        {"it": task(suspend=True)},
        when=(reaches(suspended()), cancel()),
        then={"it": cancelled()},
    ),
    LifecycleCase(
        "cancelled while another has its concurrencyKey",
        {
            "first": nap(10, concurrencyKey="k"),
            "it": nap(1, concurrencyKey="k"),
        },
        when=(
            reaches(running(key="{case}-k"), "first"),
            reaches(blocked("ConcurrencyLimit", "spec.concurrencyKey: *{case}-k*")),
            cancel(),
        ),
        then={"it": cancelled(), "first": succeeded()},
        also=(ran(0),),
    ),
    LifecycleCase(
        "cancelled from the start",
        {"it": nap(1, cancel=True)},
        then={"it": cancelled()},
        also=(ran(0), was_never("Running")),
    ),
    LifecycleCase(
        "cancelled and suspended at once while it runs",
        {"it": nap(30, "watch")},
        when=(reaches(running()), edit(cancel=True, suspend=True)),
        then={"it": _STOPPED},
        also=(was_never("Suspended"), was_stopped()),
    ),
    LifecycleCase(
        "cancelled when it has ended: refused",
        {"it": task()},
        when=(reaches(succeeded(result={})), refused(cancel(), "the spec of a finished Task")),
        then={"it": succeeded(result={})},
    ),
    LifecycleCase(
        "cancelled twice: the second is refused as well",
        {"it": task(suspend=True)},
        when=(
            edit(cancel=True),
            reaches(cancelled()),
            refused(edit(cancel=False), "cancel cannot be undone"),
        ),
        then={"it": cancelled()},
    ),
    LifecycleCase(
        "deleted while it runs: its worker stops it",
        {"it": nap(30, "watch")},
        when=(reaches(running()), delete()),
        also=(was_stopped(), ran(1), was_never("Succeeded", "Failed", "Cancelled")),
    ),
    LifecycleCase(
        "deleted while it runs, and created again under its name",
        {"it": nap(30, "watch_async")},
        when=(reaches(running()), delete(), create("it", task(payload={"made": "anew"}))),
        then={"it": succeeded(result={"made": "anew"})},
    ),
    LifecycleCase(
        "deleted at the broker: a worker that comes later does not run it",
        {"it": nap(1), "next": nap(1)},
        when=(
            broker_has(2),
            delete(),
            workers_added(),
        ),
        then={"next": succeeded()},
        also=(ran(0), ran(1, "next")),
        on=no_workers(),
    ),
)
