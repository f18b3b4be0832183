"""The HorizontalPodAutoscaler of Kubernetes 1.34 for one external metric, a pure model.

From kubernetes/kubernetes pkg/controller/podautoscaler (horizontal.go, replica_calculator.go) and
the task page "Horizontal Pod Autoscaling":

* An AverageValue target wants ceil(metric / target) pods; within a tolerance of 10 % of the present
  number it wants no change.
* With zero replicas in spec it does nothing. It never goes below one.
* Without ``behavior`` growth is limited to the larger of double and 4; shrinking goes to the
  largest recommendation of the last 300 s.
* With ``behavior`` growth is limited per policy and period from what there was at the period's
  start, the most generous policy counting; windows of stabilization are the policy's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

#: --horizontal-pod-autoscaler-sync-period; a user of a managed cluster cannot change it.
SYNC_SECONDS = 15.0
_TOLERANCE = 0.1
#: --horizontal-pod-autoscaler-downscale-stabilization.
_DOWNSCALE_WINDOW_SECONDS = 300.0
#: scaleUpLimitFactor and scaleUpLimitMinimum, without ``behavior``.
_UP_FACTOR = 2
_UP_MINIMUM = 4


@dataclass(frozen=True, slots=True)
class Policy:
    """How much may change within a period; exactly one of ``pods`` and ``percent``."""

    period_seconds: float
    pods: int | None = None
    percent: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Behavior:
    """The field ``behavior``; its defaults are those that fill what is not set."""

    up: tuple[Policy, ...] = (Policy(15, pods=4), Policy(15, percent=100))
    up_window_seconds: float = 0.0
    down: tuple[Policy, ...] = (Policy(15, percent=100),)
    down_window_seconds: float = _DOWNSCALE_WINDOW_SECONDS


@dataclass(slots=True)
class Hpa:
    """See the module's contract.

    Attributes:
        target: AverageValue.
        max_replicas: never more.
        behavior: None: not set.
    """

    target: int
    max_replicas: int
    behavior: Behavior | None = None
    _recommended: list[tuple[float, int]] = field(default_factory=list)
    _changes: list[tuple[float, int]] = field(default_factory=list)

    def sync(self, now: float, *, metric: int, replicas: int, pods: int) -> int:
        """Return the size that spec.replicas is set to.

        Args:
            now: seconds.
            metric: what the metrics server answers.
            replicas: spec.replicas of the target.
            pods: status.replicas of it.
        """
        if replicas == 0:
            self._recommended = self._recommended or [(now, 0)]
            return 0
        if not self._recommended:
            self._recommended.append((now, replicas))
        ratio = metric / (self.target * pods) if pods else math.inf
        wanted = pods
        if not 1 - _TOLERANCE <= ratio <= 1 + _TOLERANCE:
            wanted = math.ceil(metric / self.target)
        size = self._plain(now, replicas, wanted)
        if self.behavior is not None:
            size = self._behaved(now, replicas, wanted, self.behavior)
        self._recommended.append((now, wanted))
        self._recommended = [one for one in self._recommended if now - one[0] <= 3600]
        if size != replicas:
            self._changes.append((now, size - replicas))
        return size

    def _plain(self, now: float, replicas: int, wanted: int) -> int:
        stable = max([wanted, *self._since(now - _DOWNSCALE_WINDOW_SECONDS)])
        limit = min(max(_UP_FACTOR * replicas, _UP_MINIMUM), self.max_replicas)
        return min(max(stable, 1), limit)

    def _behaved(self, now: float, replicas: int, wanted: int, behavior: Behavior) -> int:
        if wanted >= replicas:
            stable = min([wanted, *self._since(now - behavior.up_window_seconds)])
        else:
            stable = max([wanted, *self._since(now - behavior.down_window_seconds)])
        if stable > replicas:
            limit = self._limit(now, replicas, behavior.up, +1, max)
            return min(stable, max(limit, replicas), self.max_replicas)
        if stable < replicas:
            limit = self._limit(now, replicas, behavior.down, -1, min)
            return max(stable, min(limit, replicas), 1)
        return stable

    def _since(self, cutoff: float) -> list[int]:
        return [size for at, size in self._recommended if at > cutoff]

    def _limit(
        self,
        now: float,
        replicas: int,
        policies: tuple[Policy, ...],
        sign: int,
        choose: Callable[[list[int]], int],
    ) -> int:
        limits = []
        for policy in policies:
            changed = sum(by for at, by in self._changes if at > now - policy.period_seconds)
            before = replicas - changed
            if policy.pods is not None:
                limits.append(before + sign * policy.pods)
            else:
                part = before * (1 + sign * (policy.percent or 0) / 100)
                limits.append(math.ceil(part) if sign > 0 else int(part))
        return choose(limits)
