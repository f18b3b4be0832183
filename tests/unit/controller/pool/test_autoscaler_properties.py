"""What holds of every decision, whatever the policy and whatever is seen of load and pool."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace

from hypothesis import given
from hypothesis import strategies as st

from taskqueue.controller.pool.autoscaler import (
    Load,
    PoolObservation,
    ScalingDecision,
    ScalingMemory,
    decide,
)
from taskqueue.model.scaling import BacklogTarget, DrainTimeTarget, ScalingPolicy

SIZES = st.integers(0, 12)
TARGETS = st.builds(BacklogTarget, st.integers(1, 7)) | st.builds(
    DrainTimeTarget, seconds=st.floats(1, 100), tasks_per_replica=st.integers(1, 7)
)


@st.composite
def policies(draw: st.DrawFn) -> ScalingPolicy:
    high = draw(SIZES)
    return ScalingPolicy(
        min_replicas=draw(st.integers(0, high)),
        max_replicas=high,
        target=draw(TARGETS),
        up_step=draw(st.none() | st.integers(1, 4)),
        down_step=draw(st.none() | st.integers(1, 4)),
        stabilization_seconds=draw(st.sampled_from([0.0, 5.0, 30.0])),
        idle_seconds_before_zero=draw(st.sampled_from([0.0, 5.0, 60.0])),
        fallback_replicas=draw(st.none() | st.integers(1, 12)),
        draining=draw(st.booleans()),
    )


@st.composite
def loads(draw: st.DrawFn) -> Load:
    seen = draw(st.sampled_from(["exact"] * 6 + ["a lower bound", "unknown"]))
    backlog = draw(st.just(0) | st.integers(0, 60))
    return Load(
        backlog=None if seen == "unknown" else backlog,
        pending=draw(st.integers(0, backlog)),
        error="" if seen == "exact" else "unreadable\nfor a while",
        busy=draw(SIZES),
        slots=draw(st.integers(1, 3)),
        mean_run_seconds=draw(st.none() | st.floats(0, 200)),
    )


@dataclass(frozen=True)
class Moment:
    """What is seen at one moment, and how the pool differs from the size last decided."""

    load: Load
    seconds: float
    replicas_less: int
    unavailable: int
    ceiling: int | None

    def pool(self, size: int) -> PoolObservation:
        replicas = max(size - self.replicas_less, 0)
        available = max(replicas - self.unavailable, 0)
        return PoolObservation(
            size=size, replicas=replicas, available=available, ceiling=self.ceiling
        )


MOMENTS = st.builds(
    Moment,
    load=loads(),
    seconds=st.sampled_from([0.0, 1.0, 4.0, 40.0]),
    replicas_less=st.integers(-4, 4),
    unavailable=st.integers(0, 4),
    ceiling=st.none() | SIZES,
)
LINES = st.lists(MOMENTS, min_size=1, max_size=8)


@dataclass
class Line:
    """Runs the decision along a line, and keeps the whole past beside the memory."""

    policy: ScalingPolicy
    size: int
    now: float = 0.0
    memory: ScalingMemory = field(default_factory=ScalingMemory)
    #: Every (time, size) wanted since the last moment that did not tell.
    past: list[tuple[float, int]] = field(default_factory=list)
    #: When the backlog was last not seen to be zero; None: never seen to be zero yet.
    last_backlog: float | None = None

    def step(self, moment: Moment) -> ScalingDecision:
        self.now += moment.seconds
        load, pool = moment.load, moment.pool(self.size)
        self._record(load)
        decision = decide(self.policy, self.memory, load, pool, now=self.now)
        self.memory, self.size = decision.memory, decision.replicas
        return decision

    def _record(self, load: Load) -> None:
        if load.backlog is None or load.error:
            self.past, self.last_backlog = [], None
            return
        if not self.past:
            self.past.append((self.now, self.size))
        self.past.append((self.now, wanted(self.policy, load)))
        if counted(self.policy, load) > 0 or self.last_backlog is None:
            self.last_backlog = self.now


def counted(policy: ScalingPolicy, load: Load) -> int:
    assert load.backlog is not None
    return load.backlog - load.pending if policy.draining else load.backlog


def wanted(policy: ScalingPolicy, load: Load) -> int:
    """Return the size a load asks for: what a pool that has never been would get."""
    unlimited = replace(policy, up_step=None)
    exact = replace(load, error="")
    return decide(
        unlimited, ScalingMemory(), exact, PoolObservation(size=0, replicas=0), now=0.0
    ).replicas


def least(*bounds: int | None) -> int:
    return min(bound for bound in bounds if bound is not None)


@given(policies(), SIZES, LINES)
def test_busy_workers_stay_within_the_limits(
    policy: ScalingPolicy, size: int, moments: list[Moment]
) -> None:
    line = Line(policy, size)
    for moment in moments:
        before = line.size
        after = line.step(moment).replicas
        assert after >= least(moment.load.busy, before, policy.max_replicas, moment.ceiling)


@given(policies(), SIZES, LINES)
def test_what_is_not_known_shrinks_nothing(
    policy: ScalingPolicy, size: int, moments: list[Moment]
) -> None:
    line = Line(replace(policy, fallback_replicas=None), size)
    for moment in moments:
        before = line.size
        decision = line.step(moment)
        if moment.load.backlog is not None and not moment.load.error:
            assert decision.active
            continue
        assert not decision.active
        assert decision.replicas >= least(before, policy.max_replicas, moment.ceiling)


@given(policies(), SIZES, LINES)
def test_no_size_above_what_is_allowed_and_what_can_be_had(
    policy: ScalingPolicy, size: int, moments: list[Moment]
) -> None:
    line = Line(policy, size)
    for moment in moments:
        before = line.size
        after = line.step(moment).replicas
        if policy.down_step is None:
            assert after <= policy.max_replicas
        else:  # on the way down to it
            assert after <= max(policy.max_replicas, before)
            replicas = moment.pool(before).replicas
            assert after <= max(policy.max_replicas, replicas - policy.down_step)
        if moment.ceiling is not None:
            assert after <= moment.ceiling


@given(policies(), SIZES, LINES)
def test_min_replicas_are_kept(policy: ScalingPolicy, size: int, moments: list[Moment]) -> None:
    line = Line(replace(policy, up_step=None), size)
    for moment in moments:
        after = line.step(moment).replicas
        if not policy.draining:
            assert after >= least(policy.min_replicas, moment.ceiling)


@given(policies(), SIZES, LINES)
def test_no_step_is_larger_than_asked_for(
    policy: ScalingPolicy, size: int, moments: list[Moment]
) -> None:
    line = Line(policy, size)
    for moment in moments:
        pool = moment.pool(line.size)
        after = line.step(moment).replicas
        if policy.up_step is not None and after > pool.size:
            assert pool.available is not None
            assert after <= pool.available + policy.up_step
        if policy.down_step is not None and after < pool.size and after != pool.ceiling:
            assert after >= pool.replicas - policy.down_step


@given(policies(), SIZES, LINES)
def test_zero_comes_only_after_the_idle_time(
    policy: ScalingPolicy, size: int, moments: list[Moment]
) -> None:
    line = Line(policy, size)
    for moment in moments:
        before = line.size
        after = line.step(moment).replicas
        if after == 0 < before and least(policy.max_replicas, moment.ceiling) > 0:
            assert line.last_backlog is not None
            assert line.now - line.last_backlog >= policy.idle_seconds_before_zero


@given(policies(), SIZES, LINES)
def test_it_shrinks_to_the_largest_size_wanted_lately_and_not_below(
    policy: ScalingPolicy, size: int, moments: list[Moment]
) -> None:
    line = Line(replace(policy, fallback_replicas=None), size)
    for moment in moments:
        before = line.size
        after = line.step(moment).replicas
        lately = [
            size for at, size in line.past if line.now - at < policy.stabilization_seconds
        ] or [0]
        assert after >= least(max(lately), before, policy.max_replicas, moment.ceiling)


@given(policies(), SIZES, LINES)
def test_it_grows_at_once(policy: ScalingPolicy, size: int, moments: list[Moment]) -> None:
    line = Line(replace(policy, up_step=None), size)
    for moment in moments:
        after = line.step(moment).replicas
        if moment.load.backlog is not None:
            assert after >= least(wanted(policy, moment.load), moment.ceiling)


@given(policies(), SIZES, LINES)
def test_it_does_not_grow_to_what_was_wanted_before(
    policy: ScalingPolicy, size: int, moments: list[Moment]
) -> None:
    line = Line(policy, size)
    for moment in moments:
        before = line.size
        after = line.step(moment).replicas
        if moment.load.backlog is not None:
            assert after <= max(before, wanted(policy, moment.load))


@given(policies(), SIZES, LINES)
def test_the_memory_holds_only_what_can_still_matter(
    policy: ScalingPolicy, size: int, moments: list[Moment]
) -> None:
    line = Line(policy, size)
    for moment in moments:
        sizes = [size for _, size in line.step(moment).memory.wanted]
        assert sizes == sorted(set(sizes), reverse=True)


@given(policies(), SIZES, LINES)
def test_more_backlog_is_never_a_reason_for_fewer_workers(
    policy: ScalingPolicy, size: int, moments: list[Moment]
) -> None:
    line = Line(policy, size)
    for moment in moments:
        memory, pool = line.memory, moment.pool(line.size)
        decision = line.step(moment)
        if moment.load.backlog is not None:
            for more in (1, 5, 50):
                load = replace(moment.load, backlog=moment.load.backlog + more)
                other = decide(policy, memory, load, pool, now=line.now)
                assert other.replicas >= decision.replicas


@given(policies(), st.none() | SIZES, SIZES, LINES)
def test_the_explanation_is_one_line_that_starts_with_the_size(
    policy: ScalingPolicy, paused: int | None, size: int, moments: list[Moment]
) -> None:
    line = Line(replace(policy, paused_replicas=paused), size)
    for moment in moments:
        decision = line.step(moment)
        assert re.match(rf"{decision.replicas} (=|first,|held|is)", decision.explanation)
        assert "\n" not in decision.explanation


@given(policies(), SIZES, LINES, loads().filter(lambda load: load.backlog is not None))
def test_a_steady_load_is_met_and_stays_met(
    policy: ScalingPolicy, size: int, moments: list[Moment], load: Load
) -> None:
    """Whatever was before: in the end the size is the one wanted, and it does not move."""
    line = Line(policy, size)
    for moment in moments:
        line.step(moment)
    steady = Moment(replace(load, busy=0, error=""), 40.0, 0, 0, None)
    for _ in range(20):
        line.step(steady)
    sizes = {line.step(steady).replicas for _ in range(20)}
    assert sizes == {wanted(policy, steady.load)}
