"""spec.cancel, and the deletion of a Task."""

from tests.e2e.checks import ran, was_never, was_stopped
from tests.e2e.steps import (
    broker_has,
    cancel,
    create,
    delete,
    edit,
    refused,
    shows,
    workers_come,
)
from tests.e2e.table import (
    In,
    Row,
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

_STOPPED = cancelled(attempts=1, history=("1 Cancelled Cancelled",))

ROWS = (
    Row(
        "cancelled in the operator, behind a full window",
        {"first": nap(1), "it": nap(1)},
        when=(broker_has(1), cancel()),
        then={"it": cancelled()},
        also=(broker_has(1), was_never("Running")),
        on=no_workers(dispatch={"maxPublished": 1}),
    ),
    Row(
        "cancelled at the broker, a worker that comes later runs only others",
        {"it": nap(1), "next": nap(1)},
        when=(
            broker_has(2),
            cancel(),
            shows(cancelled()),
            workers_come(),
        ),
        then={"it": cancelled(), "next": succeeded()},
        also=(ran(0), ran(1, "next")),
        on=no_workers(),
    ),
    Row(
        "cancelled while it runs in a thread",
        {"it": nap(30, "watch")},
        when=(shows(running()), cancel()),
        then={"it": _STOPPED},
        also=(was_stopped(), ran(1)),
    ),
    Row(
        "cancelled while it runs where sync handlers run by default",
        {"it": nap(30, "watch_process")},
        when=(shows(running()), cancel()),
        then={"it": _STOPPED},
        also=(was_stopped(), ran(1)),
    ),
    Row(
        "cancelled while it runs as a coroutine",
        {"it": nap(30, "watch_async")},
        when=(shows(running()), cancel()),
        then={"it": _STOPPED},
        also=(was_stopped(), ran(1)),
    ),
    Row(
        "cancelled while it runs, deaf: what it returns later does not count",
        {"it": nap(10)},
        when=(shows(running()), cancel(), shows(_STOPPED)),
        then={"it": _STOPPED},
        also=(ran(1),),
    ),
    Row(
        "cancelled between two attempts",
        {"it": flaky(1, wait=60)},
        when=(
            shows(retrying("ConnectionError", "attempt 1 of 2: ConnectionError: *")),
            cancel(),
        ),
        then={"it": cancelled(attempts=1, history=("1 Failed ConnectionError",))},
        also=(ran(1),),
    ),
    Row(
        "cancelled while it waits for a dependency",
        {"it": task(dependsOn=["dep"])},
        when=(
            shows(blocked("DependencyNotFound", "spec.dependsOn: there is no Task {row}-dep in*")),
            cancel(),
        ),
        then={"it": cancelled()},
    ),
    Row(
        "cancelled without a TaskQueue",
        {"it": task()},
        when=(
            shows(blocked("QueueNotFound", "spec.queue: there is no TaskQueue {ns}/{q}: create*")),
            cancel(),
        ),
        then={"it": cancelled()},
        on=None,
    ),
    Row(
        "cancelled before startAfter",
        {"it": task(startAfter=In(3600))},
        when=(shows(scheduled()), cancel()),
        then={"it": cancelled()},
    ),
    Row(
        "cancelled while suspended",
        {"it": task(suspend=True)},
        when=(shows(suspended()), cancel()),
        then={"it": cancelled()},
    ),
    Row(
        "cancelled while another has its concurrencyKey",
        {
            "first": nap(10, concurrencyKey="k"),
            "it": nap(1, concurrencyKey="k"),
        },
        when=(
            shows(running(key="{row}-k"), "first"),
            shows(blocked("ConcurrencyLimit", "spec.concurrencyKey: *{row}-k*")),
            cancel(),
        ),
        then={"it": cancelled(), "first": succeeded()},
        also=(ran(0),),
    ),
    Row(
        "cancelled from the first on",
        {"it": nap(1, cancel=True)},
        then={"it": cancelled()},
        also=(ran(0), was_never("Running")),
    ),
    Row(
        "cancelled and suspended at once while it runs",
        {"it": nap(30, "watch")},
        when=(shows(running()), edit(cancel=True, suspend=True)),
        then={"it": _STOPPED},
        also=(was_never("Suspended"), was_stopped()),
    ),
    Row(
        "cancelled when it has ended: refused",
        {"it": task()},
        when=(shows(succeeded(result={})), refused(cancel(), "the spec of a finished Task")),
        then={"it": succeeded(result={})},
    ),
    Row(
        "cancelled twice: the second is refused as well",
        {"it": task(suspend=True)},
        when=(
            edit(cancel=True),
            shows(cancelled()),
            refused(edit(cancel=False), "cancel cannot be taken back"),
        ),
        then={"it": cancelled()},
    ),
    Row(
        "deleted while it runs: its worker stops it",
        {"it": nap(30, "watch")},
        when=(shows(running()), delete()),
        also=(was_stopped(), ran(1), was_never("Succeeded", "Failed", "Cancelled")),
    ),
    Row(
        "deleted while it runs, and created anew under its name",
        {"it": nap(30, "watch_async")},
        when=(shows(running()), delete(), create("it", task(payload={"made": "anew"}))),
        then={"it": succeeded(result={"made": "anew"})},
    ),
    Row(
        "deleted at the broker: a worker that comes later does not run it",
        {"it": nap(1), "next": nap(1)},
        when=(
            broker_has(2),
            delete(),
            workers_come(),
        ),
        then={"next": succeeded()},
        also=(ran(0), ran(1, "next")),
        on=no_workers(),
    ),
)
