"""KEDA 2.16 with the HPA it makes, on a RabbitMQ trigger: a model.

From the KEDA 2.16 documentation (ScaledObject specification; RabbitMQ Queue scaler; Scaling
Deployments) and kedacore/keda v2.16.1 (pkg/scaling/scale_handler.go and
executor/scale_scaledobjects.go, pkg/scalers/rabbitmq_scaler.go, controllers/keda/hpa.go):

* Every ``pollingInterval`` KEDA asks the trigger. Active (more than ``activationValue``, 0) and no
  replica: one replica. Not active, and not for longer than ``cooldownPeriod``: all replicas go,
  from whatever number. From 1 to N it leaves the size to the HPA.
* The HPA asks KEDA's metrics server at each of its syncs; without ``useCachedMetrics`` that asks
  RabbitMQ, so the value is as fresh as RabbitMQ's own.
* ``protocol: amqp`` counts what is ready, exactly. ``protocol: http`` counts ready and
  unacknowledged as the management plugin reports, to which queues report every 5 s
  (``collect_statistics_interval``).
* ``behavior`` of the HPA is what the ScaledObject says; by default it has none.
* The phases of polling, syncs and statistics are by chance: nothing couples them to the load.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from enum import Enum

from tests.simulation.cluster import Cluster
from tests.simulation.hpa import SYNC_SECONDS, Behavior, Hpa, Policy

#: RabbitMQ's collect_statistics_interval.
_STATISTICS_SECONDS = 5.0


class Protocol(Enum):
    """How the scaler asks RabbitMQ."""

    AMQP = "amqp"
    HTTP = "http"


#: Nothing is held back: what ScaledObjects allow at most.
FASTEST_BEHAVIOR = Behavior(
    up=(Policy(15, percent=1000), Policy(15, pods=100)), down_window_seconds=0.0
)


@dataclass(frozen=True, slots=True, kw_only=True)
class KedaSettings:
    """A ScaledObject, as far as it matters; defaults are KEDA's."""

    protocol: Protocol = Protocol.HTTP
    polling_seconds: float = 30.0
    cooldown_seconds: float = 300.0
    behavior: Behavior | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Phases:
    """When things that happen at intervals happen first, in seconds."""

    poll: float
    sync: float
    statistics: float

    @classmethod
    def by_chance(cls, settings: KedaSettings, seed: int) -> Phases:
        """Return phases that nothing couples to the load."""
        dice = random.Random(seed)
        return cls(
            poll=dice.uniform(0, settings.polling_seconds),
            sync=dice.uniform(0, SYNC_SECONDS),
            statistics=dice.uniform(0, _STATISTICS_SECONDS),
        )


@dataclass(slots=True)
class Keda:
    """See the module's contract; it acts as time passes."""

    cluster: Cluster
    settings: KedaSettings
    target: int
    max_replicas: int
    phases: Phases
    _last_active: float | None = None
    _told: int = 0
    _hpa: Hpa = field(init=False)

    def __post_init__(self) -> None:
        self._hpa = Hpa(self.target, self.max_replicas, self.settings.behavior)
        timeline = self.cluster.timeline
        # Statistics first: of one moment, the scaler reads what RabbitMQ reports.
        timeline.every(_STATISTICS_SECONDS, self._statistics, first=self.phases.statistics)
        timeline.every(self.settings.polling_seconds, self._poll, first=self.phases.poll)
        timeline.every(SYNC_SECONDS, self._sync, first=self.phases.sync)

    @property
    def _metric(self) -> int:
        if self.settings.protocol is Protocol.AMQP:
            return len(self.cluster.waiting)
        return self._told

    def _statistics(self) -> None:
        self._told = self.cluster.unfinished

    def _poll(self) -> None:
        now, replicas = self.cluster.timeline.now, self.cluster.replicas
        if self._metric > 0:
            self._last_active = now
            if replicas == 0:
                self.cluster.scale(1)
        elif replicas > 0:
            last = self._last_active
            if last is None or now - last > self.settings.cooldown_seconds:
                self.cluster.scale(0)

    def _sync(self) -> None:
        size = self._hpa.sync(
            self.cluster.timeline.now,
            metric=self._metric,
            replicas=self.cluster.replicas,
            pods=len(self.cluster.active),
        )
        if size != self.cluster.replicas:
            self.cluster.scale(size)
