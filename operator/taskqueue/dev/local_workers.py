"""The worker's half of `taskqueue dev`: a runtime for each TaskQueue, over one set of executors."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from taskqueue.contract import heartbeat
from taskqueue.contract.heartbeat import Heartbeat
from taskqueue.contract.names import HEARTBEATS_EXCHANGE, routing_key
from taskqueue.contract.outgoing import OutgoingMessage
from taskqueue.dev.memory_broker import MemoryBroker
from taskqueue.logs import EventLog
from taskqueue.model.queue import QueueConfig, QueueKey
from taskqueue.model.worker import WorkerState
from taskqueue.worker.executor import Executor
from taskqueue.worker.outcome_outbox import OutcomeOutbox
from taskqueue.worker.runtime import Runtime
from taskqueue.worker.settings import WorkerSettings

log = EventLog("taskqueue.worker")

#: Between two heartbeats, in seconds: progress comes by them, and somebody is looking.
HEARTBEAT_SECONDS = 0.5


class LocalWorkers:
    """Runs the work of all TaskQueues here; each has its slots.

    Args:
        settings: of the workers; namespace and queue are replaced.
        executor: runs the attempts of all of them.
        handlers: names it serves.
        broker: has the work.
    """

    def __init__(
        self,
        settings: WorkerSettings,
        executor: Executor,
        handlers: Iterable[str],
        broker: MemoryBroker,
    ) -> None:
        self._settings = settings
        self._executor = executor
        self._handlers = tuple(sorted(handlers))
        self._broker = broker
        self._runtimes: dict[QueueKey, tuple[WorkerSettings, Runtime]] = {}

    def serve(self, config: QueueConfig) -> None:
        """Run the work of a TaskQueue from now on; its slots stay as they were first."""
        if config.key in self._runtimes:
            return
        loop = asyncio.get_running_loop()
        key = routing_key(*config.key)
        settings = replace(
            self._settings,
            namespace=config.namespace,
            queue=config.name,
            slots=config.concurrency or self._settings.slots,
        )
        outbox = OutcomeOutbox(loop)
        outbox.attach(self._broker.publisher)
        runtime = Runtime(
            settings,
            self._executor,
            outbox,
            loop,
            on_change=lambda: self._broker.pump(key),
            on_busy_changed=lambda: None,
            abort=_would_abort,
        )
        self._runtimes[config.key] = (settings, runtime)
        self._broker.consume(key, runtime)
        self._send_heartbeat(settings, runtime)

    @property
    def busy(self) -> int:
        """Attempts that run."""
        return sum(runtime.busy for _, runtime in self._runtimes.values())

    async def run(self) -> None:
        """Send heartbeats until cancelled."""
        while True:
            await asyncio.sleep(HEARTBEAT_SECONDS)
            for settings, runtime in self._runtimes.values():
                self._send_heartbeat(settings, runtime)

    def release_all(self) -> None:
        """Give back whatever is here, uncounted, and ask it to end."""
        for _, runtime in self._runtimes.values():
            runtime.begin_drain()
            runtime.release_running()

    def kill_all(self) -> None:
        """Kill every execution that can be killed."""
        for _, runtime in self._runtimes.values():
            runtime.kill_running()

    def _send_heartbeat(self, settings: WorkerSettings, runtime: Runtime) -> None:
        said = Heartbeat(
            namespace=settings.namespace,
            queue=settings.queue,
            pod=settings.pod,
            node=settings.node,
            cpus=0.0,
            slots=settings.slots,
            handlers=self._handlers,
            running=runtime.running,
            busy=runtime.undecided,
            state=WorkerState.READY,
        )
        message = OutgoingMessage(
            exchange=HEARTBEATS_EXCHANGE,
            key=said.routing_key,
            body=heartbeat.encode(said),
            content_type=None,
        )
        self._broker.publisher.publish(
            message.exchange,
            message.key,
            message.body,
            message.properties(),
            lambda verdict, text: None,
        )


def _would_abort(reason: str, **fields: Any) -> None:
    """Say that a worker in a cluster would end itself here."""
    log.error(
        "worker.would_end",
        reason=reason,
        hint="in a cluster the worker ends itself here: let handlers of keyed Tasks run in "
        "processes (without thread=True), make them async, or check ctx.cancelled",
        **fields,
    )
