"""How a TaskQueue orders, shares and limits what it dispatches: frozen values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class OnConflict(StrEnum):
    """What becomes of Tasks whose concurrency key another has; spec.concurrencyLimits.onConflict.

    Each but QUEUE lets one Task of a key be dispatched at a time.
    """

    #: They wait, by priority and age.
    QUEUE = "Queue"
    #: The newest waits; those before it that are not dispatched end.
    KEEP_NEWEST = "KeepNewest"
    #: The newest waits until the others have stopped, which end.
    CANCEL_RUNNING = "CancelRunning"
    #: The newest ends.
    REJECT = "Reject"


@dataclass(frozen=True, slots=True, kw_only=True)
class ConcurrencyPolicy:
    """How many Tasks of a concurrency key are dispatched at once, and what the others do.

    Attributes:
        per_key: how many, of a key that no prefix fits.
        overrides: (prefix of keys, how many); the longest prefix that fits applies.
        on_conflict: what becomes of the others.
    """

    per_key: int = 1
    overrides: tuple[tuple[str, int], ...] = ()
    on_conflict: OnConflict = OnConflict.QUEUE

    def limit_of(self, key: str) -> int:
        """Return how many Tasks of a key are dispatched at once."""
        fitting = [one for one in self.overrides if key.startswith(one[0])]
        return max(fitting, key=lambda one: len(one[0]))[1] if fitting else self.per_key


@dataclass(frozen=True, slots=True, kw_only=True)
class FairnessPolicy:
    """How Tasks of different fairness keys share what is dispatched.

    Attributes:
        label: the label of a Task whose value is its key; "" is the key of those without it.
        weights: by key.
        default_weight: of all other keys.
    """

    label: str
    weights: Mapping[str, int] = field(default_factory=dict)
    default_weight: int = 1

    def weight_of(self, key: str) -> int:
        """Return the weight of a key."""
        return self.weights.get(key, self.default_weight)


@dataclass(frozen=True, slots=True, kw_only=True)
class RateLimit:
    """At most ``attempts`` are dispatched in each period, evenly, but for a burst.

    Attributes:
        name: for people.
        per_key: each fairness key has a limit of its own.
        attempts: how many in a period.
        period_seconds: how long that is.
        burst: how many at once, after a time with fewer.
    """

    name: str
    per_key: bool = False
    attempts: int
    period_seconds: int
    burst: int = 1

    @property
    def interval(self) -> float:
        """Seconds from one attempt to the next at this rate."""
        return self.period_seconds / self.attempts


@dataclass(frozen=True, slots=True)
class PriorityAgeing:
    """The priority of a Task that waits grows by ``step`` in each ``per_seconds``."""

    per_seconds: int
    step: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowPolicy:
    """What spec.flow of a TaskQueue asks for.

    Attributes:
        fairness: how keys share; None: there are none, all Tasks have the key "".
        rate_limits: all of them hold.
        ageing: how priorities grow; None: they do not.
        max_waiting: how many Tasks wait for their turn; those above it are Blocked. None: all.
    """

    fairness: FairnessPolicy | None = None
    rate_limits: tuple[RateLimit, ...] = ()
    ageing: PriorityAgeing | None = None
    max_waiting: int | None = None

    def weight_of(self, key: str) -> int:
        """Return the weight of a fairness key."""
        return 1 if self.fairness is None else self.fairness.weight_of(key)

    def rank(self, priority: int, since: float) -> float:
        """Return what a Task is ordered by, higher first.

        All Tasks age alike, so which of two comes first never changes: the rank is the priority
        that the Task would have had at the beginning of the epoch.

        Args:
            priority: its own.
            since: from when on it ages, in seconds since the epoch.
        """
        if self.ageing is None:
            return priority
        return priority - since * self.ageing.step / self.ageing.per_seconds
