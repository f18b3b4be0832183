"""A worker's life: two lines to the broker, the runtime between them, and an orderly end.

The end: no more deliveries, what has not begun goes back, what runs may finish within the grace
period, the rest is released; then everything said is confirmed and acknowledged, and only then the
connections close. An order to drain begins the same end without a grace period: what runs has all
the time its attempts have, until a signal begins the period.

A worker drained on order stays until its signal comes, for a while at least, and goes on saying
that it has stopped: whoever gave the order is about to remove the pod, and the kubelet would start
a process that has ended again, to take work in the meantime.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from taskqueue.contract.heartbeat import HEARTBEAT_SECONDS, Heartbeat
from taskqueue.contract.names import work_queue
from taskqueue.logs import EventLog
from taskqueue.model.worker import WorkerState
from taskqueue.worker.command_consumer import CommandConsumer
from taskqueue.worker.consumer import Consumer
from taskqueue.worker.cpus import available_cpus
from taskqueue.worker.executor import Executor
from taskqueue.worker.health import HealthServer, unhealthy
from taskqueue.worker.heartbeat_sender import HeartbeatSender
from taskqueue.worker.outcome_outbox import OutcomeOutbox
from taskqueue.worker.outcome_publisher import OutcomePublisher
from taskqueue.worker.runtime import Runtime
from taskqueue.worker.settings import WorkerSettings

log = EventLog("taskqueue.worker")

#: After the grace period, how long confirms may take before the worker leaves without them.
FAREWELL_SECONDS = 4.0

#: The last of them begin with the killing of what has not ended: keyed attempts are told then.
_LAST_SECONDS = 1.0


class WorkerService:
    """Runs until `stop`; made and run on one loop.

    Args:
        settings: of the worker.
        executor: runs the attempts.
        handlers: names it has code for, to be told to the operator.
    """

    def __init__(
        self, settings: WorkerSettings, executor: Executor, *, handlers: Iterable[str] = ()
    ) -> None:
        loop = asyncio.get_running_loop()
        self._loop = loop
        self._settings = settings
        self._handlers = tuple(sorted(handlers))
        self._cpus = available_cpus()
        self._stop = asyncio.Event()
        self._leaving = asyncio.Event()
        self._left = False
        self._reporter = OutcomeOutbox(loop)
        self._runtime = Runtime(
            settings,
            executor,
            self._reporter,
            loop,
            on_change=self._prefetch_changed,
            on_turn=lambda: self._heartbeats.turned(),
        )
        self._publishing = OutcomePublisher(
            settings.broker,
            name=f"worker {settings.pod} outcomes",
            reporter=self._reporter,
            on_ready=self._runtime.republish,
        )
        self._consuming = Consumer(
            settings.broker,
            name=f"worker {settings.pod}",
            queue=work_queue(settings.namespace, settings.queue),
            prefetch=settings.slots,
            intake=self._runtime,
            control=CommandConsumer(
                namespace=settings.namespace,
                queue=settings.queue,
                pod=settings.pod,
                on_order=self._runtime.ordered,
                on_drain=self.drain,
            ),
        )
        self._heartbeats = HeartbeatSender(self._publishing, beat=self._heartbeat)

    def stop(self) -> None:
        """Begin the orderly end, or the grace period of one begun by `drain`; or end the wait."""
        self._stop.set()
        self._leaving.set()

    def drain(self) -> None:
        """Begin the orderly end without a grace period."""
        if not self._leaving.is_set():
            log.info("worker.draining", running=self._runtime.busy)
        self._leaving.set()

    async def run(self) -> bool:
        """Work until stopped; return whether nothing was left running.

        Raises:
            BrokerConfigurationError: a certificate or key cannot be read.
        """
        health = HealthServer(healthy=self.unhealthy, ready=self.unready)
        await self._listen(health)
        publishing = self._loop.create_task(self._publishing.run())
        consuming = self._loop.create_task(self._consuming.run())
        beating = self._loop.create_task(self._beat())
        leaving = self._loop.create_task(self._leaving.wait())
        lines = {publishing, consuming}
        try:
            await asyncio.wait({*lines, leaving}, return_when=asyncio.FIRST_COMPLETED)
            for line in lines:
                if line.done():
                    line.result()
            self._heartbeats.send_soon()
            await self._leave()
            self._left = True
            beating.cancel()
            await self._heartbeats.send()
            if not self._stop.is_set():
                await self._linger()
        finally:
            for task in (leaving, beating, consuming, publishing):
                task.cancel()
            await asyncio.gather(leaving, beating, consuming, publishing, return_exceptions=True)
            health.close()
        return not self._runtime.busy

    def unhealthy(self) -> str | None:
        """Return why this worker should be restarted, or None: one that leaves never should."""
        if self._leaving.is_set():
            return None
        return unhealthy(
            unregistered_seconds=0.0
            if self._consuming.registered
            else self._loop.time() - self._consuming.changed_at,
            busy=self._runtime.busy,
            stuck=self._runtime.stuck,
            slots=self._settings.slots,
        )

    def unready(self) -> str | None:
        """Return why this worker takes no work now, or None."""
        if self._left:
            return "drained"
        if self._leaving.is_set():
            return "stopping" if self._stop.is_set() else "draining"
        return None if self._consuming.registered else "no consumer is registered with the broker"

    async def _beat(self) -> None:
        """Say that the worker is there, once it takes work, and until it has left."""
        await self._consuming.ready.wait()
        await self._heartbeats.run()

    def _heartbeat(self) -> Heartbeat:
        state = WorkerState.READY
        if self._leaving.is_set():
            state = WorkerState.STOPPED if self._left else WorkerState.DRAINING
        settings = self._settings
        return Heartbeat(
            namespace=settings.namespace,
            queue=settings.queue,
            pod=settings.pod,
            node=settings.node,
            cpus=self._cpus,
            slots=settings.slots,
            handlers=self._handlers,
            running=self._runtime.running,
            busy=self._runtime.undecided,
            state=state,
        )

    async def _listen(self, health: HealthServer) -> None:
        port = self._settings.health_port
        if not port:
            return
        try:
            await health.start(port)
        except OSError as problem:
            log.warning(
                "health.unavailable",
                port=port,
                reason=str(problem),
                todo="give another TASKQUEUE_HEALTH_PORT; 0 for none",
            )

    async def _leave(self) -> None:
        self._runtime.begin_drain()
        finished = self._loop.create_task(self._finish())
        stopped = self._loop.create_task(self._stop.wait())
        try:
            await asyncio.wait({finished, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if not finished.done():
                await self._end_within_grace(finished)
            if finished.done():
                finished.result()
        finally:
            for task in (finished, stopped):
                task.cancel()
            await asyncio.gather(finished, stopped, return_exceptions=True)
        self._runtime.check_keyed_ended()

    async def _linger(self) -> None:
        """Wait for the signal that follows an order to drain, and go on saying that all is done."""
        seconds = self._settings.drained_seconds
        log.info("worker.drained", waits=seconds)
        deadline = self._loop.time() + seconds
        while (left := deadline - self._loop.time()) > 0:
            try:
                async with asyncio.timeout(min(left, HEARTBEAT_SECONDS)):
                    await self._stop.wait()
                return
            except TimeoutError:
                await self._heartbeats.send()
        log.warning(
            "worker.not_removed",
            seconds=seconds,
            todo="it was ordered to drain and no signal came: it ends by itself, and takes work "
            "again if its container is started again",
        )

    async def _finish(self) -> None:
        """Let what runs end, and have all of it told."""
        await self._consuming.stop()
        await self._runtime.idle()
        await self._runtime.keyed_ended()
        await self._reporter.drained()

    async def _end_within_grace(self, finished: asyncio.Task[None]) -> None:
        grace = self._settings.grace_seconds
        log.info("worker.stopping", running=self._runtime.busy, grace=grace)
        deadline = self._loop.time() + grace
        try:
            async with asyncio.timeout_at(deadline):
                await self._runtime.idle()
        except TimeoutError:
            self._runtime.release_running()
        farewell = deadline + FAREWELL_SECONDS
        await asyncio.wait({finished}, timeout=farewell - _LAST_SECONDS - self._loop.time())
        if not finished.done():
            self._runtime.kill_running()
            await asyncio.wait({finished}, timeout=farewell - self._loop.time())
        if not finished.done():
            log.warning("outcomes.unconfirmed", outstanding=self._reporter.outstanding)

    def _prefetch_changed(self) -> None:
        self._consuming.want_prefetch(self._runtime.prefetch)
        self._consuming.poke()
