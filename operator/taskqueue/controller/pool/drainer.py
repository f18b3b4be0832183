"""Takes workers away without stopping work: picked, drained, marked, and then one replica fewer.

One step at a time, each from what is so now: who is picked, who has drained, who may go is decided
by `drain_plan.plan`; here it is carried out. A step that is cut off in the middle,
by a crash or a new leader, is simply taken again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from taskqueue.controller.pool.drain_plan import DrainStep, plan
from taskqueue.controller.pool.worker_registry import WorkerView
from taskqueue.kubernetes import pods
from taskqueue.kubernetes.client import ApiClient
from taskqueue.logs import EventLog
from taskqueue.model.pod import Pod

log = EventLog(__name__)

#: A worker that was told to drain and has not said so is told again after this.
_ANSWER_SECONDS = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerObservations:
    """What is known of the workers beside their pods.

    Attributes:
        views: what they say of themselves, by pod.
        unused: for so many seconds nothing of the queue has been at the broker or with a worker,
            as far as is known; 0: there is something, or it is not known.
        listened: for so many seconds heartbeats could be heard without a break.
    """

    views: Mapping[str, WorkerView]
    unused: float
    listened: float


class Drainer:
    """See the module's contract.

    Args:
        client: for the API server.
        order_drain: tells the worker of a pod to take no more work.
        clock: wall time in seconds.
        monotonic: the clock of the workers' views, in seconds.
    """

    def __init__(
        self,
        client: ApiClient,
        *,
        order_drain: Callable[[str], None],
        clock: Callable[[], float],
        monotonic: Callable[[], float],
    ) -> None:
        self._client = client
        self._order_drain = order_drain
        self._clock = clock
        self._monotonic = monotonic
        #: When each worker was last told.
        self._told: dict[str, float] = {}

    async def step(
        self,
        namespace: str,
        found: tuple[Pod, ...],
        crew: WorkerObservations,
        *,
        replicas: int,
        target: int,
        first_ordinal: int | None,
    ) -> DrainStep:
        """Bring the workers one step nearer to ``target``; return what may be done now, and why.

        Drain orders are sent, pods marked and recycled. To set the size that the answer tells is
        left to the caller.

        Args:
            namespace: of the pods.
            found: the pods there are.
            crew: what else is known of the workers.
            replicas: how many are asked for.
            target: how many there should be.
            first_ordinal: the least number of a StatefulSet's pods; None: they are of none.

        Raises:
            ApiError: a pod could not be marked or deleted; try again.
        """
        now = self._monotonic()
        step = plan(
            found,
            crew.views,
            replicas=replicas,
            target=target,
            unused=crew.unused,
            listened=crew.listened,
            now=now,
            wall=self._clock(),
            ordered=first_ordinal is not None,
            first_ordinal=first_ordinal or 0,
        )
        self._tell(namespace, step.drain, now)
        await asyncio.gather(
            *(pods.mark(self._client, namespace, mark.pod, mark.cost) for mark in step.mark),
            *(pods.delete(self._client, namespace, pod) for pod in step.recycle),
        )
        for pod in step.recycle:
            log.info("worker.recycled", namespace=namespace, worker=pod.name)
        return step

    def _tell(self, namespace: str, drain: tuple[str, ...], now: float) -> None:
        self._told = {
            pod: at for pod, at in self._told.items() if pod in drain and now - at < _ANSWER_SECONDS
        }
        for pod in drain:
            if pod not in self._told:
                self._told[pod] = now
                self._order_drain(pod)
                log.info("worker.drain_ordered", namespace=namespace, worker=pod)
