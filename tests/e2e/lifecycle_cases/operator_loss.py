"""The operator is killed: whatever a Task was doing, it ends as if nothing had happened.

The cases run together. The operator is killed once, when all have reached `operator_killed`.
"""

from tests.e2e.checks import (
    began_after,
    fences_grow,
    never_two_at_once,
    ran,
    waited,
    was_never,
    was_stopped,
)
from tests.e2e.lifecycle_case import (
    FromNow,
    LifecycleCase,
    blocked,
    cancelled,
    failed,
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
    broker_loses_messages,
    cancel,
    config_map,
    consumer_receives,
    consumer_reports,
    create,
    operator_killed,
    reaches,
    resume,
    suspend,
    workers_added,
)

_LIMITED = blocked("ConcurrencyLimit", "*{case}-k*")

CASES = (
    LifecycleCase(
        "operator killed: waits in the operator, and at the broker",
        {"first": nap(0.1), "it": nap(0.1)},
        when=(broker_has(1), operator_killed(), workers_added()),
        then={"first": succeeded(), "it": succeeded()},
        also=(ran(1, "first"), ran(1)),
        on=no_workers(dispatch={"maxPublished": 1}),
    ),
    LifecycleCase(
        "operator killed: runs on, its outcome counts",
        {"it": nap(14)},
        when=(reaches(running()), operator_killed()),
        then={"it": succeeded()},
        also=(ran(1),),
    ),
    LifecycleCase(
        "operator killed: runs on until after another has taken over",
        {"it": nap(30)},
        when=(reaches(running()), operator_killed()),
        then={"it": succeeded()},
    ),
    LifecycleCase(
        "operator killed: a worker's outcome waits for the next one",
        {"it": task()},
        when=(
            consumer_receives(),
            operator_killed(),
            consumer_reports(0, "succeeded", result={"by": "the consumer"}),
        ),
        then={"it": succeeded(result={"by": "the consumer"})},
        on=no_workers(),
    ),
    LifecycleCase(
        "operator killed: between two attempts, the wait is as long",
        {"it": flaky(1, wait=50)},
        when=(
            reaches(retrying("ConnectionError", "attempt 1 of 2: *")),
            operator_killed(),
        ),
        then={"it": succeeded(attempts=2, history=("1 Failed ConnectionError", "2 Succeeded"))},
        also=(waited(50), ran(2)),
    ),
    LifecycleCase(
        "operator killed: waits for a dependency, which ends meanwhile",
        {"dep": nap(14), "it": nap(0.1, dependsOn=["dep"])},
        when=(
            reaches(blocked("WaitingForDependencies", "*{dep}*")),
            operator_killed(),
        ),
        then={"dep": succeeded(), "it": succeeded()},
        also=(began_after("dep"), ran(1)),
    ),
    LifecycleCase(
        "operator killed: waits for a ConfigMap, which comes meanwhile",
        {"it": task(payloadFrom=["base"])},
        when=(
            reaches(blocked("PayloadUnresolved", "*{case}-base does not exist*")),
            operator_killed(),
            config_map("base", {"a": 1}),
        ),
        then={"it": succeeded(result={"a": 1})},
    ),
    LifecycleCase(
        "operator killed: with a payload from a ConfigMap, between two attempts",
        {},
        when=(
            config_map("base", {"failures": 1}),
            create("it", flaky(1, wait=3, payloadFrom=["base"])),
            reaches(retrying("ConnectionError", "*")),
            operator_killed(),
        ),
        then={"it": succeeded(attempts=2, history=("1 Failed ConnectionError", "2 Succeeded"))},
    ),
    LifecycleCase(
        "operator killed: startAfter passes meanwhile",
        {"it": nap(0.1, startAfter=FromNow(12))},
        when=(reaches(scheduled()), operator_killed()),
        then={"it": succeeded()},
        also=(began_after("startAfter"), ran(1)),
    ),
    LifecycleCase(
        "operator killed: suspended, resumed meanwhile",
        {"it": nap(8, "watch")},
        when=(
            reaches(running()),
            suspend(),
            reaches(suspended(attempts=1, epoch=1)),
            operator_killed(),
            resume(),
        ),
        then={"it": succeeded(epoch=1, resumed=True)},
        also=(ran(2),),
    ),
    LifecycleCase(
        "operator killed: cancelled meanwhile, while it runs",
        {"it": nap(60, "watch")},
        when=(reaches(running()), operator_killed(), cancel()),
        then={"it": cancelled(attempts=1, history=("1 Cancelled Cancelled",))},
        also=(ran(1),),
    ),
    LifecycleCase(
        "operator killed: the deadline passes meanwhile, while it runs",
        {"it": nap(60, "watch", activeDeadlineSeconds=14)},
        when=(reaches(running()), operator_killed()),
        then={
            "it": failed(
                "DeadlineExceeded",
                "it did not end within activeDeadlineSeconds, 14 s",
                attempts=1,
                history=("1 Failed DeadlineExceeded",),
            )
        },
        also=(was_stopped(),),
    ),
    LifecycleCase(
        "operator killed: one of a concurrencyKey runs, others wait",
        {
            # Until after another operator has taken over.
            "it": nap(30, "tell_fence", concurrencyKey="k"),
            "two": nap(1, "tell_fence", concurrencyKey="k"),
            "three": nap(1, "tell_fence", concurrencyKey="k"),
        },
        when=(
            reaches(running(key="{case}-k")),
            reaches(_LIMITED, "two"),
            reaches(_LIMITED, "three"),
            operator_killed(),
        ),
        then={role: succeeded() for role in ("it", "two", "three")},
        also=(never_two_at_once("it", "two", "three"), fences_grow("it", "two", "three")),
        # A second copy of what a worker runs goes to another worker: this one has no free slot.
        on=workers(2, slots=1),
    ),
    LifecycleCase(
        "operator killed: one of a concurrencyKey is at the broker, no worker has it",
        {"it": nap(0.1, concurrencyKey="k"), "two": nap(0.1, concurrencyKey="k")},
        when=(broker_has(1), operator_killed(), workers_added()),
        then={"it": succeeded(), "two": succeeded()},
        also=(ran(1), ran(1, "two"), never_two_at_once("it", "two")),
        on=no_workers(),
    ),
    LifecycleCase(
        "operator killed: one has claimed its concurrencyKey, and is not at the broker",
        {"it": nap(0.1, concurrencyKey="k", attemptTimeoutSeconds=1)},
        when=(broker_has(1), operator_killed(), broker_loses_messages(), workers_added()),
        then={"it": succeeded(epoch=1)},
        also=(ran(1), was_never("Retrying")),
        on=no_workers(),
    ),
)
