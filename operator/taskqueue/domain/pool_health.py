"""What keeps a worker pool from being as large as it should be: pure, from its pods.

- A pod's own reason is told. Pods that just start are no trouble.
- A pool half of whose pods fail does not grow: more of the same would fail too. It goes on growing
  as soon as they are well.
- When pods are refused (a quota, an admission policy) as many as there are is all that can be had.
  That is tried again after a pause that doubles, and not hammered at.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from taskqueue.domain.pods import Pod

#: Pauses between tries to have pods that were refused, in seconds.
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 10.0, 60.0
#: A try that was not refused within this time has succeeded, in seconds.
TRY_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class HealthMemory:
    """What an assessment must know of the past.

    Attributes:
        refused: the words of the last refusal; "": none lately.
        pause: seconds from it to the next try.
        try_at: when that is.
    """

    refused: str = ""
    pause: float = 0.0
    try_at: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """How a pool is.

    Attributes:
        reason: why it is not well, in CamelCase; "": it is.
        message: one line for people.
        ceiling: the most workers that can be had just now; None: any number.
        memory: for the next assessment.
    """

    reason: str = ""
    message: str = ""
    ceiling: int | None = None
    memory: HealthMemory = field(default_factory=HealthMemory)


def assess(
    memory: HealthMemory,
    *,
    pods: Iterable[Pod],
    refused: str,
    replicas: int,
    available: int,
    now: float,
) -> Health:
    """Say how the pool is.

    Args:
        memory: what the last assessment returned.
        pods: of the pool.
        refused: why its controller may create no pods, in the API server's words; "": it may.
        replicas: the size in place.
        available: workers that are ready.
        now: seconds on any monotonic clock.
    """
    active = [pod for pod in pods if pod.active]
    memory = _remember(memory, refused, now)
    if memory.refused:
        return _refused(memory, len(active), available, now)
    failing = [(pod, pod.trouble) for pod in active if pod.trouble is not None and not pod.ready]
    if not failing:
        return Health(memory=memory)
    reason = Counter(trouble.reason for _, trouble in failing).most_common(1)[0][0]
    pod, trouble = next(one for one in failing if one[1].reason == reason)
    return Health(
        reason=reason,
        message=f"{available} of {replicas} workers are available; pod {pod.name}: {reason}: "
        f"{trouble.message}",
        ceiling=replicas if 2 * len(failing) >= len(active) else None,
        memory=memory,
    )


def _remember(memory: HealthMemory, refused: str, now: float) -> HealthMemory:
    if refused and now >= memory.try_at:
        pause = min(max(2 * memory.pause, FIRST_PAUSE_SECONDS), LONGEST_PAUSE_SECONDS)
        return HealthMemory(refused=refused, pause=pause, try_at=now + pause)
    if not refused and now >= memory.try_at + TRY_SECONDS:
        return HealthMemory()
    return memory


def _refused(memory: HealthMemory, active: int, available: int, now: float) -> Health:
    quota = "exceeded quota" in memory.refused
    return Health(
        reason="QuotaExceeded" if quota else "ReplicaFailure",
        message=f"{available} workers are available, and no more pods are admitted: "
        f"{memory.refused}; tried again after {memory.pause:g} s",
        ceiling=active if now < memory.try_at else None,
        memory=memory,
    )
