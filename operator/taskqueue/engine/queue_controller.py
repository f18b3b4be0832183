"""Keeps one TaskQueue true: its broker link, its queues at the broker, its workers, its status.

One loop a TaskQueue, woken by whatever may matter and at least once a second. A step that fails
becomes a condition with a reason and is tried again; it never stops the other steps, nor another
TaskQueue.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from taskqueue.broker.connection import (
    BrokerConfigurationError,
    BrokerParameters,
    BrokerUnavailable,
    Channel,
    ChannelRefused,
)
from taskqueue.broker.contract import work_queue
from taskqueue.broker.topology import TopologyConflict, declare_task_queue, ready_messages
from taskqueue.cluster.client import ApiClient, ApiError
from taskqueue.cluster.queue_objects import queue_path, queue_status_patch
from taskqueue.domain.queue import Condition, QueueConfig, QueueStatus
from taskqueue.domain.task import Phase
from taskqueue.engine.broker_link import BrokerLink, Down, Up
from taskqueue.engine.dispatcher import Clock, Dispatcher
from taskqueue.engine.metrics import BACKLOG
from taskqueue.engine.worker_pool import WorkerPool
from taskqueue.logs import EventLog

log = EventLog(__name__)

#: The loop runs at least this often, and reads the broker's count and writes the status at most.
_TICK_SECONDS = 1.0
#: Shortest time between two runs, so that a burst of Tasks is one decision.
_SPACING_SECONDS = 0.02
#: A Secret is read again this often while the broker cannot be reached.
_SECRET_SECONDS = 2.0
#: While connected, it is read this often: it may name another broker.
_SECRET_CHECK_SECONDS = 30.0
#: Slots of a worker that decides by its CPUs, for the window: rather too many published than idle.
_GENEROUS_CONCURRENCY = 32


@dataclass(slots=True)
class Totals:
    """Finished Tasks of a queue, by final phase."""

    succeeded: int = 0
    failed: int = 0
    cancelled: int = 0

    def of(self, phase: Phase) -> int:
        """Return how many ended in this phase."""
        value: int = getattr(self, phase.value.lower())
        return value

    def add(self, phase: Phase, number: int = 1) -> None:
        """Count Tasks that ended in this phase."""
        setattr(self, phase.value.lower(), self.of(phase) + number)


class QueueController:
    """See the module's contract.

    Args:
        config: what the TaskQueue asks for.
        totals: where counting goes on from.
        dispatcher: of this queue.
        client: for the API server.
        links: gives the shared link to a broker.
        clock: wall time in seconds.
        created: when the TaskQueue was made: what finished before was not its own.
        on_gone: called when the API server has no such TaskQueue any more.
    """

    def __init__(
        self,
        config: QueueConfig,
        totals: Totals,
        *,
        dispatcher: Dispatcher,
        client: ApiClient,
        links: Callable[[BrokerParameters], BrokerLink],
        clock: Clock,
        created: float,
        on_gone: Callable[[], None],
    ) -> None:
        self.config = config
        self.totals = totals
        self.pool = WorkerPool(client, clock=clock)
        self.created = created
        self._on_gone = on_gone
        self._dispatcher = dispatcher
        self._client = client
        self._links = links
        self._clock = clock
        self._wake = asyncio.Event()
        self._link: BrokerLink | None = None
        self._declared_on: Up | None = None
        #: The broker has lost, or never had, what counts as published.
        self._lost = False
        self._published_at: BrokerParameters | None = None
        self._next_declare = 0.0
        self._probe: Channel | None = None
        self._ready: int | None = None
        self._broker = Condition("BrokerConnected", None, "Connecting", "")
        self._next_secret = 0.0
        self._next_tick = 0.0
        self._written: dict[str, Any] = {}
        self._since: dict[str, tuple[bool | None, float]] = {}

    def wake(self) -> None:
        """Have the loop run soon."""
        self._wake.set()

    def reconfigure(self, config: QueueConfig) -> None:
        """Take a changed TaskQueue."""
        if config.connection_secret != self.config.connection_secret:
            self._next_secret = 0.0
            self._leave_link()
        self.config = config
        self._dispatcher.config = config
        self._next_tick = 0.0
        self.wake()

    def missing(self) -> None:
        """Take note that the broker has no queue to route to."""
        self._declared_on = None
        self._dispatcher.close()
        self.wake()

    async def leave(self) -> None:
        """Write the totals a last time: this process ends, and what it counted is nowhere else."""
        try:
            await self._write_status()
        except ApiError as problem:
            self._complain("queue.api_error", problem)

    async def run(self) -> None:
        """Keep the TaskQueue true until cancelled."""
        try:
            while True:
                self._wake.clear()
                try:
                    await self._reconcile()
                except ApiError as problem:
                    self._complain("queue.api_error", problem)
                    await asyncio.sleep(problem.retry_after or _TICK_SECONDS)
                except Exception as problem:  # one bad object never stops the others
                    self._complain("queue.failed", problem)
                    await asyncio.sleep(_TICK_SECONDS)
                await asyncio.sleep(_SPACING_SECONDS)
                try:
                    async with asyncio.timeout(max(self._next_tick - self._now(), 0.0)):
                        await self._wake.wait()
                except TimeoutError:
                    pass
        finally:
            self._leave_link()
            await self._leave_probe()

    async def _reconcile(self) -> None:
        tick = self._now() >= self._next_tick
        if tick:
            self._next_tick = self._now() + _TICK_SECONDS
        problems: list[ApiError] = []
        try:
            await self._reach_broker()
            if tick:
                await self._count_ready()
        except ApiError as problem:
            problems.append(problem)  # neither the pool nor the status waits for it
        try:
            await self.pool.reconcile(self.config, backlog=self._backlog(), busy=self._busy())
        except ApiError as problem:
            problems.append(problem)
        slots = self.config.concurrency or _GENEROUS_CONCURRENCY
        self._dispatcher.slots = slots * self.pool.desired
        if tick:
            await self._write_status()
        if problems:
            raise problems[0]

    # Broker.

    async def _reach_broker(self) -> None:
        if self._now() >= self._next_secret:
            self._next_secret = self._now() + _SECRET_SECONDS
            await self._find_link()
            if self._connected:
                self._next_secret = self._now() + _SECRET_CHECK_SECONDS
        if self._link is None:
            return
        state = self._link.state
        if isinstance(state, Down):
            self._declared_on = None
            self._dispatcher.close()
            self._next_secret = min(self._next_secret, self._now() + _SECRET_SECONDS)
            self._next_declare = 0.0
            self._broker = Condition("BrokerConnected", False, state.reason, state.message)
        elif self._declared_on is not state and self._now() >= self._next_declare:
            await self._declare(state)
            self._next_declare = self._now() + _TICK_SECONDS

    @property
    def _connected(self) -> bool:
        return self._link is not None and isinstance(self._link.state, Up)

    async def _find_link(self) -> None:
        """Read the Secret, and take the link to the broker it names.

        A connection that works is not given up because the Secret cannot be read just now.
        """
        namespace, name = self.config.namespace, self.config.connection_secret
        where = f"Secret {namespace}/{name} (spec.broker.connectionSecret)"
        try:
            secret = await self._client.get(f"/api/v1/namespaces/{namespace}/secrets/{name}")
            parameters = BrokerParameters.from_mapping(_decode(secret.get("data") or {}))
        except ApiError as problem:
            if self._connected or problem.status not in (403, 404):
                raise
            self._leave_link()
            if problem.status == 403:
                self._broker = Condition(
                    "BrokerConnected",
                    False,
                    "SecretForbidden",
                    f"{where}: the operator may not read it: give its role get on secrets",
                )
                return
            self._broker = Condition(
                "BrokerConnected",
                False,
                "SecretNotFound",
                f"{where} does not exist: create it with key uri, or host, username and password",
            )
            return
        except BrokerConfigurationError as problem:
            self._leave_link()
            self._broker = Condition(
                "BrokerConnected", False, "SecretInvalid", f"{where}: {problem}"
            )
            return
        link = self._links(parameters)
        if link is not self._link:
            self._leave_link()
            self._link = link
            link.subscribe(self.wake)

    async def _declare(self, up: Up) -> None:
        parameters = self._link.parameters if self._link else None
        if self._published_at not in (None, parameters):
            self._lost = True  # published to another broker
        try:
            await self._leave_probe()
            self._probe = await up.connection.channel()
            if await ready_messages(self._probe, work_queue(*self.config.key)) is None:
                self._lost = True  # kept in mind, should the next steps fail
                self._probe = await up.connection.channel()
            await declare_task_queue(up.connection, *self.config.key)
        except TopologyConflict as problem:
            self._broker = Condition("BrokerConnected", False, "TopologyConflict", str(problem))
            return
        except (BrokerUnavailable, ChannelRefused) as problem:
            self._broker = Condition(
                "BrokerConnected", False, "DeclareFailed", f"{problem}; trying again by itself"
            )
            return
        self._published_at = parameters
        if self._lost:
            self._lost = False
            lost = self._dispatcher.republish_all()
            if lost:
                log.warning(
                    "queue.recreated",
                    namespace=self.config.namespace,
                    queue=self.config.name,
                    republished=lost,
                )
        self._declared_on = up
        self._dispatcher.open(up.publisher)
        self._broker = Condition("BrokerConnected", True, "Connected", "the queue is declared")

    async def _count_ready(self) -> None:
        self._ready = None
        if self._declared_on is None or self._probe is None:
            return
        try:
            self._ready = await ready_messages(self._probe, work_queue(*self.config.key))
        except (BrokerUnavailable, ChannelRefused):
            self._declared_on = None  # declared, or explained, at the next run
            return
        if self._ready is None:
            self.missing()

    async def _leave_probe(self) -> None:
        probe, self._probe = self._probe, None
        if probe is not None:
            await probe.close()

    def _leave_link(self) -> None:
        self._dispatcher.close()
        self._declared_on = None
        if self._link is not None:
            self._link.unsubscribe(self.wake)
            self._link = None

    # Status.

    def _backlog(self) -> int | None:
        """Tasks that may run and messages others published; None while the broker is unknown."""
        if self._declared_on is None:
            return None
        published = self._dispatcher.published
        foreign = max((self._ready or 0) - published, 0)
        return self._dispatcher.waiting + published + foreign

    def _busy(self) -> int:
        """Workers that what is running may keep busy; fewer would stop some of it."""
        if self._ready is None:
            return 0
        running = max(self._dispatcher.published - self._ready, 0)
        return math.ceil(running / (self.config.concurrency or 1))

    async def _write_status(self) -> None:
        status = self._status()
        since = self._transitions(status.conditions)
        patch = queue_status_patch(self.config.key, status, since)
        if patch == self._written:
            return
        path = f"{queue_path(self.config.key)}/status"
        try:
            await self._client.merge(path, patch)
        except ApiError as problem:
            if problem.status == 404:
                self._on_gone()
            elif problem.transient:
                raise
            else:
                self._complain("queue.status_refused", problem)
            return
        self._written = patch

    def _status(self) -> QueueStatus:
        backlog = self._backlog()
        BACKLOG.labels(*self.config.key).set(float("nan") if backlog is None else backlog)
        known = backlog is not None and self._ready is not None
        published = self._dispatcher.published
        ready = self._ready if known else None
        pool = self.pool.state if self.config.template is not None else None
        return QueueStatus(
            observed_generation=self.config.generation,
            conditions=self._conditions(),
            backlog=backlog,
            pending=self._dispatcher.waiting,
            ready=ready,
            running=None if ready is None else max(published - ready, 0),
            replicas=pool.replicas if pool else None,
            desired_replicas=self.pool.desired if self.config.template is not None else None,
            scaling=self.pool.decision.explanation if self.pool.decision else "",
            succeeded=self.totals.succeeded,
            failed=self.totals.failed,
            cancelled=self.totals.cancelled,
            last_scale_time=self.pool.last_scale_time,
        )

    def _conditions(self) -> tuple[Condition, ...]:
        workers, scaling = self.pool.conditions(self.config)
        told = (self._broker, workers, scaling)
        if self._broker.status and not self.pool.refused:
            return (Condition("Ready", True, "Ready", "Tasks are taken and run"), *told)
        cause = workers if self._broker.status else self._broker
        ready = Condition("Ready", False, cause.reason, cause.message)
        # For kstatus: what heals by itself is reconciling, what needs a person is stalled.
        waits = cause.reason in ("Connecting", "BrokerUnavailable", "ReadingInbox", "DeclareFailed")
        kind = "Reconciling" if waits else "Stalled"
        return (ready, *told, Condition(kind, True, cause.reason, cause.message))

    def _transitions(self, conditions: tuple[Condition, ...]) -> Mapping[str, float]:
        now = self._clock()
        for condition in conditions:
            before = self._since.get(condition.type)
            if before is None or before[0] is not condition.status:
                self._since[condition.type] = (condition.status, now)
        return {kind: at for kind, (_, at) in self._since.items()}

    def _complain(self, event: str, problem: Exception) -> None:
        log.error(
            event,
            exc_info=None if isinstance(problem, ApiError) else problem,
            namespace=self.config.namespace,
            queue=self.config.name,
            problem=str(problem),
        )

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()


def _decode(data: Mapping[str, str]) -> dict[str, str]:
    """Return a Secret's data as text.

    Raises:
        BrokerConfigurationError: a value is not text.
    """
    try:
        return {key: base64.b64decode(value).decode() for key, value in data.items()}
    except (binascii.Error, UnicodeDecodeError) as problem:
        raise BrokerConfigurationError(f"a value is not UTF-8 text ({problem})") from None
