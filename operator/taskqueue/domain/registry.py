"""The workers of a TaskQueue, as far as they have lately said that they live."""

from __future__ import annotations

from dataclasses import dataclass

#: Silent for so long, a worker counts as lost: three heartbeats were missed.
LOST_SECONDS = 35.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """A registered machine.

    Attributes:
        pod: its name.
        node: the node it runs on; "" when it is not known.
        cpus: that it may use.
        slots: attempts it runs at once.
        handlers: names it has code for.
    """

    pod: str
    node: str
    cpus: float
    slots: int
    handlers: tuple[str, ...]


@dataclass(slots=True)
class _Known:
    worker: Worker
    running: int
    draining: bool
    seen: float


class Registry:
    """Registers workers by their heartbeats, and misses those that stay away."""

    def __init__(self) -> None:
        self._known: dict[str, _Known] = {}

    def __len__(self) -> int:
        return len(self._known)

    @property
    def workers(self) -> tuple[Worker, ...]:
        """All that live, in the order of their names."""
        return tuple(self._known[pod].worker for pod in sorted(self._known))

    @property
    def slots(self) -> int:
        """Attempts that all who take work can run at once."""
        return sum(one.worker.slots for one in self._known.values() if not one.draining)

    @property
    def busy(self) -> int:
        """How many run something."""
        return sum(one.running > 0 for one in self._known.values())

    def beat(self, worker: Worker, *, running: int, draining: bool, now: float) -> bool:
        """Take a heartbeat; tell whether the worker is new, or another than it was.

        Args:
            worker: as it describes itself.
            running: attempts it runs.
            draining: it takes no more work.
            now: seconds on any clock.
        """
        before = self._known.get(worker.pod)
        self._known[worker.pod] = _Known(worker, running, draining, now)
        return before is None or before.worker != worker or before.draining != draining

    def leave(self, pod: str) -> bool:
        """Take note that a worker has stopped; tell whether it was known."""
        return self._known.pop(pod, None) is not None

    def expire(self, now: float) -> tuple[str, ...]:
        """Forget the workers that stayed silent for `LOST_SECONDS`; return their names."""
        lost = [pod for pod, one in self._known.items() if now - one.seen > LOST_SECONDS]
        for pod in lost:
            del self._known[pod]
        return tuple(lost)
