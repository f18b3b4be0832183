"""Removes workers without stopping work: pick, drain, mark, and then lower the replicas.

`drain_plan.plan` decides who is picked, who has drained and who may be removed; this module carries
it out, one step at a time, each from the present state. A step that a crash or a new leader cuts
off is repeated.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from taskqueue.controller.pool.drain_plan import DrainStep, plan
from taskqueue.controller.pool.pool_members import WorkerObservations
from taskqueue.kubernetes import pods
from taskqueue.kubernetes.client import ApiClient
from taskqueue.logs import EventLog
from taskqueue.model.pod import Pod

log = EventLog(__name__)

#: A worker that does not report that it drains gets the command again after this.
_ANSWER_SECONDS = 5.0


class Drainer:
    """Carries out drain plans, one step for each call.

    Args:
        client: for the API server.
        send_drain: commands the worker of a pod to take no more work.
        clock: wall time in seconds.
        monotonic: the clock of the workers' views, in seconds.
    """

    def __init__(
        self,
        client: ApiClient,
        *,
        send_drain: Callable[[str], None],
        clock: Callable[[], float],
        monotonic: Callable[[], float],
    ) -> None:
        self._client = client
        self._send_drain = send_drain
        self._clock = clock
        self._monotonic = monotonic
        #: When each worker was last sent the command.
        self._commanded_at: dict[str, float] = {}

    async def step(
        self,
        namespace: str,
        found: tuple[Pod, ...],
        observations: WorkerObservations,
        *,
        replicas: int,
        target: int,
        first_ordinal: int | None,
    ) -> DrainStep:
        """Bring the workers one step nearer to ``target``; return the plan of this step.

        Sends drain commands, marks and recycles pods. The caller sets the size that the plan names.

        Args:
            namespace: of the pods.
            found: the pods of the pool.
            observations: what else is known about the workers.
            replicas: how many are asked for.
            target: how many there should be.
            first_ordinal: the least number of a StatefulSet's pods; None: they are of none.

        Raises:
            ApiError: a pod could not be marked or deleted; try again.
        """
        now = self._monotonic()
        step = plan(
            found,
            observations.views,
            replicas=replicas,
            target=target,
            unused=observations.unused,
            listened=observations.listened,
            now=now,
            wall=self._clock(),
            ordered=first_ordinal is not None,
            first_ordinal=first_ordinal or 0,
        )
        self._command_drain(namespace, step.drain, now)
        await asyncio.gather(
            *(
                pods.set_deletion_cost(self._client, namespace, mark.pod, mark.cost)
                for mark in step.mark
            ),
            *(pods.delete_pod(self._client, namespace, pod) for pod in step.recycle),
        )
        for pod in step.recycle:
            log.info("worker.recycled", namespace=namespace, worker=pod.name)
        return step

    def _command_drain(self, namespace: str, drain: tuple[str, ...], now: float) -> None:
        self._commanded_at = {
            pod: at
            for pod, at in self._commanded_at.items()
            if pod in drain and now - at < _ANSWER_SECONDS
        }
        for pod in drain:
            if pod not in self._commanded_at:
                self._commanded_at[pod] = now
                self._send_drain(pod)
                log.info("worker.drain_commanded", namespace=namespace, worker=pod)
