"""What is wrong with a pool, and how far it may grow meanwhile.

- Failing pods, each for its own reason: when at least half of the pods fail, the pool grows no
  further, because more of the same would fail too. It recovers as they do. Between two crashes a
  container is well for a moment, so a restarted one counts as failing for a while longer.
- Pods that no node takes are reported but do not limit the pool: cluster autoscalers add nodes for
  pods that wait for one.
- Pods that are refused, by a ResourceQuota or otherwise: the pool is held at the present number,
  which ends the controller's own attempts and with them its report of the refusal. After a pause
  the limit is lifted for one try; each failed try doubles the pause.
- A pod that is starting is healthy.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from taskqueue.model.pod import Pod, Trouble

#: A restarted pod is healthy after this long without trouble.
RECOVERY_SECONDS = 10.0

#: Pause before the next try when pods are refused: the first, and the longest.
FIRST_PAUSE_SECONDS = 10.0
LONGEST_PAUSE_SECONDS = 60.0

#: How long a try lasts: until then the controller may still report the time before.
TRY_SECONDS = 3.0

_QUOTA = "exceeded quota"


@dataclass(frozen=True, slots=True, kw_only=True)
class PodRefusal:
    """A refusal of new pods.

    Attributes:
        message: of whoever refused them.
        limit: the number of pods there were.
        pause: how long no more are requested, in seconds.
        since: when the pause began.
    """

    message: str
    limit: int
    pause: float
    since: float

    @property
    def ends(self) -> float:
        """When the pause ends and the try begins."""
        return self.since + self.pause


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthMemory:
    """What an assessment must know about the past.

    Attributes:
        troubles: by uid, the last trouble of a pod and when it was last seen to have it.
        refusal: the last one; None: none, or it is over.
    """

    troubles: Mapping[str, tuple[Trouble, float]] = field(default_factory=dict)
    refusal: PodRefusal | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolHealth:
    """How healthy a pool is.

    Attributes:
        reason: in CamelCase, for a condition; "": the pool is healthy.
        message: one line for people.
        ceiling: the most pods worth requesting; None: any number.
        memory: for the next assessment.
        next_check: when to assess again even if neither pods, refusals nor sizes change; None:
            only when they do.
    """

    reason: str = ""
    message: str = ""
    ceiling: int | None = None
    memory: HealthMemory
    next_check: float | None = None


def assess(
    memory: HealthMemory,
    *,
    pods: Iterable[Pod],
    refused: str,
    replicas: int,
    wanted: int,
    available: int,
    now: float,
) -> PoolHealth:
    """Assess a pool.

    Args:
        memory: what the last assessment returned.
        pods: of the pool, as listed.
        refused: what the controller reports about pods that it could not create; "": nothing.
        replicas: the size in place.
        wanted: the size wanted, before any ceiling.
        available: workers that are available.
        now: seconds on any monotonic clock.
    """
    active = [pod for pod in pods if pod.active]
    troubles = _troubles(memory.troubles, active, now)
    refusal = _refusal(memory.refusal, refused, present=len(active), wanted=wanted, now=now)
    failing = [pod for pod in active if pod.uid in troubles]
    ceilings, moments = [], []
    for pod in failing:
        if pod.trouble is None:
            moments.append(troubles[pod.uid][1] + RECOVERY_SECONDS)
    placed = [pod for pod in active if pod.assigned or pod.uid not in troubles]
    broken = [pod for pod in placed if pod.uid in troubles]
    stuck = bool(broken) and 2 * len(broken) >= len(placed)
    if stuck:
        ceilings.append(replicas)
    if refusal is not None:
        if now < refusal.ends:
            ceilings.append(refusal.limit)
            moments.append(refusal.ends)
        else:
            moments.append(refusal.ends + TRY_SECONDS)
    reason, why = "", ""
    if failing and (stuck or refusal is None):
        reason, why = _most_frequent(broken if stuck else failing, troubles)
    elif refusal is not None:
        reason = "QuotaExceeded" if _QUOTA in refusal.message else "ReplicaFailure"
        why = f"more pods are refused, the operator tries again: {refusal.message}"
    return PoolHealth(
        reason=reason,
        message=f"{available} of {wanted} workers are available; {why}" if reason else "",
        ceiling=min(ceilings, default=None),
        memory=HealthMemory(troubles=troubles, refusal=refusal),
        next_check=min((moment for moment in moments if moment > now), default=None),
    )


def _troubles(
    before: Mapping[str, tuple[Trouble, float]], pods: Sequence[Pod], now: float
) -> Mapping[str, tuple[Trouble, float]]:
    troubles = {}
    for pod in pods:
        if pod.trouble is not None:
            troubles[pod.uid] = pod.trouble, now
        elif pod.uid in before and pod.restarts > 0:
            trouble, seen = before[pod.uid]
            if now < seen + RECOVERY_SECONDS:  # computed like next_check
                troubles[pod.uid] = trouble, seen
    return troubles


def _refusal(
    before: PodRefusal | None, refused: str, *, present: int, wanted: int, now: float
) -> PodRefusal | None:
    if before is None:
        if not refused:
            return None
        return PodRefusal(message=refused, limit=present, pause=FIRST_PAUSE_SECONDS, since=now)
    if now < before.ends:
        # Fewer than the limit: a free place may be filled again.
        return before
    if not refused and (before.limit < present >= wanted or now >= before.ends + TRY_SECONDS):
        return None
    if now < before.ends + TRY_SECONDS:
        return before
    # The try has ended, with more pods or without.
    further = present > before.limit
    pause = FIRST_PAUSE_SECONDS if further else min(2 * before.pause, LONGEST_PAUSE_SECONDS)
    return PodRefusal(message=refused, limit=present, pause=pause, since=now)


def _most_frequent(
    failing: Sequence[Pod], troubles: Mapping[str, tuple[Trouble, float]]
) -> tuple[str, str]:
    """Return the most frequent reason, and the message of the first pod with it."""
    counts = Counter(troubles[pod.uid][0].reason for pod in failing)
    reason = min(counts, key=lambda one: (-counts[one], one))
    pod = min(
        (pod for pod in failing if troubles[pod.uid][0].reason == reason), key=lambda pod: pod.name
    )
    others = len(failing) - 1
    more = f"; {others} more fail" if others > 1 else "; one more fails" if others else ""
    return reason, f"pod {pod.name}: {reason}: {troubles[pod.uid][0].message}{more}"
