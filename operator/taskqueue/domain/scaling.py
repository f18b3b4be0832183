"""How many workers a queue should have: a pure decision with its inputs in sight.

Unknown is never zero: without a backlog the size is held. A running task counts as backlog, so the
pool never reaches zero while one runs. While the queue is drained only what is at the broker
counts: what waits in the operator will not be published.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalingPolicy:
    """What the TaskQueue asks for.

    Attributes:
        min_replicas: never fewer.
        max_replicas: never more.
        tasks_per_replica: backlog one worker is meant to have.
        stabilization_seconds: the pool shrinks to the largest size wanted within this time.
        idle_seconds_before_zero: how long the backlog must be empty before the last worker goes.
        paused_replicas: the size while scaling is paused, None when it is not.
        draining: nothing new is published, and the pool is to go as what is published ends.
    """

    min_replicas: int = 0
    max_replicas: int = 10
    tasks_per_replica: int = 5
    stabilization_seconds: float = 30.0
    idle_seconds_before_zero: float = 60.0
    paused_replicas: int | None = None
    draining: bool = False


@dataclass(frozen=True, slots=True)
class ScalingMemory:
    """What a decision must know of the past.

    Attributes:
        wanted: (time, size) of recent wishes, newest last, sizes strictly decreasing: a wish
            overtaken by a later, larger one can never be the maximum again.
        last_backlog: when the backlog was last seen above zero; None: never yet.
    """

    wanted: tuple[tuple[float, int], ...] = field(default=())
    last_backlog: float | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """How many workers there should be, and why in one line."""

    replicas: int
    explanation: str
    memory: ScalingMemory
    active: bool = True


def decide(
    policy: ScalingPolicy,
    memory: ScalingMemory,
    *,
    now: float,
    backlog: int | None,
    current: int,
    busy: int = 0,
    pending: int = 0,
) -> Decision:
    """Decide the size of the pool.

    Args:
        policy: limits and target.
        memory: what the last decision returned.
        now: seconds on any monotonic clock.
        backlog: waiting and running tasks, or None when unknown.
        current: the size last asked for.
        busy: workers that running tasks may keep busy; the pool does not shrink below.
        pending: the part of the backlog that is not published.
    """
    if policy.paused_replicas is not None:
        size = policy.paused_replicas
        return Decision(
            size, f"{size} = spec.workers.replicas, scaling is paused", memory, active=False
        )
    if backlog is None:
        return Decision(current, f"{current} held: the backlog is unknown", memory, active=False)

    kind, low = "backlog", policy.min_replicas
    if policy.draining:
        backlog, kind, low = max(backlog - pending, 0), "published", 0
    last_backlog = now if backlog > 0 or memory.last_backlog is None else memory.last_backlog
    wish = math.ceil(backlog / policy.tasks_per_replica)
    wish_text = f"ceil({backlog} {kind} / {policy.tasks_per_replica} per replica)"
    size = min(max(wish, low), policy.max_replicas)
    if wish > policy.max_replicas:
        wish_text += ", capped by maxReplicas"
    elif wish < low:
        wish_text += ", raised to minReplicas"
    if policy.draining:
        wish_text += ", drained by stopPolicy HoldAndDrain"

    # After a start of the operator the size found counts as wanted: nothing shrinks at once.
    past = memory.wanted or ((now, current),)
    wanted = _remember(past, now, size, keep=policy.stabilization_seconds)
    kept = ScalingMemory(wanted=wanted, last_backlog=last_backlog)
    floor = min(busy, current, policy.max_replicas)
    if floor > size:
        size, wish_text = floor, f"{wish_text}, held at {floor} by running tasks"
    if size >= current:
        return Decision(size, f"{size} = {wish_text}", kept)

    stabilized = min(current, max(replicas for _, replicas in wanted))
    stabilized = min(stabilized, policy.max_replicas)
    if stabilized > size:
        return Decision(
            stabilized,
            f"{stabilized} held for {policy.stabilization_seconds:g} s of stabilization, then "
            f"{size} = {wish_text}",
            kept,
        )
    if size == 0 and now - last_backlog < policy.idle_seconds_before_zero:
        return Decision(
            1, f"1 held until idle for {policy.idle_seconds_before_zero:g} s, then 0", kept
        )
    return Decision(size, f"{size} = {wish_text}", kept)


def _remember(
    wanted: tuple[tuple[float, int], ...], now: float, size: int, *, keep: float
) -> tuple[tuple[float, int], ...]:
    recent = [(at, old) for at, old in wanted if now - at < keep and old > size]
    return (*recent, (now, size))
