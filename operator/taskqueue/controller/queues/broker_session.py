"""One TaskQueue's side of the broker: Secret, link, declared queues, and message counts.

These counts, the broker's statistics and what the operator knows itself make the backlog estimate
that the pool is sized by; see `taskqueue.controller.queues.backlog`.

A step that fails becomes `BrokerSession.condition` and is tried again. One fact must survive a
failure: that the broker has lost, or never had, messages that count as published. They are
published again as soon as the queue is declared.

The queues and their bindings are declared again whatever gives a reason to: another `LinkUp`, a
queue that is missing when messages are counted, a publish that the broker returned, and
`TOPOLOGY_CHECK_SECONDS` after the last time, because the broker reports no binding that is deleted.
"""

from __future__ import annotations

from collections.abc import Callable

from taskqueue.amqp.channel import BrokerUnavailable, Channel, ChannelRefused
from taskqueue.amqp.connection import Connection
from taskqueue.amqp.parameters import BrokerConfigurationError, BrokerParameters, ManagementEndpoint
from taskqueue.contract.names import dead_queue, work_queue
from taskqueue.contract.outbox import ARCHIVE_OUTBOX, Outbox, webhook_outbox
from taskqueue.contract.topology import (
    TopologyConflict,
    count_queue,
    declare_task_queue,
    ready_messages,
    unbind_outboxes,
)
from taskqueue.controller.queues.backlog import BacklogEstimate, BacklogMeter
from taskqueue.controller.queues.broker_link import BrokerLink, LinkDown, LinkUp
from taskqueue.controller.queues.statistics import QueueStatistics, StatisticsReaders
from taskqueue.controller.queues.user_sweeper import UserSweeper
from taskqueue.controller.queues.worker_credentials import BrokerAccess, WorkerCredentials
from taskqueue.controller.tasks.dispatcher import Dispatcher
from taskqueue.kubernetes.broker_secret import read_broker_secret
from taskqueue.kubernetes.client import ApiClient
from taskqueue.kubernetes.secret_values import SecretUnusable
from taskqueue.limits import TOPOLOGY_CHECK_SECONDS
from taskqueue.logs import EventLog
from taskqueue.model.queue import ClusterRef, Condition, QueueConfig, QueueKey

log = EventLog(__name__)

#: A failed declaration is tried again after this.
_DECLARE_SECONDS = 1.0
#: A Secret is read again this often while the broker cannot be reached.
_SECRET_SECONDS = 2.0
#: While connected, it is read this often: it may name another broker.
_SECRET_CHECK_SECONDS = 30.0
#: Reasons to close even a connection that works.
_FORBIDS = ("SecretInvalid", "ClusterNotAllowed")


_Source = tuple[str, ClusterRef | None]


def _source(config: QueueConfig) -> _Source:
    return config.connection_secret, config.rabbitmq_cluster


class BrokerSession:
    """Finds the broker, declares the queues there, and counts their messages.

    Args:
        key: (namespace, name) of the TaskQueue.
        dispatcher: of this queue; opened and closed here.
        client: for the API server.
        links: gives the shared link to a broker.
        installation: whose operator gets the queue's events.
        on_change: called when the link changes.
        on_declared: called when the queues and the bindings of their events exist.
        monotonic: the running loop's clock, in seconds.
        readers: give the shared reader of the broker's statistics.
        sweeper: deletes broker users that are left over.

    Attributes:
        condition: BrokerConnected.
        credentials: who the workers are at the broker.
        ready: messages that no worker has, as last counted; None: unknown.
        consumers: of the work queue, as last counted; None: unknown.
        dead_letters: messages in the dead queue, as last counted; None: unknown.
        parameters: of the broker last found; kept when its Secret goes away.
        secret: (namespace, name) of the Secret last found.
    """

    def __init__(
        self,
        key: QueueKey,
        *,
        dispatcher: Dispatcher,
        client: ApiClient,
        links: Callable[[BrokerParameters], BrokerLink],
        installation: str,
        on_change: Callable[[], None],
        on_declared: Callable[[], None],
        monotonic: Callable[[], float],
        readers: StatisticsReaders,
        sweeper: UserSweeper,
    ) -> None:
        self.credentials = WorkerCredentials(
            client, installation=installation, sweeper=sweeper, monotonic=monotonic
        )
        self.condition = Condition("BrokerConnected", None, "Connecting", "")
        self.ready: int | None = None
        self.consumers: int | None = None
        self.dead_letters: int | None = None
        #: Ends in each outbox, as last counted.
        self._waiting: dict[str, int] = {}
        self.parameters: BrokerParameters | None = None
        self.secret: tuple[str, str] | None = None
        self._key = key
        self._dispatcher = dispatcher
        self._client = client
        self._links = links
        self._installation = installation
        self._on_change = on_change
        self._on_declared = on_declared
        self._now = monotonic
        self._meter = BacklogMeter()
        self._statistics = QueueStatistics(
            work_queue(*key), namespace=key[0], readers=readers, meter=self._meter
        )
        #: What the TaskQueue last named: its connection Secret, or its RabbitmqCluster.
        self._source: _Source | None = None
        #: The endpoint the Secret names, and what is wrong with it.
        self._endpoint: tuple[ManagementEndpoint | None, str] = (None, "")
        self._link: BrokerLink | None = None
        self._declared_on: LinkUp | None = None
        #: That get the ends of the queue's Tasks, and those that were last declared.
        self._sinks: tuple[Outbox, ...] = ()
        self._declared_sinks: tuple[Outbox, ...] | None = None
        #: The broker has lost, or never had, messages that count as published.
        self._published_lost = False
        #: Address of the broker that has what counts as published.
        self._published_at = ""
        self._next_declare = 0.0
        self._next_check = 0.0
        self._next_secret = 0.0
        self._probe: Channel | None = None
        self._last_dead_letters: int | None = None

    @property
    def declared(self) -> bool:
        """Whether the queues exist as far as known, so that counts are meaningful."""
        return self._declared_on is not None

    @property
    def is_bound(self) -> bool:
        """Whether the queue's events reach the inbox, as declared on the present connection."""
        return self._link is not None and self._declared_on is self._link.state

    def outbox_connection(self, sink: str) -> Connection | None:
        """Return what an outbox can be consumed on; None: it is not declared there."""
        if not self.is_bound or all(one.sink != sink for one in self._declared_sinks or ()):
            return None
        return None if self._declared_on is None else self._declared_on.consuming

    def outbox_waiting(self, sink: str) -> int | None:
        """Return the ends in an outbox, as last counted; None: unknown."""
        return self._waiting.get(sink)

    def uses_broker(self, broker: object) -> bool:
        """Return whether this is the broker and virtual host of the present link."""
        return self._link is not None and self._link.broker is broker

    def on_queue_missing(self) -> None:
        """Declare the queue again: the broker has none to route to."""
        self._declared_on = None
        self._dispatcher.close()

    def known_parameters(self, config: QueueConfig) -> BrokerParameters | None:
        """Return where the broker was last found that a TaskQueue names; None: not found yet."""
        return self.parameters if self._source == _source(config) else None

    async def ensure_declared(self, config: QueueConfig) -> None:
        """Take the next step towards a declared queue, if it is not declared.

        Args:
            config: what the TaskQueue asks for.

        Raises:
            ApiError: the API server could not be asked for the Secret; try again.
        """
        if self._source != _source(config):
            self._source = _source(config)
            self._next_secret = 0.0
            self.secret = self.parameters = None
            self._release_link()
        self._sinks = outboxes(config)
        if self._now() >= self._next_secret:
            self._next_secret = self._now() + _SECRET_SECONDS
            await self._update_link(config)
            if self._is_connected:
                self._next_secret = self._now() + _SECRET_CHECK_SECONDS
        self.credentials.reconcile(config, self._access(config), self.secret)
        if self._link is None:
            return
        state = self._link.state
        if isinstance(state, LinkDown):
            self._declared_on = None
            self._dispatcher.close()
            self._next_secret = min(self._next_secret, self._now() + _SECRET_SECONDS)
            self._next_declare = 0.0
            self._set_condition(False, state.reason, state.message)
            return
        is_declared = self._declared_on is state and self._declared_sinks == self._sinks
        due = self._next_check if is_declared else self._next_declare
        if self._now() >= due:
            await self._declare(state)
            self._next_declare = self._now() + _DECLARE_SECONDS
            self._next_check = self._now() + TOPOLOGY_CHECK_SECONDS

    async def count_messages(self) -> None:
        """Count the ready messages of both queues; a missing queue is declared at the next run."""
        self.ready = self.consumers = self.dead_letters = None
        self._waiting.clear()
        self._meter.clear_ready()
        if self._declared_on is None or self._probe is None:
            return
        published = self._dispatcher.published
        try:
            counts = await count_queue(self._probe, work_queue(*self._key))
            if counts is None:
                self.on_queue_missing()
                return
            self.ready, self.consumers = counts
            # A Task published or ended during the count is not a foreign message.
            published = max(published, self._dispatcher.published)
            self._meter.set_ready(self.ready, published=published, now=self._now())
            blocked = self._declared_on.connection.blocked  # the workers' outcomes are blocked too
            self._dispatcher.on_ready_count(self.ready, reporting=not blocked)
            self.dead_letters = await ready_messages(self._probe, dead_queue(*self._key))
            if self.dead_letters is not None:
                await self._count_outboxes(self._probe)
        except (BrokerUnavailable, ChannelRefused):
            self._declared_on = None  # declared, or explained, at the next run
            return
        if self.dead_letters is None:
            self._declared_on = None
            return
        before, self._last_dead_letters = self._last_dead_letters, self.dead_letters
        if before is not None and self.dead_letters > before:
            log.warning(
                "dead_letters.increased",
                namespace=self._key[0],
                queue=self._key[1],
                dead_letters=self.dead_letters,
                added=self.dead_letters - before,
            )

    async def _count_outboxes(self, probe: Channel) -> None:
        for one in self._declared_sinks or ():
            waiting = await ready_messages(probe, one.name(*self._key, self._installation))
            if waiting is None:
                self._declared_on = None  # declared again at the next run
                return
            self._waiting[one.sink] = waiting

    def estimate_backlog(
        self, *, waiting: int, published: int, workers_foreign: int = 0, most_published: int = 0
    ) -> BacklogEstimate:
        """Return the backlog as known at this moment.

        Args:
            waiting: Tasks that may run and wait in the operator.
            published: Tasks in the broker or with a worker.
            workers_foreign: messages other than Tasks that workers hold.
            most_published: the most Tasks published at once since the last call.
        """
        if not self.declared:
            reason = f"{self.condition.reason}: {self.condition.message}".rstrip(": ")
            return BacklogEstimate(
                backlog=None, ready=None, running=None, error=f"the broker is not ready: {reason}"
            )
        now = self._now()
        self._meter.observe_published(max(published, most_published), now)
        error = self._statistics.update_meter()
        return self._meter.update_estimate(
            waiting=waiting,
            published=published,
            workers_foreign=workers_foreign,
            now=now,
            error=error,
        )

    async def close(self) -> None:
        """Release the link, and stop publishing and counting."""
        self._release_link()
        self.ready = self.consumers = self.dead_letters = None
        self._waiting.clear()
        await self.credentials.close()
        await self._close_probe()

    async def delete_users(self, config: QueueConfig) -> None:
        """Delete the broker users of a TaskQueue that is being deleted.

        Raises:
            ApiError, ManagementError, SecretUnusable: try again.
        """
        await self.credentials.delete_users(config, self._access(config))

    def _access(self, config: QueueConfig) -> BrokerAccess | None:
        """Return how the broker is reached that was last found."""
        if self.parameters is None:
            return None
        endpoint, problem = self._endpoint
        if endpoint is None and not problem and config.rabbitmq_cluster is not None:
            endpoint = ManagementEndpoint.beside(self.parameters)  # its Secret never names one
        return BrokerAccess(parameters=self.parameters, management=endpoint, problem=problem)

    @property
    def _is_connected(self) -> bool:
        return self._link is not None and isinstance(self._link.state, LinkUp)

    def _set_condition(self, status: bool, reason: str, message: str) -> None:
        self.condition = Condition("BrokerConnected", status, reason, message)

    async def _update_link(self, config: QueueConfig) -> None:
        """Read the Secret, and use the link to the broker it names.

        A connection that works stays while the Secret cannot be read.
        """
        try:
            parameters = await self.find_parameters(config)
        except SecretUnusable as problem:
            if self._is_connected and problem.reason not in _FORBIDS:
                log.warning(
                    "secret.read_failed",
                    namespace=self._key[0],
                    queue=self._key[1],
                    error=str(problem),
                )
                return
            self._release_link()
            self._set_condition(False, problem.reason, str(problem))
            return
        link = self._links(parameters)
        if link is not self._link:
            self._release_link()
            self._link = link
            link.subscribe(self._on_change)
        self._statistics.set_endpoint(*self._endpoint, self._now())

    async def find_parameters(self, config: QueueConfig) -> BrokerParameters:
        """Read the Secret, and return what it says.

        Raises:
            SecretUnusable: there is none, or it cannot be used.
            ApiError: the API server could not be asked; try again.
        """
        secret = await read_broker_secret(self._client, config)
        try:
            parameters = BrokerParameters.from_mapping(secret.data)
        except BrokerConfigurationError as problem:
            raise SecretUnusable("SecretInvalid", f"{secret.where}: {problem}") from None
        try:
            self._endpoint = (ManagementEndpoint.from_mapping(secret.data, parameters), "")
        except BrokerConfigurationError as problem:
            self._endpoint = (None, f"{secret.where}: {problem}")
        self.secret, self.parameters = (secret.namespace, secret.name), parameters
        return parameters

    async def _declare(self, up: LinkUp) -> None:
        """Declare what is missing, and open the dispatcher unless it is."""
        address = self._link.parameters.address if self._link else ""
        if self._published_at not in ("", address):
            self._published_lost = True  # published to another broker
        try:
            await self._declare_queues(up)
        except TopologyConflict as problem:
            self._on_declare_failed("TopologyConflict", str(problem))
            self._dispatcher.close()
            return
        except (BrokerUnavailable, ChannelRefused) as problem:
            self._on_declare_failed("DeclareFailed", f"{problem}; the operator tries again")
            return
        self._published_at = address
        if self._published_lost:
            self._published_lost = False
            lost = self._dispatcher.republish_all()
            if lost:
                log.warning(
                    "queue.recreated",
                    namespace=self._key[0],
                    queue=self._key[1],
                    republished=lost,
                )
        if self._declared_on is up:
            return
        self._declared_on = up
        self._meter.on_connected(self._now())
        self._dispatcher.open(up.publisher)
        self._set_condition(True, "Connected", "the queue is declared")
        self._on_declared()

    async def _declare_queues(self, up: LinkUp) -> None:
        if self._declared_on is not up or self._probe is None:
            await self._close_probe()
            self._probe = await up.connection.channel()
        if await ready_messages(self._probe, work_queue(*self._key)) is None:
            self._published_lost = True  # survives a failure of the next steps
            self.on_queue_missing()
            self._probe = await up.connection.channel()
        sinks = self._sinks
        await declare_task_queue(up.connection, *self._key, self._installation, sinks=sinks)
        if self._declared_on is not up or self._declared_sinks != sinks:
            # An archive's may be left from another process; a webhook's is deleted in time.
            old = (ARCHIVE_OUTBOX, *(self._declared_sinks or ()))
            await unbind_outboxes(up.connection, old, *self._key, self._installation, needed=sinks)
        self._declared_sinks = sinks

    def _on_declare_failed(self, reason: str, message: str) -> None:
        self._declared_on = None
        self._set_condition(False, reason, message)

    async def _close_probe(self) -> None:
        probe, self._probe = self._probe, None
        if probe is not None:
            await probe.close()

    def _release_link(self) -> None:
        self._dispatcher.close()
        self._statistics.close()
        self._declared_on = None
        if self._link is not None:
            self._link.unsubscribe(self._on_change)
            self._link = None


def outboxes(config: QueueConfig) -> tuple[Outbox, ...]:
    """Return the outboxes of what gets the ends of a TaskQueue's Tasks."""
    archive = () if config.archive is None else (ARCHIVE_OUTBOX,)
    return archive + tuple(
        webhook_outbox(one.name, (f"task.{phase.lower()}" for phase in one.phases))
        for one in config.webhooks
    )
