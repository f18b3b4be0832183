"""A worker from start to shutdown: two connections, the runtime between them, an orderly end.

The shutdown: no more deliveries, what has not started is released, what runs may finish within the
grace period, the rest is released. Then all outcomes are confirmed and acknowledged, and only then
the connections close. A command to drain starts the same shutdown without a grace period: what runs
has all the time its attempts have, until a signal starts the grace period.

A drained worker waits for that signal, up to a limit, and keeps sending heartbeats that say it has
stopped: the sender of the command is about to remove the pod. If the process ended first, the
kubelet would start it again, and it would take work in the meantime.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from taskqueue.amqp.channel import CALLBACK
from taskqueue.contract.heartbeat import Heartbeat
from taskqueue.contract.names import work_queue
from taskqueue.limits import HEARTBEAT_SECONDS
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

#: Messages moved to the dead queue because they cannot be read.
PARKED_METRIC = "taskqueue_worker_messages_parked_total"

#: How long confirms may take after the grace period before the worker ends without them (seconds).
CONFIRM_SECONDS = 4.0

#: When this much of it is left, what still runs is killed, so that keyed attempts can be reported.
_KILL_SECONDS = 1.0


class WorkerService:
    """Runs a worker until `stop`; created and run on one loop.

    Args:
        settings: of the worker.
        executor: runs the attempts.
        handlers: names of the handlers it has, for its heartbeats.
        start: returns once handlers can be run; nothing is consumed before.
        start_failure: returns why they cannot now, "" if they can.
    """

    def __init__(
        self,
        settings: WorkerSettings,
        executor: Executor,
        *,
        handlers: Iterable[str] = (),
        start: Callable[[], Awaitable[None]] | None = None,
        start_failure: Callable[[], str] = str,
    ) -> None:
        loop = asyncio.get_running_loop()
        self._loop = loop
        self._settings = settings
        self._handlers = tuple(sorted(handlers))
        self._cpus = available_cpus()
        self._stop = asyncio.Event()
        self._draining = asyncio.Event()
        self._drained = False
        self._start = start
        self._start_failure = start_failure
        #: When handlers could be run, on the loop's clock.
        self._started_at: float | None = None
        #: What a callback of the worker's own raised: a message or a slot may be lost by it.
        self._defect = ""
        self._outbox = OutcomeOutbox(loop)
        self._runtime = Runtime(
            settings,
            executor,
            self._outbox,
            loop,
            on_change=self._on_runtime_changed,
            on_busy_changed=lambda: self._heartbeats.on_busy_changed(),
        )
        self._publisher = OutcomePublisher(
            settings.broker,
            name=f"worker {settings.pod} outcomes",
            outbox=self._outbox,
            on_ready=self._on_publisher_ready,
        )
        self._consumer = Consumer(
            settings.broker,
            name=f"worker {settings.pod}",
            queue=work_queue(settings.namespace, settings.queue),
            prefetch=settings.slots,
            runtime=self._runtime,
            commands=CommandConsumer(
                namespace=settings.namespace,
                queue=settings.queue,
                pod=settings.pod,
                on_command=self._runtime.on_command,
                on_drain=self.drain,
            ),
        )
        self._heartbeats = HeartbeatSender(self._publisher, describe=self._describe)

    def stop(self) -> None:
        """Start the shutdown, or the grace period of one that `drain` started; or end its wait."""
        self._stop.set()
        self._draining.set()

    def drain(self) -> None:
        """Start the shutdown without a grace period."""
        if not self._draining.is_set():
            log.info("worker.drain_started", running=self._runtime.busy)
        self._draining.set()

    async def run(self) -> bool:
        """Work until stopped; return whether nothing was left running.

        Raises:
            BrokerConfigurationError: the broker's settings cannot be used, and cannot change.
        """
        self._loop.set_exception_handler(self._on_exception)
        health = HealthServer(healthy=self.unhealthy, ready=self.unready, counters=self.counters)
        await self._listen(health)
        publisher = self._loop.create_task(self._publisher.run())
        consumer = self._loop.create_task(self._consume())
        heartbeats = self._loop.create_task(self._send_heartbeats())
        draining = self._loop.create_task(self._draining.wait())
        try:
            await asyncio.wait({publisher, consumer, draining}, return_when=asyncio.FIRST_COMPLETED)
            for connection in (publisher, consumer):
                if connection.done():
                    connection.result()
            self._heartbeats.send_soon()
            await self._shut_down()
            self._drained = True
            heartbeats.cancel()
            await self._heartbeats.send()
            if not self._stop.is_set():
                await self._wait_for_removal()
        finally:
            tasks = (draining, heartbeats, consumer, publisher)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            health.close()
        return not self._runtime.busy

    def unhealthy(self) -> str | None:
        """Return why this worker should be restarted, or None; never while it shuts down."""
        if self._draining.is_set() or self._started_at is None:
            return None
        since = max(self._consumer.changed_at, self._started_at)
        return unhealthy(
            unregistered_seconds=0.0 if self._consumer.registered else self._loop.time() - since,
            busy=self._runtime.busy,
            stuck=self._runtime.stuck,
            slots=self._settings.slots,
            defect=self._defect,
        )

    def unready(self) -> str | None:
        """Return why this worker takes no work now, or None."""
        if self._drained:
            return "drained"
        if self._draining.is_set():
            return "stopping" if self._stop.is_set() else "draining"
        if reason := self._start_failure():
            return f"an @on_start hook failed: {reason}"
        if self._started_at is None:
            return "the @on_start hooks have not finished"
        return None if self._consumer.registered else "no consumer is registered with the broker"

    def counters(self) -> dict[str, int]:
        """Return what it has counted, by the name of the metric."""
        return {PARKED_METRIC: self._runtime.parked}

    def _on_exception(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Log what a callback raised, and have the worker restarted.

        Handlers are called elsewhere: it is the worker that has failed.
        """
        loop.default_exception_handler(context)
        if "handle" in context or CALLBACK in context:
            self._defect = self._defect or repr(context.get("exception"))

    async def _consume(self) -> None:
        """Consume once handlers can be run."""
        if self._start is not None:
            await self._start()
        self._started_at = self._loop.time()
        await self._consumer.run()

    async def _send_heartbeats(self) -> None:
        """Send heartbeats once it takes work, until it has shut down."""
        await self._consumer.ready.wait()
        await self._heartbeats.run()

    def _describe(self) -> Heartbeat:
        state = WorkerState.READY
        if self._draining.is_set():
            state = WorkerState.STOPPED if self._drained else WorkerState.DRAINING
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
        except OSError as error:
            log.warning(
                "health_server.failed",
                port=port,
                reason=str(error),
                hint="give another TASKQUEUE_HEALTH_PORT; 0 for none",
            )

    async def _shut_down(self) -> None:
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
        self._runtime.abort_if_keyed_runs()

    async def _wait_for_removal(self) -> None:
        """Wait for the signal that follows a command to drain, and keep sending heartbeats."""
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
            hint="it was commanded to drain and no signal came: it ends by itself, and takes work "
            "again if its container is restarted",
        )

    async def _finish(self) -> None:
        """Wait until what runs has ended and all outcomes are confirmed."""
        await self._consumer.stop()
        await self._runtime.wait_until_idle()
        await self._runtime.wait_until_keyed_ended()
        await self._outbox.wait_until_drained()

    async def _end_within_grace(self, finished: asyncio.Task[None]) -> None:
        grace = self._settings.grace_seconds
        log.info("worker.stop_started", running=self._runtime.busy, grace=grace)
        deadline = self._loop.time() + grace
        try:
            async with asyncio.timeout_at(deadline):
                await self._runtime.wait_until_idle()
        except TimeoutError:
            self._runtime.release_running()
        self._outbox.give_up_returned()
        last = deadline + CONFIRM_SECONDS
        await asyncio.wait({finished}, timeout=last - _KILL_SECONDS - self._loop.time())
        if not finished.done():
            self._runtime.kill_running()
            await asyncio.wait({finished}, timeout=last - self._loop.time())
        if not finished.done():
            log.warning("outcome.not_confirmed", outstanding=self._outbox.outstanding)

    def _on_publisher_ready(self) -> None:
        self._runtime.on_publisher_ready()
        self._heartbeats.send_soon()  # others may have got what runs here

    def _on_runtime_changed(self) -> None:
        self._consumer.want_prefetch(self._runtime.prefetch)
        self._consumer.notify()
