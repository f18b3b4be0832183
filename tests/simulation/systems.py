"""Who scales: ours and KEDA, each with the settings that are compared, and one run of a load.

Every system gets the same load, target, limit, pods and grace period: 30 s, Kubernetes' default,
though the operator would give more.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from taskqueue.controller.pool.autoscaler import decide
from taskqueue.controller.pool.drain_plan import plan
from taskqueue.model.scaling import BacklogTarget, ScalingPolicy
from tests.simulation.cluster import Cluster, Conditions
from tests.simulation.keda import FASTEST_BEHAVIOR, Keda, KedaSettings, Phases, Protocol
from tests.simulation.loads import LoadCase
from tests.simulation.operator import Decide, Operator, Plan
from tests.simulation.summary import Summary
from tests.simulation.timeline import Timeline

#: Starts the scaling of a cluster; the number is the seed.
Start = Callable[[Cluster, LoadCase, int], object]


@dataclass(frozen=True, slots=True)
class System:
    """Someone who scales.

    Attributes:
        name: in tables.
        start: starts it.
    """

    name: str
    start: Start


def ours(
    name: str, policy: ScalingPolicy | None = None, *, decide: Decide = decide, plan: Plan = plan
) -> System:
    """Return our operator with this policy; limit and, of a backlog, target are the load's."""
    policy = policy or ScalingPolicy()

    def start(cluster: Cluster, load: LoadCase, seed: int) -> object:
        wanted = replace(policy, max_replicas=load.max_replicas)
        if isinstance(policy.target, BacklogTarget):
            wanted = replace(wanted, target=BacklogTarget(load.target))
        return Operator(cluster, wanted, decide=decide, plan=plan)

    return System(name, start)


def quick(stabilization: float, idle: float) -> System:
    """Return our operator with other times than by default, named after them."""
    policy = ScalingPolicy(stabilization_seconds=stabilization, idle_seconds_before_zero=idle)
    return ours(f"ours {stabilization:g}/{idle:g}", policy)


def keda(name: str, settings: KedaSettings, phases: Phases | None = None) -> System:
    """Return KEDA with these settings, and phases by chance unless given."""

    def start(cluster: Cluster, load: LoadCase, seed: int) -> object:
        by_chance = phases or Phases.by_chance(settings, seed)
        return Keda(cluster, settings, load.target, load.max_replicas, by_chance)

    return System(name, start)


#: What a ScaledObject can be told at most, with what is running counted.
FASTEST = KedaSettings(polling_seconds=1.0, cooldown_seconds=1.0, behavior=FASTEST_BEHAVIOR)
PATIENT = replace(
    FASTEST, cooldown_seconds=60.0, behavior=replace(FASTEST_BEHAVIOR, down_window_seconds=60.0)
)

#: By default: 30 s of stabilization, 60 s idle before zero.
OURS = ours("ours")
#: From the quickest to leave to the default: seconds of stabilization / idle before zero.
OUR_RANGE = (
    quick(0, 0),
    quick(1, 0),
    quick(2, 0),
    quick(5, 5),
    quick(10, 10),
    quick(20, 30),
    OURS,
)
KEDA = keda("KEDA", KedaSettings())
KEDA_AMQP = keda("KEDA, amqp", KedaSettings(protocol=Protocol.AMQP))
KEDA_PATIENT = keda("KEDA, patient", PATIENT)
KEDA_FASTEST = keda("KEDA, fastest", FASTEST)
KEDA_FASTEST_AMQP = keda("KEDA, fastest, amqp", replace(FASTEST, protocol=Protocol.AMQP))
#: As many as there may be, all the time: no one who scales lets work wait less.
ALWAYS = System("all the time", lambda cluster, load, seed: cluster.scale(load.max_replicas))
KEDA_RANGE = (KEDA, KEDA_AMQP, KEDA_PATIENT, KEDA_FASTEST, KEDA_FASTEST_AMQP)


def simulate(
    system: System, load: LoadCase, conditions: Conditions | None = None, *, seed: int = 1
) -> Summary:
    """Let a system scale for a load, and return the summary of the run."""
    timeline = Timeline()
    cluster = Cluster(timeline, load.jobs, conditions or Conditions(), seed=seed)
    system.start(cluster, load, seed)
    timeline.run(load.end)
    return Summary.of(cluster, load)
