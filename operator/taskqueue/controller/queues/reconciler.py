"""Reconciles one TaskQueue: its broker link, its queues at the broker, its workers, its status.

Each TaskQueue has one loop, which runs on request and at least once a second. A step that fails
becomes a condition with a reason and is tried again; no other step or TaskQueue waits for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Callable
from typing import Any

from taskqueue.amqp.parameters import BrokerParameters
from taskqueue.contract.heartbeat import Heartbeat
from taskqueue.contract.names import WORK_EXCHANGE
from taskqueue.controller.metrics import WORKER_SLOTS, WORKERS, report_messages
from taskqueue.controller.pool.autoscaler import Load
from taskqueue.controller.pool.pool_members import WorkerObservations
from taskqueue.controller.pool.worker_pool import WorkerPool
from taskqueue.controller.pool.worker_registry import WorkerRegistry, shown_handlers
from taskqueue.controller.queues.backlog import BacklogEstimate
from taskqueue.controller.queues.broker_link import BrokerLink
from taskqueue.controller.queues.broker_session import BrokerSession
from taskqueue.controller.queues.conditions import conditions
from taskqueue.controller.queues.conditions.settings import ConditionSettings
from taskqueue.controller.queues.conditions.transitions import ConditionTransitions
from taskqueue.controller.queues.finalizer import QueueFinalizer
from taskqueue.controller.queues.result_retention import ResultRetention
from taskqueue.controller.queues.sinks import QueueSinks
from taskqueue.controller.queues.statistics import StatisticsReaders
from taskqueue.controller.queues.throughput import Throughput, Totals
from taskqueue.controller.queues.user_sweeper import UserSweeper
from taskqueue.controller.tasks.dispatcher import Dispatcher
from taskqueue.kubernetes.client import ApiClient, ApiError
from taskqueue.kubernetes.taskqueue_codec import queue_path, queue_status_patch
from taskqueue.logs import EventLog
from taskqueue.model.queue import Condition, QueueConfig, QueueStatus
from taskqueue.model.task import Phase
from taskqueue.model.worker import Worker, WorkerState
from taskqueue.timestamps import Clock

log = EventLog(__name__)

#: The loop runs at least this often, and reads the broker's count and writes the status at most.
_TICK_SECONDS = 1.0
#: Shortest time between two runs, so that a burst of Tasks is one decision.
_SPACING_SECONDS = 0.02
#: Slots assumed for a worker that decides by its CPUs: rather too wide a window than idle workers.
_GENEROUS_CONCURRENCY = 32


class QueueReconciler:
    """Runs the loop of one TaskQueue, and holds what it knows.

    Args:
        config: what the TaskQueue asks for.
        totals: where counting continues.
        dispatcher: of this queue.
        client: for the API server.
        links: gives the shared link to a broker.
        clock: wall time in seconds.
        created: when the TaskQueue was created.
        on_deleted: called when the API server no longer has the TaskQueue.
        on_condition: called with each condition at each status.
        many_finished: returns the finished Tasks of a namespace; 0: few, None: unknown.
        condition_settings: of the operator.
        installation: of the operator, in names at the broker.
        on_declared: called when the queues and the bindings of their events exist.
        sinks: of this queue.
        readers: give the shared readers of the brokers' statistics.
        sweeper: deletes broker users that are left over.
        sizing_conflict: returns why a TaskQueue must not size what it refers to; "": it may.
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
        readers: StatisticsReaders,
        sweeper: UserSweeper,
        many_finished: Callable[[str], int | None],
        condition_settings: ConditionSettings,
        installation: str,
        on_declared: Callable[[], None],
        sinks: QueueSinks,
        on_deleted: Callable[[], None],
        on_condition: Callable[[Condition], None] = lambda condition: None,
        sizing_conflict: Callable[[QueueConfig], str] = lambda config: "",
    ) -> None:
        self.config = config
        self.totals = totals
        self.registry = WorkerRegistry(lambda pod: dispatcher.on_running_reported(pod, ()))
        self.pool = WorkerPool(
            client,
            clock=clock,
            send_drain=dispatcher.send_drain,
            installation=installation,
            on_pods=self.registry.on_pods_listed,
            sizing_conflict=sizing_conflict,
            monotonic=self._now,
        )
        self.created = created
        self._on_deleted = on_deleted
        self._on_condition = on_condition
        self.sinks = sinks
        sinks.set_on_change(self.request_reconcile)
        self._dispatcher = dispatcher
        self._client = client
        self._clock = clock
        self._many_finished = many_finished
        self._condition_settings = condition_settings
        self._wake = asyncio.Event()
        dispatcher.on_backlog = self._wake.set
        dispatcher.on_missing = self.on_queue_missing
        self._broker = BrokerSession(
            config.key,
            dispatcher=dispatcher,
            client=client,
            links=links,
            installation=installation,
            on_change=self.request_reconcile,
            on_declared=on_declared,
            monotonic=self._now,
            readers=readers,
            sweeper=sweeper,
        )
        self._finalizer = QueueFinalizer(
            client=client,
            installation=installation,
            find_parameters=self._broker.find_parameters,
            delete_users=self._broker.delete_users,
        )
        self._results = ResultRetention(client, clock)
        self._writing = asyncio.Lock()
        #: When a direct message was last known to have come by the exchange for work.
        self._misplaced_at: float | None = None
        #: Since when the broker has no message; None: it has one, or that is not known.
        self._unused_since: float | None = None
        #: Since when heartbeats can arrive; None: they cannot.
        self._listening_since: float | None = None
        self._throughput = Throughput()
        self._transitions = ConditionTransitions()
        self._next_tick = 0.0
        self._written: dict[str, Any] = {}

    def request_reconcile(self) -> None:
        """Make the loop run soon."""
        self._wake.set()

    def reconfigure(self, config: QueueConfig) -> None:
        """Use a changed spec from now on."""
        self.config = config
        self._dispatcher.config = config  # which dispatches between two runs
        self._next_tick = 0.0
        self.request_reconcile()

    def on_queue_missing(self) -> None:
        """Declare the queue again: the broker has none to route to."""
        self._broker.on_queue_missing()
        self.request_reconcile()

    def on_task_ended(self, phase: Phase, seconds: float | None) -> None:
        """Count a Task whose final status is written; its last attempt ran for ``seconds``.

        The totals survive a change of the leader; the throughput is of this process only.
        """
        self.totals.count(phase)
        self._throughput.on_task_ended(self._now(), seconds)

    @property
    def is_bound(self) -> bool:
        """Whether the queue's events reach the inbox, as far as known."""
        return self._broker.is_bound

    def uses_broker(self, broker: object) -> bool:
        """Return whether the TaskQueue uses this broker: what others say of it does not count."""
        return self._broker.uses_broker(broker)

    def on_direct_end(self, exchange: str) -> None:
        """Note by which exchange a direct message came that has ended."""
        if exchange == WORK_EXCHANGE:
            self._misplaced_at = self._now()

    def on_heartbeat(self, heartbeat: Heartbeat, *, proven: bool = False) -> None:
        """Register a worker's heartbeat; ``proven``: it has got a message of the operator's."""
        worker = Worker(
            pod=heartbeat.pod,
            node=heartbeat.node,
            cpus=heartbeat.cpus,
            slots=heartbeat.slots,
            handlers=shown_handlers(heartbeat.handlers),
        )
        changed = self.registry.on_heartbeat(
            worker,
            running=len(heartbeat.running),
            busy=len(heartbeat.running) if heartbeat.busy is None else heartbeat.busy,
            state=heartbeat.state,
            now=self._now(),
            proven=proven,
        )
        if heartbeat.state is WorkerState.READY:
            self._dispatcher.on_handlers_registered(heartbeat.handlers)
        if changed:
            self.request_reconcile()

    def _drop_lost_workers(self) -> None:
        for pod in self.registry.pop_lost(self._now()):
            log.warning(
                "worker.lost",
                namespace=self.config.namespace,
                queue=self.config.name,
                worker=pod,
                hint="no heartbeat arrived, and the worker did not stop in order; its attempts run "
                "again",
            )
        WORKERS.labels(*self.config.key).set(len(self.registry))
        WORKER_SLOTS.labels(*self.config.key).set(self.registry.slots)

    async def write_last_status(self) -> None:
        """Write the totals a last time: this process ends, and nothing else has them."""
        try:
            await self._write_status(self.config, self._update_estimate())
        except ApiError as problem:
            self._log_failure("queue.reconcile_failed", problem)

    async def run(self) -> None:
        """Reconcile until cancelled."""
        try:
            while True:
                self._wake.clear()
                try:
                    await self._reconcile()
                except Exception as problem:  # one bad object never stops the others
                    self._log_failure("queue.reconcile_failed", problem)
                    pause = problem.retry_after if isinstance(problem, ApiError) else None
                    await asyncio.sleep(pause or _TICK_SECONDS)
                await asyncio.sleep(_SPACING_SECONDS)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(max(self._next_tick - self._now(), 0.0)):
                        await self._wake.wait()
        finally:
            await self.sinks.close()
            self._results.close()
            await self._broker.close()

    async def _reconcile(self) -> None:
        config = self.config  # of this run; a change asks for another one
        tick = self._now() >= self._next_tick
        if tick:
            self._next_tick = self._now() + _TICK_SECONDS
            self._drop_lost_workers()
            self._results.reconcile(config)
        if config.deleting:
            await self._finalize(config, tick=tick)
            return
        problems: list[ApiError] = []
        try:
            # Before there are queues that it would have to delete.
            await self._finalizer.sync_finalizer(config)
        except ApiError as problem:
            problems.append(problem)  # pool and status do not wait for it
        try:
            await self._broker.ensure_declared(config)
            if tick:
                await self._broker.count_messages()
        except ApiError as problem:
            problems.append(problem)
        await self.sinks.reconcile(config, self._broker)
        estimate = self._update_estimate()
        try:
            await self._size_pool(config, estimate)
        except ApiError as problem:
            problems.append(problem)
        if tick:
            await self._write_status(config, estimate)
        if problems:
            raise problems[0]

    async def _finalize(self, config: QueueConfig, *, tick: bool) -> None:
        """Finish a TaskQueue that is being deleted; nothing is declared any more."""
        await self.sinks.close()
        await self._broker.close()
        if tick:
            await self.write_last_status()  # the deletion does not wait for it
        await self._finalizer.finalize(config, known=self._broker.known_parameters(config))

    def _update_estimate(self) -> BacklogEstimate:
        """Return the backlog; the peak of published Tasks starts over with each call."""
        return self._broker.estimate_backlog(
            waiting=self._dispatcher.waiting,
            published=self._dispatcher.published,
            most_published=self._dispatcher.pop_most_published(),
            workers_foreign=self.registry.foreign,
        )

    # Workers.

    async def _size_pool(self, config: QueueConfig, estimate: BacklogEstimate) -> None:
        """Size the pool by the backlog."""
        slots, backlog = config.concurrency or _GENEROUS_CONCURRENCY, estimate.backlog
        self._dispatcher.slots = max(slots * self.pool.desired, self.registry.slots)
        await self.pool.reconcile(
            config,
            Load(
                backlog=None if backlog is None else max(backlog - self._dispatcher.excess, 0),
                pending=self._dispatcher.waiting,
                error=estimate.error,
                busy=self._busy(config, estimate),
                slots=config.concurrency or self.registry.slots_each,
                mean_run_seconds=self._throughput.read(self._now()).mean_run_seconds,
            ),
            WorkerObservations(
                views=self.registry.views,
                unused=self._unused_seconds(estimate),
                listened=self._listened_seconds(),
                consumers=self._broker.consumers,
            ),
            secret=self._broker.credentials.secret,
        )
        self._dispatcher.slots = max(slots * self.pool.desired, self.registry.slots)

    def _unused_seconds(self, estimate: BacklogEstimate) -> float:
        """Return for how many seconds the broker had no message, as far as known."""
        now, pending = self._now(), self._dispatcher.waiting
        if estimate.backlog is None or estimate.error or estimate.backlog > pending:
            self._unused_since = None
        elif self._unused_since is None:
            self._unused_since = now
        return 0.0 if self._unused_since is None else now - self._unused_since

    def _listened_seconds(self) -> float:
        """Return for how many seconds heartbeats could arrive without a break."""
        now = self._now()
        if not self._broker.declared:
            self._listening_since = None
        elif self._listening_since is None:
            self._listening_since = now
        return 0.0 if self._listening_since is None else now - self._listening_since

    def _busy(self, config: QueueConfig, estimate: BacklogEstimate) -> int:
        """Return how many workers the running messages need.

        A drained pool keeps a worker for each: a requeued message would not be run again.
        """
        slots = 1 if config.stop_policy.drains else config.concurrency or self.registry.slots_each
        running = (estimate.running or 0) - self._dispatcher.excess
        busy = math.ceil(max(running, 0) / slots)
        if config.stop_policy.holds:
            # Messages that a former leader published are known from its workers only.
            busy = max(busy, self.registry.busy)
        return busy

    # Status.

    async def _write_status(self, config: QueueConfig, estimate: BacklogEstimate) -> None:
        # One at a time: the last one, when this process ends, must not be overtaken.
        async with self._writing:
            await self._write_status_now(config, estimate)

    async def _write_status_now(self, config: QueueConfig, estimate: BacklogEstimate) -> None:
        status = self._status(config, estimate)
        for condition in status.conditions:
            self._on_condition(condition)
        since = self._transitions.record(status.conditions, self._clock())
        patch = queue_status_patch(config.key, status, since)
        if patch == self._written:
            return
        path = f"{queue_path(config.key)}/status"
        try:
            await self._client.merge(path, patch)
        except ApiError as problem:
            if problem.status == 404:
                self._on_deleted()
            elif problem.transient:
                raise
            else:
                self._log_failure("queue.status_rejected", problem)
            return
        self._written = patch

    def _status(self, config: QueueConfig, estimate: BacklogEstimate) -> QueueStatus:
        dead_letters = None if estimate.backlog is None else self._broker.dead_letters
        report_messages(
            config.key,
            backlog=estimate.backlog,
            ready=estimate.ready,
            running=estimate.running,
            dead_letters=dead_letters,
        )
        scaled = config.scales
        state = self.pool.state(config)
        speed = self._throughput.read(self._now())
        return QueueStatus(
            observed_generation=config.generation,
            conditions=self._conditions(config),
            backlog=estimate.backlog,
            pending=self._dispatcher.waiting,
            ready=estimate.ready,
            running=estimate.running,
            replicas=state.replicas if state else None,
            desired_replicas=self.pool.desired if scaled else None,
            scaling=self.pool.explanation if scaled else "",
            selector=self.pool.selector(config),
            succeeded=self.totals.succeeded,
            failed=self.totals.failed,
            cancelled=self.totals.cancelled,
            dead_letters=dead_letters,
            throughput_per_minute=speed.per_minute,
            mean_run_seconds=speed.mean_run_seconds,
            workers=self.registry.workers,
            last_scale_time=self.pool.last_scale_time,
        )

    def _conditions(self, config: QueueConfig) -> tuple[Condition, ...]:
        workers, scaling = self.pool.conditions(config)
        misplaced = self._misplaced_at
        return conditions(
            config,
            broker=self._broker.condition,
            credentials=self._broker.credentials.condition,
            credentials_missing=self._broker.credentials.is_missing,
            workers=workers,
            scaling=scaling,
            refused=self.pool.is_refused(config),
            missing=self._dispatcher.missing,
            limited_by=self._dispatcher.limited_by,
            dead_letter_count=self._broker.dead_letters if self._broker.declared else None,
            many_finished=self._many_finished(config.namespace),
            settings=self._condition_settings,
            misplaced_seconds=None if misplaced is None else self._now() - misplaced,
            results=self._results.condition,
            sinks=self.sinks.conditions(config),
        )

    def _log_failure(self, event: str, problem: Exception) -> None:
        exc_info = None if isinstance(problem, ApiError) else problem
        namespace, queue = self.config.key
        log.error(event, exc_info=exc_info, namespace=namespace, queue=queue, error=str(problem))

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()
