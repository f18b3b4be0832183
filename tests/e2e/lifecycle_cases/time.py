"""startAfter, deadlines, time-outs, and the time to live."""

from tests.e2e.checks import (
    began_after,
    due_at_start_after,
    ended_after,
    ran,
    was_never,
    was_stopped,
)
from tests.e2e.lifecycle_case import (
    ExpectedStatus,
    FromNow,
    LifecycleCase,
    blocked,
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
)
from tests.e2e.steps import (
    broker_has,
    cancel,
    consumer_receives,
    consumer_reports,
    create,
    deleted_by_operator,
    edit,
    edit_queue,
    reaches,
    resume,
    time_passes,
)


def _over(seconds: int, **expected: object) -> ExpectedStatus:
    return failed(
        "DeadlineExceeded",
        f"it did not end within activeDeadlineSeconds, {seconds} s",
        **expected,
    )


START_AFTER = (
    LifecycleCase(
        "startAfter in a while",
        {"it": nap(0.1, startAfter=FromNow(4))},
        when=(reaches(scheduled()), due_at_start_after()),
        then={"it": succeeded()},
        also=(began_after("startAfter"), ran(1)),
    ),
    LifecycleCase(
        "startAfter in the past",
        {"it": task(startAfter="2001-02-03T04:05:06Z")},
        then={"it": succeeded()},
        also=(was_never("Scheduled"),),
    ),
    LifecycleCase(
        "startAfter with an offset, moved nearer while it is waited for",
        {"it": task(startAfter="2999-01-01T00:00:00.5+02:00")},
        when=(reaches(scheduled()), due_at_start_after(), edit(startAfter=FromNow(1))),
        then={"it": succeeded()},
        also=(began_after("startAfter"),),
    ),
    LifecycleCase(
        "startAfter moved away while it is waited for",
        {"it": nap(0.1, startAfter=FromNow(10))},
        when=(reaches(scheduled()), edit(startAfter=FromNow(12))),
        then={"it": succeeded()},
        also=(began_after("startAfter"), ran(1)),
    ),
    LifecycleCase(
        "startAfter removed while the Task waits for it",
        {"it": task(startAfter=FromNow(3600))},
        when=(reaches(scheduled()), edit(startAfter=None)),
        then={"it": succeeded()},
    ),
    LifecycleCase(
        "startAfter counts when the dependency is Complete",
        {"dep": nap(6), "it": task(dependsOn=["dep"], startAfter=FromNow(16))},
        when=(
            reaches(blocked("WaitingForDependencies", "*waits for Task {dep} *")),
            reaches(scheduled()),
        ),
        then={"it": succeeded()},
        also=(began_after("startAfter"),),
    ),
)

DEADLINE = (
    LifecycleCase(
        "activeDeadlineSeconds passes at the broker, without a worker",
        {"it": task(activeDeadlineSeconds=3)},
        then={"it": _over(3)},
        also=(ended_after(3, "creation"),),
        on="shelf",
    ),
    LifecycleCase(
        "activeDeadlineSeconds passes while it runs: its worker stops it",
        {"it": nap(60, "watch", activeDeadlineSeconds=10)},
        when=(reaches(running()),),
        then={"it": _over(10, attempts=1, history=("1 Failed DeadlineExceeded",))},
        also=(ended_after(10, "creation"), was_stopped(), ran(1)),
    ),
    LifecycleCase(
        "activeDeadlineSeconds passes between two attempts",
        {"it": flaky(1, wait=60, activeDeadlineSeconds=10)},
        when=(reaches(retrying("ConnectionError", "attempt 1 of 2: *")),),
        then={"it": _over(10, attempts=1, history=("1 Failed ConnectionError",))},
        also=(ended_after(10, "creation"), ran(1)),
    ),
    LifecycleCase(
        "activeDeadlineSeconds passes over several attempts",
        {
            "it": flaky(
                9,
                retry={"backoff": {"initialSeconds": 1, "factor": 60}},
                activeDeadlineSeconds=10,
            )
        },
        then={
            "it": _over(
                10,
                attempts=2,
                history=("1 Failed ConnectionError", "2 Failed ConnectionError"),
            )
        },
    ),
    LifecycleCase(
        "activeDeadlineSeconds does not pass while suspended, and counts from the resume",
        {"it": task(suspend=True, activeDeadlineSeconds=3)},
        when=(reaches(suspended()), time_passes(3), resume()),
        then={"it": _over(3, resumed=True)},
        also=(ended_after(3, "resume"),),
        on="shelf",
    ),
    LifecycleCase(
        "activeDeadlineSeconds counts from startAfter",
        {"it": task(startAfter=FromNow(4), activeDeadlineSeconds=2)},
        when=(reaches(scheduled()),),
        then={"it": _over(2)},
        also=(ended_after(2, "startAfter"),),
        on="shelf",
    ),
    LifecycleCase(
        "activeDeadlineSeconds counts from when the dependency is Complete",
        {
            "dep": nap(4),
            "it": nap(60, "watch", dependsOn=["dep"], activeDeadlineSeconds=8),
        },
        then={"it": _over(8, attempts=1, history=("1 Failed DeadlineExceeded",))},
        also=(ended_after(8, "dep"), was_stopped()),
    ),
    LifecycleCase(
        "activeDeadlineSeconds does not pass while a dependency is missing",
        {"it": task(dependsOn=["dep"], activeDeadlineSeconds=8)},
        when=(
            reaches(blocked("DependencyNotFound", "*")),
            time_passes(7),
            create("dep", task()),
        ),
        then={"it": succeeded()},
    ),
    LifecycleCase(
        "activeDeadlineSeconds passes while the payload is missing",
        {"it": task(payloadFrom=["base"], activeDeadlineSeconds=8)},
        when=(reaches(blocked("PayloadUnresolved", "*")),),
        then={"it": _over(8)},
        also=(ended_after(8, "creation"),),
    ),
    LifecycleCase(
        "activeDeadlineSeconds shortened while it runs",
        {"it": nap(30, "watch", activeDeadlineSeconds=3600)},
        when=(reaches(running()), edit(activeDeadlineSeconds=1)),
        then={"it": _over(1, attempts=1, history=("1 Failed DeadlineExceeded",))},
        also=(was_stopped(),),
    ),
    LifecycleCase(
        "activeDeadlineSeconds of the queue",
        {"it": nap(30, "watch", attemptTimeoutSeconds=60)},
        then={"it": _over(8, attempts=1, history=("1 Failed DeadlineExceeded",))},
        also=(ended_after(8, "creation"),),
        on="strict",
    ),
    LifecycleCase(
        "activeDeadlineSeconds of its own over the queue's",
        {"it": nap(10, attemptTimeoutSeconds=60, activeDeadlineSeconds=60)},
        then={"it": succeeded()},
        on="strict",
    ),
)

_SILENT = "Timeout: no outcome came within 1 s and the grace period: *"

TIMEOUT = (
    LifecycleCase(
        "attemptTimeoutSeconds: the worker stops a thread that checks for cancellation",
        {"it": nap(30, "watch", attemptTimeoutSeconds=1, retry={"maxAttempts": 1})},
        then={
            "it": failed(
                "RetriesExhausted",
                "attempt 1 of 1: Timeout: the attempt did not end within 1 s",
                attempts=1,
                history=("1 Failed Timeout",),
            )
        },
        also=(was_stopped(),),
    ),
    LifecycleCase(
        "attemptTimeoutSeconds: the worker stops what runs where sync handlers do by default",
        {"it": nap(30, "watch_process", attemptTimeoutSeconds=1, retry={"maxAttempts": 1})},
        then={
            "it": failed(
                "RetriesExhausted",
                "attempt 1 of 1: Timeout: the attempt did not end within 1 s",
                attempts=1,
                history=("1 Failed Timeout",),
            )
        },
        also=(was_stopped(), ran(1)),
    ),
    LifecycleCase(
        "attemptTimeoutSeconds: the worker stops a coroutine, and the next attempt as well",
        {"it": nap(30, "watch_async", attemptTimeoutSeconds=1, retry={"maxAttempts": 2})},
        then={
            "it": failed(
                "RetriesExhausted",
                "attempt 2 of 2: Timeout: the attempt did not end within 1 s",
                attempts=2,
                history=("1 Failed Timeout", "2 Failed Timeout"),
            )
        },
        also=(was_stopped(), ran(2)),
    ),
    LifecycleCase(
        "attemptTimeoutSeconds of the queue",
        {"it": nap(30, "watch", retry={"maxAttempts": 1})},
        then={
            "it": failed(
                "RetriesExhausted",
                "attempt 1 of 1: Timeout: the attempt did not end within 2 s",
                attempts=1,
                history=("1 Failed Timeout",),
            )
        },
        on="strict",
    ),
    LifecycleCase(
        "attemptTimeoutSeconds by the operator's clock: a consumer that says nothing",
        {"it": task(attemptTimeoutSeconds=1, retry={"maxAttempts": 1})},
        when=(consumer_receives(),),
        then={
            "it": failed(
                "RetriesExhausted",
                f"attempt 1 of 1: {_SILENT}",
                attempts=1,
                history=("1 Failed Timeout",),
                epoch=1,
            )
        },
        also=(ended_after(11, "creation", slack=4),),
        on=no_workers(),
    ),
    LifecycleCase(
        "attemptTimeoutSeconds by the operator's clock: what comes later does not count",
        {"it": task(attemptTimeoutSeconds=1, retry={"backoff": {"initialSeconds": 4}})},
        when=(
            consumer_receives(),
            consumer_reports(0, "started"),
            reaches(running()),
            reaches(retrying("Timeout", f"attempt 1 of 3: {_SILENT}", epoch=1)),
            consumer_reports(0, "succeeded", result={"from": "the silent one"}),
            consumer_receives(),
            consumer_reports(1, "succeeded", result={"from": "the next"}),
        ),
        then={
            "it": succeeded(
                attempts=2,
                history=("1 Failed Timeout", "2 Succeeded"),
                epoch=1,
                result={"from": "the next"},
            )
        },
        on=no_workers(),
    ),
)

TIME_TO_LIVE = (
    LifecycleCase(
        "ttlSecondsAfterFinished of its own",
        {"it": task(ttlSecondsAfterFinished=3)},
        when=(reaches(succeeded(result={})), deleted_by_operator()),
    ),
    LifecycleCase(
        "ttlSecondsAfterFinished of the queue, given when the Task has ended already",
        {"it": task()},
        when=(
            broker_has(1),
            cancel(),
            reaches(ExpectedStatus(phase="Cancelled", reason="Cancelled", message="*")),
            edit_queue(taskDefaults={"ttlSecondsAfterFinished": 1}),
            deleted_by_operator(),
        ),
        on=no_workers(),
    ),
    LifecycleCase(
        "ttlSecondsAfterFinished waits for who depends on the Task",
        {
            # First, or the other may be deleted before anything depends on it.
            "dep": task(dependsOn=["it"], suspend=True),
            "it": task(ttlSecondsAfterFinished=0),
        },
        when=(
            reaches(succeeded(result={})),
            reaches(suspended(), "dep"),
            time_passes(2),
            resume("dep"),
            reaches(succeeded(resumed=True), "dep"),
            deleted_by_operator(),
        ),
        then={"dep": succeeded(resumed=True)},
    ),
)

CASES = START_AFTER + DEADLINE + TIMEOUT + TIME_TO_LIVE
