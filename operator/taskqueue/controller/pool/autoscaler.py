"""How many workers a queue should have: a pure decision that shows its inputs.

- It grows at once, and shrinks to the largest size wanted lately, never below the workers that
  were busy lately: a steady load that needs them would bring them back.
- Unknown is never zero. While the backlog is unknown the size is held. A backlog that is only a
  lower bound makes the pool grow, never shrink.
- The pool shrinks to zero only after the backlog was empty for a while; running tasks count as
  backlog.
- After any time without a wanted size (the operator's start, an unknown backlog, a pause), the
  present size counts as the one wanted then.
- maxReplicas applies to busy workers too: which workers may finish is not decided here.
- While the queue is drained only messages at the broker count: Tasks that wait in the operator will
  not be published.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from taskqueue.model.scaling import ScalingPolicy

#: Longer reasons from elsewhere are cut: an explanation is one line.
_REASON_LENGTH = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """The work of a queue at one moment.

    Attributes:
        backlog: waiting and running tasks; None: unknown.
        pending: the part of the backlog that is not published.
        error: why the backlog is unknown or, when it is a number, only a lower bound; "": it is
            exact.
        busy: workers that the running messages may keep busy.
        slots: attempts one worker runs at once, at least 1.
        mean_run_seconds: recent mean of attempts' run times; None: not measured.
    """

    backlog: int | None
    pending: int = 0
    error: str = ""
    busy: int = 0
    slots: int = 1
    mean_run_seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolObservation:
    """The state of the pool.

    Attributes:
        size: the one last decided; before that the present one.
        replicas: that exist, those being drained included.
        available: workers that are ready; None: not known, ``replicas`` is taken for it.
        ceiling: the most that can start at present; None: any number.
        ceiling_reason: why no more can.
    """

    size: int
    replicas: int
    available: int | None = None
    ceiling: int | None = None
    ceiling_reason: str = ""


@dataclass(frozen=True, slots=True)
class ScalingMemory:
    """What a decision must know about the past.

    Attributes:
        wanted: (time, size) of recently wanted sizes, newest last, sizes strictly decreasing: one
            that a later, larger one follows can never be the maximum again. Empty: not known.
        busy: the same for busy workers.
        last_backlog: when the backlog was last above zero, or not known to be zero; None: it is
            not known to be zero now.
        unknown_since: since when the backlog has been unknown; None: it is known.
    """

    wanted: tuple[tuple[float, int], ...] = field(default=())
    busy: tuple[tuple[float, int], ...] = field(default=())
    last_backlog: float | None = None
    unknown_since: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalingDecision:
    """How many workers there should be, and why.

    Attributes:
        replicas: the size.
        wanted: the size before the pool's ceiling.
        explanation: one line that starts with the size.
        memory: for the next decision.
        active: whether the size follows the backlog.
        inactive_reason: why it does not, in CamelCase: Paused, BacklogUnknown, StatisticsUnknown.
        load: the input.
        pool: the input.
    """

    replicas: int
    wanted: int
    explanation: str
    memory: ScalingMemory
    active: bool = True
    inactive_reason: str = ""
    load: Load
    pool: PoolObservation


@dataclass(frozen=True, slots=True)
class _Size:
    replicas: int
    why: str  # starts with the size


def decide(
    policy: ScalingPolicy, memory: ScalingMemory, load: Load, pool: PoolObservation, *, now: float
) -> ScalingDecision:
    """Decide the size of the pool.

    Args:
        policy: limits and target.
        memory: what the last decision returned.
        load: the work of the queue.
        pool: its present state.
        now: seconds on any monotonic clock.
    """
    kept, inactive = ScalingMemory(), ""
    if policy.paused_replicas is not None:
        size = wanted = _paused(policy.paused_replicas)
        inactive = "Paused"
    else:
        if load.backlog is None:
            since = now if memory.unknown_since is None else memory.unknown_since
            kept, inactive = ScalingMemory(unknown_since=since), "BacklogUnknown"
            size = _without_backlog(policy, load, pool, unknown_seconds=now - since)
        elif load.error:
            inactive = "StatisticsUnknown"
            size = _at_least(_wanted(policy, load, load.backlog), policy, load, pool)
        else:
            wish = _wanted(policy, load, load.backlog)
            kept = _remember(policy, memory, load, pool, wish.replicas, now=now)
            size = _stabilized(wish, policy, kept, pool)
            size = _not_yet_zero(size, policy, kept, pool, now=now)
        size = _down_in_steps(_above_busy(size, policy, kept, load, pool), policy, pool)
        wanted = _up_in_steps(size, policy, pool)
        size = _below_ceiling(wanted, pool)
    return ScalingDecision(
        replicas=size.replicas,
        wanted=wanted.replicas,
        explanation=size.why,
        memory=kept,
        active=not inactive,
        inactive_reason=inactive,
        load=load,
        pool=pool,
    )


# What is wanted


def _wanted(policy: ScalingPolicy, load: Load, backlog: int) -> _Size:
    """Return the size the backlog asks for, within the limits."""
    kind = "backlog"
    if policy.draining:
        backlog, kind = _counted(policy, load), "published"
    size, formula = policy.target.replicas_for(
        backlog, kind=kind, slots=load.slots, mean_run_seconds=load.mean_run_seconds
    )
    limited = _within_limits(policy, size)
    if limited < size:
        formula += ", capped by maxReplicas"
    elif limited > size:
        formula += ", raised to minReplicas"
    if policy.draining:
        formula += ", drained by stopPolicy HoldAndDrain"
    return _Size(limited, f"{limited} = {formula}")


def _paused(replicas: int) -> _Size:
    return _Size(replicas, f"{replicas} = spec.workers.replicas, scaling is paused")


def _without_backlog(
    policy: ScalingPolicy, load: Load, pool: PoolObservation, *, unknown_seconds: float
) -> _Size:
    """Hold the size, or use the fallback once the backlog has been unknown for long."""
    why = "the backlog is unknown" + _because(load.error)
    wish, name = pool.size, ""
    # A drained pool must not grow to its fallback.
    fallback = None if policy.draining else policy.fallback_replicas
    if fallback is not None and unknown_seconds >= policy.stabilization_seconds:
        wish, name = fallback, "fallback.replicas"
    size = _within_limits(policy, wish)
    if size != wish:
        name = "maxReplicas" if size < wish else "minReplicas"
    return _Size(size, f"{size} = {name}, {why}" if name else f"{size} held: {why}")


def _at_least(wish: _Size, policy: ScalingPolicy, load: Load, pool: PoolObservation) -> _Size:
    """Do not shrink by a backlog that is only a lower bound."""
    doubt = "the backlog may be larger" + _because(load.error)
    held = min(pool.size, policy.max_replicas)
    if wish.replicas >= held:
        return _Size(wish.replicas, f"{wish.why}, {doubt}")
    return _Size(held, f"{held} held over {wish.why}, {doubt}")


def _within_limits(policy: ScalingPolicy, size: int) -> int:
    low = 0 if policy.draining else policy.min_replicas
    return min(max(size, low), policy.max_replicas)


# Shrinking in time


def _remember(
    policy: ScalingPolicy,
    memory: ScalingMemory,
    load: Load,
    pool: PoolObservation,
    wish: int,
    *,
    now: float,
) -> ScalingMemory:
    keep = policy.stabilization_seconds
    empty = memory.last_backlog is not None and _counted(policy, load) == 0
    return ScalingMemory(
        wanted=_peaks(memory.wanted or ((now, pool.size),), wish, now=now, keep=keep),
        busy=_peaks(memory.busy, load.busy, now=now, keep=keep),
        last_backlog=memory.last_backlog if empty else now,
    )


def _peaks(
    past: tuple[tuple[float, int], ...], size: int, *, now: float, keep: float
) -> tuple[tuple[float, int], ...]:
    """Add a size, and drop those that can no longer be the largest within ``keep`` seconds."""
    return (*((at, old) for at, old in past if now - at < keep and old > size), (now, size))


def _counted(policy: ScalingPolicy, load: Load) -> int:
    backlog = load.backlog or 0
    return max(backlog - load.pending, 0) if policy.draining else backlog


def _stabilized(
    wish: _Size, policy: ScalingPolicy, memory: ScalingMemory, pool: PoolObservation
) -> _Size:
    largest = max(size for _, size in memory.wanted)
    size = min(largest, pool.size, policy.max_replicas)
    if size <= wish.replicas:
        return wish
    seconds = f"{policy.stabilization_seconds:g} s of stabilization"
    return _Size(size, f"{size} held for {seconds}, then {wish.why}")


def _not_yet_zero(
    size: _Size, policy: ScalingPolicy, memory: ScalingMemory, pool: PoolObservation, *, now: float
) -> _Size:
    last = min(pool.size, policy.max_replicas, 1)
    idle = now - (now if memory.last_backlog is None else memory.last_backlog)
    if size.replicas >= last or idle >= policy.idle_seconds_before_zero:
        return size
    seconds = f"{policy.idle_seconds_before_zero:g} s"
    return _Size(last, f"{last} held until idle for {seconds}, then {size.why}")


# Bounds of one move


def _above_busy(
    size: _Size, policy: ScalingPolicy, memory: ScalingMemory, load: Load, pool: PoolObservation
) -> _Size:
    """Keep workers that are, or lately were, busy; they never make the pool grow."""
    limit = min(pool.size, policy.max_replicas)
    floor = min(load.busy, limit)
    lately = min(max((busy for _, busy in memory.busy), default=0), limit)
    if size.replicas >= max(floor, lately):
        return size
    if floor >= lately:
        return _Size(floor, f"{floor} held by running tasks, then {size.why}")
    seconds = f"{policy.stabilization_seconds:g} s"
    return _Size(lately, f"{lately} held, all busy within the last {seconds}, then {size.why}")


def _down_in_steps(size: _Size, policy: ScalingPolicy, pool: PoolObservation) -> _Size:
    if policy.down_step is None:
        return size
    least = min(pool.size, pool.replicas - policy.down_step)
    if size.replicas >= least:
        return size
    step = f"{policy.down_step} drained at a time"
    return _Size(least, f"{least} first, with {step}, then {size.why}")


def _up_in_steps(size: _Size, policy: ScalingPolicy, pool: PoolObservation) -> _Size:
    if policy.up_step is None:
        return size
    available = pool.replicas if pool.available is None else pool.available
    most = max(pool.size, available + policy.up_step)
    if size.replicas <= most:
        return size
    step = f"{policy.up_step} started at a time"
    return _Size(most, f"{most} first, with {step}, then {size.why}")


def _below_ceiling(size: _Size, pool: PoolObservation) -> _Size:
    if pool.ceiling is None or size.replicas <= pool.ceiling:
        return size
    return _Size(
        pool.ceiling,
        f"{pool.ceiling} is all that can be had{_because(pool.ceiling_reason)}; wanted: {size.why}",
    )


def _because(reason: str) -> str:
    line = " ".join(reason.split())
    if len(line) > _REASON_LENGTH:
        line = f"{line[: _REASON_LENGTH - 1]}…"
    return f": {line}" if line else ""
