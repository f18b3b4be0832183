"""Failed attempts, lost workers, and TaskQueues that are missing, deleted or lost."""

from tests.e2e.checks import due_after, ran, waited, waited_exactly, was_never
from tests.e2e.lifecycle_case import (
    LifecycleCase,
    blocked,
    cancelled,
    failed,
    flaky,
    nap,
    no_workers,
    retrying,
    running,
    succeeded,
    task,
    workers,
)
from tests.e2e.steps import (
    broker_has,
    broker_loses_queue,
    cancel,
    consumer_receives,
    consumer_reports,
    create,
    create_queue,
    delete_queue,
    late_status,
    reaches,
    refused,
    time_passes,
    worker_killed,
    workers_added,
    workers_rolled_out,
)

_AWAY = "ConnectionError: the network is away at attempt"


def _failures(*attempts: int) -> tuple[str, ...]:
    return tuple(f"{number} Failed ConnectionError" for number in attempts)


_GROWING = flaky(4, retry={"backoff": {"initialSeconds": 0.5, "factor": 2, "maxSeconds": 1.5}})
_ALIKE = ("it", "two", "three")

RETRY = (
    LifecycleCase(
        "retry until it succeeds",
        {"it": flaky(2)},
        then={
            "it": succeeded(
                attempts=3, history=(*_failures(1, 2), "3 Succeeded"), result={"attempt": 3}
            )
        },
        also=(ran(3),),
    ),
    LifecycleCase(
        "retry.maxAttempts",
        {"it": flaky(9, retry={"maxAttempts": 2})},
        then={
            "it": failed(
                "RetriesExhausted",
                f"attempt 2 of 2: {_AWAY} 2",
                attempts=2,
                history=_failures(1, 2),
            )
        },
        also=(ran(2),),
    ),
    LifecycleCase(
        "retry: of more than ten attempts the last ten are kept",
        {"it": flaky(11, wait=0)},
        then={"it": succeeded(attempts=12, history=(*_failures(*range(3, 12)), "12 Succeeded"))},
        also=(ran(12),),
    ),
    LifecycleCase(
        "retry.nonRetryable",
        {"it": flaky(9, retry={"nonRetryable": ["Other", "ConnectionError"]})},
        then={
            "it": failed(
                "NonRetryable", f"attempt 1 of 10: {_AWAY} 1", attempts=1, history=_failures(1)
            )
        },
        also=(ran(1),),
    ),
    LifecycleCase(
        "retry: the handler raises Fail",
        {"it": task("give_up")},
        then={
            "it": failed(
                "NonRetryable",
                "attempt 1 of 3: NotFound: there is no such page",
                attempts=1,
                history=("1 Failed NotFound",),
            )
        },
    ),
    LifecycleCase(
        "retry: the handler raises Retry and says when",
        {"it": task("rate_limited", {"after": 3}, retry={"backoff": {"initialSeconds": 600}})},
        when=(
            reaches(retrying("Retry", "attempt 1 of 3: Retry: the rate limit is reached")),
            due_after(3),
        ),
        then={"it": succeeded(attempts=2, history=("1 Failed Retry", "2 Succeeded"), result=None)},
        also=(waited(3),),
        runs_last=True,
    ),
    LifecycleCase(
        "retry.backoff grows by its factor up to maxSeconds",
        {"it": _GROWING},
        when=(
            time_passes(0.3),
            create("two", _GROWING),
            time_passes(0.4),
            create("three", _GROWING),
        ),
        then={
            role: succeeded(attempts=5, history=(*_failures(1, 2, 3, 4), "5 Succeeded"))
            for role in _ALIKE
        },
        also=(
            *(waited(0.5, 1, 1.5, 1.5, role=role) for role in _ALIKE),
            waited_exactly(0.5, 1, 1.5, 1.5, roles=_ALIKE),
        ),
        runs_last=True,
    ),
    LifecycleCase(
        "retry of the queue",
        {"it": task("flaky", {"failures": 9}, retry={"nonRetryable": []})},
        when=(
            reaches(retrying("ConnectionError", f"attempt 1 of 2: {_AWAY} 1")),
            due_after(2.5),
        ),
        then={
            "it": failed(
                "RetriesExhausted",
                f"attempt 2 of 2: {_AWAY} 2",
                attempts=2,
                history=_failures(1, 2),
            )
        },
        also=(waited(2.5),),
        runs_last=True,
        on="strict",
    ),
    LifecycleCase(
        "retry.nonRetryable of the queue",
        {"it": task("flaky", {"failures": 1})},
        then={
            "it": failed(
                "NonRetryable", f"attempt 1 of 2: {_AWAY} 1", attempts=1, history=_failures(1)
            )
        },
        on="strict",
    ),
    LifecycleCase(
        "retry: a field of its own leaves the queue's others",
        {
            "it": task(
                "flaky",
                {"failures": 2},
                retry={"maxAttempts": 3, "nonRetryable": [], "backoff": {"factor": 1.2}},
                activeDeadlineSeconds=60,
            )
        },
        when=(reaches(retrying("ConnectionError", f"attempt 1 of 3: {_AWAY} 1")), due_after(2.5)),
        then={"it": succeeded(attempts=3, history=(*_failures(1, 2), "3 Succeeded"))},
        also=(waited(2.5, 3),),
        runs_last=True,
        on="strict",
    ),
)

LOSS = (
    LifecycleCase(
        "worker killed: another runs the attempt, which keeps its number",
        {"it": nap(10)},
        when=(reaches(running()), worker_killed()),
        then={"it": succeeded()},
        also=(ran(1), was_never("Retrying")),
        on=workers(2, slots=1),
    ),
    LifecycleCase(
        "maxDeliveries: an attempt that kills its workers is given up",
        {"it": task("die", maxDeliveries=1, retry={"maxAttempts": 1})},
        then={
            "it": failed(
                "WorkerLost",
                "attempt 1 of 1: WorkerLost: the attempt reached its maxDeliveries *",
                attempts=1,
                history=("1 Failed WorkerLost",),
            )
        },
        on=workers(2, slots=1),
    ),
    LifecycleCase(
        "maxDeliveries of the queue, and each attempt starts with all of them",
        {"it": task("die")},
        then={
            "it": failed(
                "WorkerLost",
                "attempt 2 of 2: WorkerLost: the attempt reached its maxDeliveries *",
                attempts=2,
                history=("1 Failed WorkerLost", "2 Failed WorkerLost"),
            )
        },
        on=workers(3, slots=1, taskDefaults={"maxDeliveries": 1, "retry": {"maxAttempts": 2}}),
    ),
)

QUEUES = (
    LifecycleCase(
        "TaskQueue missing, then created",
        {"it": task()},
        when=(
            reaches(
                blocked(
                    "QueueNotFound",
                    "spec.queue: there is no TaskQueue {ns}/{q}: create it, and the Task continues",
                )
            ),
            create_queue(scaling={"maxReplicas": 1}),
        ),
        then={"it": succeeded(result={})},
        on=None,
    ),
    LifecycleCase(
        "TaskQueue deleted while Tasks wait at the broker",
        {"it": nap(0.1), "other": nap(0.1)},
        when=(
            broker_has(2),
            delete_queue(),
            reaches(blocked("QueueNotFound", "*there is no TaskQueue {ns}/{q}*")),
            reaches(blocked("QueueNotFound", "*there is no TaskQueue {ns}/{q}*"), "other"),
            create_queue(scaling={"minReplicas": 1, "maxReplicas": 1}),
        ),
        then={"it": succeeded(), "other": succeeded()},
        also=(ran(1), ran(1, "other")),
        on=no_workers(),
    ),
    LifecycleCase(
        "TaskQueue deleted, a worker has time to end its Task: the outcome counts",
        {"it": nap(10)},
        when=(reaches(running()), delete_queue()),
        then={"it": succeeded()},
        also=(was_never("Blocked"),),
        on=workers(slots=1, grace=30),
    ),
    LifecycleCase(
        "TaskQueue deleted, a worker has no time to end its Task: it is run again",
        {"it": nap(20)},
        when=(
            reaches(running()),
            delete_queue(),
            reaches(blocked("QueueNotFound", "*there is no TaskQueue {ns}/{q}*", attempts=1)),
            create_queue(scaling={"maxReplicas": 1}),
        ),
        then={"it": succeeded()},
        on=workers(slots=1),
    ),
    LifecycleCase(
        "TaskQueue without workers that know the handler, then with some",
        {"it": task("newcomer")},
        when=(
            reaches(blocked("UnknownHandler", "spec.handler: no handler is called 'newcomer' *")),
            workers_rolled_out(),
        ),
        then={"it": succeeded(result={"known": True})},
        on=workers(),
    ),
    LifecycleCase(
        "handler nobody knows, then cancelled",
        {"it": task("nobody")},
        when=(
            reaches(
                blocked("UnknownHandler", "spec.handler: no handler is called 'nobody' here; *")
            ),
            cancel(),
        ),
        then={"it": cancelled()},
    ),
    LifecycleCase(
        "broker loses the queue: it is declared again, and the Tasks are published again",
        {"it": nap(0.1), "other": nap(0.1)},
        when=(broker_has(2), broker_loses_queue(), broker_has(2), workers_added()),
        then={"it": succeeded(), "other": succeeded()},
        also=(ran(1), ran(1, "other")),
        on=no_workers(),
    ),
)

LATE = (
    LifecycleCase(
        "late writer: a finished Task is not made unfinished",
        {"it": task()},
        when=(
            reaches(succeeded(result={})),
            refused(late_status(phase="Running"), "the phase of a finished Task never changes"),
            refused(late_status(phase="Failed"), "the phase of a finished Task never changes"),
            refused(late_status(completionTime=None), "completionTime is never cleared"),
        ),
        then={"it": succeeded(result={})},
    ),
    LifecycleCase(
        "late writer: attempts do not decrease",
        {"it": flaky(1, wait=4)},
        when=(
            reaches(retrying("ConnectionError", f"attempt 1 of 2: {_AWAY} 1")),
            refused(late_status(phase="Running", attempts=0), "attempts never decrease"),
        ),
        then={"it": succeeded(attempts=2, history=(*_failures(1), "2 Succeeded"))},
    ),
    LifecycleCase(
        "late report: an outcome reported twice counts once",
        {"it": task()},
        when=(
            consumer_receives(),
            consumer_reports(0, "failed", error={"type": "Once", "message": "", "retryable": True}),
            consumer_reports(0, "failed", error={"type": "Once", "message": "", "retryable": True}),
            consumer_receives(),
            consumer_reports(0, "succeeded", result={"from": "the first attempt"}),
            consumer_reports(1, "succeeded", result={"from": "the second"}),
        ),
        then={
            "it": succeeded(
                attempts=2, history=("1 Failed Once", "2 Succeeded"), result={"from": "the second"}
            )
        },
        on=no_workers(),
    ),
    LifecycleCase(
        "late report: a forged token counts for nothing",
        {"it": task()},
        when=(
            consumer_receives(),
            consumer_reports(0, "succeeded", token="forged", result={"from": "somebody"}),
            create("other", task()),
            consumer_receives(),
            consumer_reports(1, "succeeded", result={"from": "its worker"}),
            reaches(succeeded(result={"from": "its worker"}), "other"),
            consumer_reports(0, "succeeded", result={"from": "its worker"}),
        ),
        then={"it": succeeded(result={"from": "its worker"})},
        on=no_workers(),
    ),
)

CASES = RETRY + LOSS + QUEUES + LATE
