"""A pod of a worker pool, with the fields that scaling needs.

Times are seconds since the epoch, by the clocks of the API server and of the node, rounded down to
whole seconds as Kubernetes does.
"""

from __future__ import annotations

from dataclasses import dataclass

PENDING = "Pending"
RUNNING = "Running"
UNKNOWN = "Unknown"
_OVER = frozenset({"Succeeded", "Failed"})


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why a pod does not run, or does not stay up.

    Attributes:
        reason: in CamelCase, Kubernetes' own, such as ImagePullBackOff.
        message: one line for people that names the container.
    """

    reason: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Pod:
    """One pod.

    Attributes:
        name: unique in its namespace at a time; a StatefulSet uses names again.
        uid: unique in the cluster's life.
        owner: uid of what controls it, such as a ReplicaSet; "": nothing does.
        phase: Pending, Running, Succeeded, Failed or Unknown.
        ready: its condition Ready is true.
        assigned: it has a node.
        running_since: when the container that last began, of those that run now, began; None: no
            container runs.
        leaving: it has a deletionTimestamp.
        cost: its pod-deletion-cost.
        created: when it was made.
        restarts: the highest restart count of its containers.
        trouble: why it does not run, None when it does or just starts.
    """

    name: str
    uid: str
    owner: str = ""
    phase: str = RUNNING
    ready: bool = True
    assigned: bool = True
    running_since: float | None = None
    leaving: bool = False
    cost: int = 0
    created: float = 0.0
    restarts: int = 0
    trouble: Trouble | None = None

    @property
    def started(self) -> bool:
        """Whether a container runs."""
        return self.running_since is not None

    @property
    def active(self) -> bool:
        """Whether it counts for the size of its pool: neither finished nor being deleted."""
        return not self.leaving and self.phase not in _OVER

    @property
    def ordinal(self) -> int | None:
        """Its number, of a StatefulSet's pod; None: its name ends with none."""
        number = self.name.rpartition("-")[2]
        return int(number) if number.isascii() and number.isdigit() else None
