"""One TaskQueue's side of the broker: Secret, link, declared queues, and what is counted in them.

What is counted here, what the broker's statistics say and what the operator knows itself make the
signal that the pool is sized by; how is told in `taskqueue.controller.queues.backlog`.

A step that fails becomes `BrokerSession.condition` and is tried again. What must not be forgotten
over a failure: that the broker has lost, or never had, what counts as published; it is published
again as soon as the queue is declared.
"""

from __future__ import annotations

from collections.abc import Callable

from taskqueue.amqp.channel import BrokerUnavailable, Channel, ChannelRefused
from taskqueue.amqp.parameters import BrokerConfigurationError, BrokerParameters, StatisticsEndpoint
from taskqueue.contract.names import dead_queue, work_queue
from taskqueue.contract.topology import TopologyConflict, declare_task_queue, ready_messages
from taskqueue.controller.queues.backlog import BacklogEstimate, BacklogMeter
from taskqueue.controller.queues.broker_link import BrokerLink, LinkDown, LinkUp
from taskqueue.controller.queues.statistics import NoReaders, QueueStatistics, Readers
from taskqueue.controller.tasks.dispatcher import Dispatcher
from taskqueue.kubernetes.broker_secret import NoBrokerSecret, read_broker_secret
from taskqueue.kubernetes.client import ApiClient
from taskqueue.logs import EventLog
from taskqueue.model.queue import Condition, QueueConfig

log = EventLog(__name__)

#: A declaration that failed is tried again after this.
_DECLARE_SECONDS = 1.0
#: A Secret is read again this often while the broker cannot be reached.
_SECRET_SECONDS = 2.0
#: While connected, it is read this often: it may name another broker.
_SECRET_CHECK_SECONDS = 30.0
#: Why even a connection that works is given up.
_FORBIDS = ("SecretInvalid", "ClusterNotAllowed")


class BrokerSession:
    """See the module's contract.

    Args:
        config: what the TaskQueue asks for.
        dispatcher: of this queue; opened and closed here.
        client: for the API server.
        links: gives the shared link to a broker.
        wake: has the TaskQueue's loop run soon.
        monotonic: seconds that never jump; the running loop's, if there are readers.
        readers: give the shared reader of the broker's statistics.

    Attributes:
        condition: BrokerConnected.
        ready: messages no worker has taken, as last counted; None: unknown.
        dead_letters: messages in the dead queue, as last counted; None: unknown.
        parameters: of the broker last found; kept when its Secret goes away.
        secret: (namespace, name) of the Secret last found.
    """

    def __init__(
        self,
        config: QueueConfig,
        *,
        dispatcher: Dispatcher,
        client: ApiClient,
        links: Callable[[BrokerParameters], BrokerLink],
        wake: Callable[[], None],
        monotonic: Callable[[], float],
        readers: Readers | None = None,
    ) -> None:
        self.condition = Condition("BrokerConnected", None, "Connecting", "")
        self.ready: int | None = None
        self.dead_letters: int | None = None
        self.parameters: BrokerParameters | None = None
        self.secret: tuple[str, str] | None = None
        self._config = config
        self._dispatcher = dispatcher
        self._client = client
        self._links = links
        self._wake = wake
        self._now = monotonic
        self._meter = BacklogMeter()
        self._statistics = QueueStatistics(
            work_queue(*config.key), readers=readers or NoReaders(), meter=self._meter
        )
        #: The endpoint the Secret names, and what is wrong with it.
        self._endpoint: tuple[StatisticsEndpoint | None, str] = (None, "")
        self._link: BrokerLink | None = None
        self._declared_on: LinkUp | None = None
        #: The broker has lost, or never had, what counts as published.
        self._lost = False
        self._published_at: BrokerParameters | None = None
        self._next_declare = 0.0
        self._next_secret = 0.0
        self._probe: Channel | None = None
        self._last_dead_letters: int | None = None

    @property
    def declared(self) -> bool:
        """Whether the queues are there as far as known, so that counts mean something."""
        return self._declared_on is not None

    def reconfigure(self, config: QueueConfig) -> None:
        """Take a changed TaskQueue."""
        before, self._config = self._config, config
        if (config.connection_secret, config.rabbitmq_cluster) != (
            before.connection_secret,
            before.rabbitmq_cluster,
        ):
            self._next_secret = 0.0
            self.secret = self.parameters = None
            self._leave_link()

    def missing(self) -> None:
        """Take note that the broker has no queue to route to."""
        self._declared_on = None
        self._dispatcher.close()

    async def reach(self) -> None:
        """Bring the queue one step nearer to being declared, if it is not.

        Raises:
            ApiError: the API server could not be asked for the Secret; try again.
        """
        if self._now() >= self._next_secret:
            self._next_secret = self._now() + _SECRET_SECONDS
            await self._find_link()
            if self._connected:
                self._next_secret = self._now() + _SECRET_CHECK_SECONDS
        if self._link is None:
            return
        state = self._link.state
        if isinstance(state, LinkDown):
            self._declared_on = None
            self._dispatcher.close()
            self._next_secret = min(self._next_secret, self._now() + _SECRET_SECONDS)
            self._next_declare = 0.0
            self._tell(False, state.reason, state.message)
        elif self._declared_on is not state and self._now() >= self._next_declare:
            await self._declare(state)
            self._next_declare = self._now() + _DECLARE_SECONDS

    async def count(self) -> None:
        """Count what is ready in both queues; a queue found missing is declared at the next run."""
        self.ready = self.dead_letters = None
        self._meter.uncounted()
        if self._declared_on is None or self._probe is None:
            return
        published = self._dispatcher.published
        try:
            self.ready = await ready_messages(self._probe, work_queue(*self._config.key))
            if self.ready is None:
                self.missing()
                return
            # A Task published, or ended, while it was counted is no message of others.
            published = max(published, self._dispatcher.published)
            self._meter.counted(self.ready, published=published, now=self._now())
            blocked = self._declared_on.connection.blocked  # the workers' outcomes wait as well
            self._dispatcher.on_ready_count(self.ready, reporting=not blocked)
            self.dead_letters = await ready_messages(self._probe, dead_queue(*self._config.key))
        except (BrokerUnavailable, ChannelRefused):
            self._declared_on = None  # declared, or explained, at the next run
            return
        if self.dead_letters is None:
            self._declared_on = None
            return
        before, self._last_dead_letters = self._last_dead_letters, self.dead_letters
        if before is not None and self.dead_letters > before:
            log.warning(
                "queue.dead_letters",
                namespace=self._config.namespace,
                queue=self._config.name,
                dead_letters=self.dead_letters,
                more=self.dead_letters - before,
            )

    def signal(
        self, *, waiting: int, published: int, workers_foreign: int = 0, most_published: int = 0
    ) -> BacklogEstimate:
        """Tell what there is to do, as far as known just now.

        Args:
            waiting: Tasks that may run and are still in the operator.
            published: Tasks in the broker or with a worker.
            workers_foreign: messages that workers have in hand and that are no Tasks.
            most_published: the most Tasks that were published at once since this was last asked.
        """
        if not self.declared:
            why = f"{self.condition.reason}: {self.condition.message}".rstrip(": ")
            return BacklogEstimate(
                backlog=None, ready=None, running=None, problem=f"the broker is not ready: {why}"
            )
        now = self._now()
        self._meter.published(max(published, most_published), now)
        trouble = self._statistics.tell()
        return self._meter.read(
            waiting=waiting,
            published=published,
            workers_foreign=workers_foreign,
            now=now,
            problem=trouble,
        )

    async def leave(self) -> None:
        """Publish, hold and count nothing any more."""
        self._leave_link()
        self.ready = self.dead_letters = None
        await self._leave_probe()

    @property
    def _connected(self) -> bool:
        return self._link is not None and isinstance(self._link.state, LinkUp)

    def _tell(self, status: bool, reason: str, message: str) -> None:
        self.condition = Condition("BrokerConnected", status, reason, message)

    async def _find_link(self) -> None:
        """Read the Secret, and take the link to the broker it names.

        A connection that works is not given up because the Secret cannot be read just now.
        """
        try:
            parameters = await self.find_parameters()
        except NoBrokerSecret as problem:
            if self._connected and problem.reason not in _FORBIDS:
                log.warning(
                    "queue.secret_unreadable",
                    namespace=self._config.namespace,
                    queue=self._config.name,
                    problem=str(problem),
                )
                return
            self._leave_link()
            self._tell(False, problem.reason, str(problem))
            return
        link = self._links(parameters)
        if link is not self._link:
            self._leave_link()
            self._link = link
            link.subscribe(self._wake)
        self._statistics.use(*self._endpoint, self._now())

    async def find_parameters(self) -> BrokerParameters:
        """Read the Secret, and return what it says.

        Raises:
            NoBrokerSecret: there is none, or it cannot be used.
            ApiError: the API server could not be asked; try again.
        """
        secret = await read_broker_secret(self._client, self._config)
        try:
            parameters = BrokerParameters.from_mapping(secret.data)
        except BrokerConfigurationError as problem:
            raise NoBrokerSecret("SecretInvalid", f"{secret.where}: {problem}") from None
        try:
            self._endpoint = (StatisticsEndpoint.from_mapping(secret.data, parameters), "")
        except BrokerConfigurationError as problem:
            self._endpoint = (None, f"{secret.where}: {problem}")
        self.secret, self.parameters = (secret.namespace, secret.name), parameters
        return parameters

    async def _declare(self, up: LinkUp) -> None:
        parameters = self._link.parameters if self._link else None
        if self._published_at not in (None, parameters):
            self._lost = True  # published to another broker
        key = self._config.key
        try:
            await self._leave_probe()
            self._probe = await up.connection.channel()
            if await ready_messages(self._probe, work_queue(*key)) is None:
                self._lost = True  # kept in mind, should the next steps fail
                self._probe = await up.connection.channel()
            await declare_task_queue(up.connection, *key)
        except TopologyConflict as problem:
            self._tell(False, "TopologyConflict", str(problem))
            return
        except (BrokerUnavailable, ChannelRefused) as problem:
            self._tell(False, "DeclareFailed", f"{problem}; trying again by itself")
            return
        self._published_at = parameters
        if self._lost:
            self._lost = False
            lost = self._dispatcher.republish_all()
            if lost:
                log.warning(
                    "queue.recreated",
                    namespace=self._config.namespace,
                    queue=self._config.name,
                    republished=lost,
                )
        self._declared_on = up
        self._meter.connected(self._now())
        self._dispatcher.open(up.publisher)
        self._tell(True, "Connected", "the queue is declared")

    async def _leave_probe(self) -> None:
        probe, self._probe = self._probe, None
        if probe is not None:
            await probe.close()

    def _leave_link(self) -> None:
        self._dispatcher.close()
        self._statistics.leave()
        self._declared_on = None
        if self._link is not None:
            self._link.unsubscribe(self._wake)
            self._link = None
