"""The operator's link to one RabbitMQ: keeps two connections, and reads the inbox before dispatch.

Contract:

* Publishing and consuming have a connection each: under a memory alarm the broker stops reading
  from a publishing connection, including its acknowledgements.
* The link is up only when the feed is synced and the inbox was read up to a marker that this
  process published: every waiting outcome is known before anything is published again. Another link
  of this process may read the marker (two addresses of one broker: the inbox has a single active
  consumer), which counts as well. A former leader that is stopping may consume it, so markers are
  published until one comes back.
* `BrokerLink.state` is `LinkDown` with a reason, or `LinkUp`; each change calls the subscribers.
* Each `LinkUp` stands for a topology that all TaskQueues have to be declared on. While connected
  a `TopologyWatch` declares again what somebody deletes, and the state becomes another `LinkUp`:
  with an exchange, the bindings of the TaskQueues were deleted too.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random
from typing import Any

from taskqueue.amqp.channel import BrokerUnavailable, ChannelRefused, Delivery
from taskqueue.amqp.connection import Connection, connect
from taskqueue.amqp.parameters import BrokerConfigurationError, BrokerParameters
from taskqueue.amqp.publisher import Publisher, Settled
from taskqueue.backoff import HELD_SECONDS, Backoff
from taskqueue.contract.command import FIRST_COMMAND, command_message
from taskqueue.contract.names import (
    CONTROL_STREAM,
    OPERATOR,
    OUTCOMES_EXCHANGE,
    heartbeats_queue,
    inbox_queue,
    marker_key,
    operator_name,
    queue_of_key,
)
from taskqueue.contract.outgoing import OutgoingMessage, dead_letter
from taskqueue.contract.topology import (
    TopologyConflict,
    declare_operator_topology,
    unbind_all_keys,
)
from taskqueue.controller.metrics import MESSAGES_PARKED
from taskqueue.controller.queues.topology_watch import TopologyWatch
from taskqueue.limits import SHORT_STRING_BYTES
from taskqueue.logs import EventLog

log = EventLog(__name__)

#: Outcomes in memory at most: each waits for its status write before it is acknowledged.
INBOX_PREFETCH = 4000
#: Of the connection that consumes the inbox. A leader that is paused stays its consumer until the
#: broker has heard nothing for two to three of these; the next leader waits for that.
_INBOX_HEARTBEAT_SECONDS = 3
_MARKER_TYPE = "marker"
#: Another marker is published after this long without one.
_MARKER_SECONDS = 2.0
#: A message that the broker refused to park is published again after this long.
_PARK_AGAIN_SECONDS = 5.0
#: Workers that start when the stream has forgotten the first command learn of this operator by the
#: next.
_ANNOUNCE_SECONDS = 3600.0
#: A broker that does not confirm within this time blocks its publishers.
_CONFIRM_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class LinkDown:
    """Not connected; ``reason`` is CamelCase, ``message`` says what to do."""

    reason: str
    message: str


@dataclass(frozen=True, slots=True, eq=False)
class LinkUp:
    """Connected, declared, and the inbox read up to date; equal to no other."""

    publisher: Publisher
    connection: Connection
    #: To consume on: a broker that blocks publishers reads its acknowledgements.
    consuming: Connection | None = None


State = LinkDown | LinkUp


class InboxMarkers:
    """The markers this process waits for, shared by its links: any of them may read one.

    Which link reads a marker also proves which links have the same broker and virtual host: nobody
    else knows the marker. A broker's name would prove nothing, as it chooses that itself.

    One link reads all of them at a broker, so in the end all have what stands for its broker. That
    is made with each connection, before anything can be read by it, and not when a link reads
    its own marker: others may have taken it over by then.
    """

    def __init__(self) -> None:
        self._awaited: dict[str, tuple[BrokerLink, asyncio.Event]] = {}

    def create(self, owner: BrokerLink) -> tuple[str, asyncio.Event]:
        """Return the id of a new marker of a link, and what is set once it is read."""
        marker, seen = uuid.uuid4().hex, asyncio.Event()
        self._awaited[marker] = owner, seen
        return marker, seen

    def on_marker_read(self, marker: str | None, reader: BrokerLink) -> None:
        """Handle a marker from a link's inbox; one of another process is ignored."""
        awaited = self._awaited.get(marker or "")
        if awaited is not None:
            owner, seen = awaited
            owner.broker = reader.broker
            seen.set()

    def discard(self, marker: str) -> None:
        """Stop waiting for a marker."""
        self._awaited.pop(marker, None)


class BrokerLink:
    """Connects to one broker, and reconnects; `run` does so until cancelled.

    Args:
        parameters: where the broker is.
        installation: whose inbox it reads.
        feed_synced: set once all unfinished Tasks are known.
        markers: shared by all links of the process.
        random: for the pauses between tries.
    """

    def __init__(
        self,
        parameters: BrokerParameters,
        *,
        installation: str,
        feed_synced: asyncio.Event,
        markers: InboxMarkers,
        random: Random,
    ) -> None:
        self.parameters = parameters
        #: Stands for the broker and virtual host that it was last connected to: all links of this
        #: process to the same have the same object.
        self.broker = object()
        self.state: State = LinkDown("Connecting", f"connecting to {parameters.address}")
        #: Called with each message of the inbox, and this link; set it before `run`.
        self.on_message: Callable[[Delivery, BrokerLink], None] = lambda delivery, link: None
        self._installation = installation
        self._feed_synced = feed_synced
        self._random = random
        self._subscribers: set[Callable[[], None]] = set()
        self._markers = markers
        self._publisher: Publisher | None = None
        #: The connection on which the bindings of older operators were removed.
        self._unbound_on: Connection | None = None

    def subscribe(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` whenever the state changes."""
        self._subscribers.add(callback)

    def unsubscribe(self, callback: Callable[[], None]) -> None:
        """Undo `subscribe`."""
        self._subscribers.discard(callback)

    @property
    def publisher(self) -> Publisher | None:
        """Publishes at this broker, even before the inbox is read; None while not connected."""
        return self._publisher

    @property
    def is_unused(self) -> bool:
        """Whether nobody is subscribed."""
        return not self._subscribers

    async def run(self) -> None:
        """Connect, and reconnect, until cancelled."""
        await self._feed_synced.wait()
        backoff = Backoff(
            held_seconds=HELD_SECONDS,
            random=self._random.random,
            clock=asyncio.get_running_loop().time,
        )
        while True:
            try:
                await self._connect_and_serve(backoff.succeeded)
            except BrokerUnavailable as problem:
                self._set_state(
                    LinkDown("BrokerUnavailable", f"{problem}; the operator tries again")
                )
            except ChannelRefused as problem:
                self._set_state(
                    LinkDown(
                        "PermissionDenied" if problem.code == 403 else "BrokerRefused",
                        f"RabbitMQ at {self.parameters.address}: {problem}; the operator's broker "
                        "user needs configure, write and read on names that start with taskqueue, "
                        "and write on amq.default",
                    )
                )
            except TopologyConflict as problem:
                self._set_state(LinkDown("TopologyConflict", str(problem)))
            except BrokerConfigurationError as problem:
                self._set_state(LinkDown("SecretInvalid", str(problem)))
            except Exception as problem:  # a link that ends would never be retried
                log.error("broker.link_failed", exc_info=problem, broker=self.parameters.address)
                self._set_state(LinkDown("Failed", f"{problem!r}; the operator tries again"))
            await asyncio.sleep(backoff.next_delay())

    async def unbind_all_keys(self, up: LinkUp) -> None:
        """Take only the messages that TaskQueues are bound for; done once on a connection.

        If it fails, messages of others keep coming: they are dropped when they are read.
        """
        if self._unbound_on is up.connection:
            return
        self._unbound_on = up.connection
        try:
            await unbind_all_keys(up.connection, self._installation)
        except (BrokerUnavailable, ChannelRefused) as problem:
            log.warning("inbox.unbind_failed", broker=self.parameters.address, error=str(problem))

    def dead_letter_delivery(self, delivery: Delivery, reason: str) -> None:
        """Publish a message of the inbox to the dead exchange, then acknowledge it."""
        # Whatever the key is, the copy's fits: a publish that raises would lose a slot.
        key = delivery.routing_key.encode()[: SHORT_STRING_BYTES - 1].decode(errors="ignore")
        namespace, queue = queue_of_key(key)
        message = dead_letter(
            delivery.properties,
            delivery.body,
            exchange=delivery.exchange,
            namespace=namespace,
            queue=queue,
            reason=reason,
        )

        def settled(verdict: Settled, text: str) -> None:
            if verdict is not Settled.UNKNOWN:
                MESSAGES_PARKED.inc()
                # Also when it was returned: no TaskQueue has the name, and nobody looks for it.
                delivery.channel.ack(delivery.delivery_tag)
            elif delivery.channel.is_open:  # refused: a queue is full, or has no leader just now
                asyncio.get_running_loop().call_later(_PARK_AGAIN_SECONDS, publish)

        def publish() -> None:
            # With the publisher the channel is lost, and the message comes again.
            if self._publisher is not None:
                self._publisher.publish(
                    message.exchange, message.key, message.body, message.properties(), settled
                )

        publish()

    async def _connect_and_serve(self, on_up: Callable[[], None]) -> None:
        address, name = self.parameters.address, operator_name(self._installation)
        async with asyncio.timeout(60):
            publishing = await connect(self.parameters, name=f"{name}: publish")
        try:
            consuming = await connect(
                self.parameters,
                name=f"{name}: inbox",
                heartbeat_seconds=_INBOX_HEARTBEAT_SECONDS,
            )
            try:
                await self._serve(publishing, consuming, on_up)
            finally:
                await consuming.close()
        finally:
            self._publisher = None
            await publishing.close()
            if isinstance(self.state, LinkUp):
                self._set_state(LinkDown("BrokerUnavailable", f"connection to {address} lost"))

    async def _serve(
        self, publishing: Connection, consuming: Connection, on_up: Callable[[], None]
    ) -> None:
        await declare_operator_topology(consuming, self._installation)
        watch = TopologyWatch(
            consuming,
            self._installation,
            on_recreated=lambda names: self._on_recreated(
                names, LinkUp(publisher, publishing, consuming)
            ),
        )
        self._publisher = publisher = await Publisher.open(publishing, on_return=watch.on_return)
        self._announce(publisher)
        channel = await consuming.channel()
        await channel.set_prefetch(INBOX_PREFETCH)
        cancelled: asyncio.Future[str] = asyncio.get_running_loop().create_future()

        def on_cancel(reason: str) -> None:
            if not cancelled.done():
                cancelled.set_result(reason)

        self.broker = object()  # the address may lead to another one now
        for queue in (inbox_queue(self._installation), heartbeats_queue(self._installation)):
            await channel.consume(queue, self._on_delivery, on_cancel)
        ends: set[asyncio.Future[Any]] = {
            publishing.closed,
            consuming.closed,
            channel.closed,
            publisher.closed,
            cancelled,
        }
        broken = asyncio.ensure_future(asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED))
        try:
            await self._read_to_marker(publisher, broken)
            if not broken.done():
                self._set_state(LinkUp(publisher, publishing, consuming))
                on_up()
                log.info("broker.connected", broker=self.parameters.address)
                await self._stay_up(watch, publisher, broken)
            done, _ = broken.result()
        finally:
            broken.cancel()
        reasons = "; ".join(str(future.result()) for future in done)
        raise BrokerUnavailable(f"RabbitMQ at {self.parameters.address}: {reasons}")

    async def _stay_up(
        self, watch: TopologyWatch, publisher: Publisher, broken: asyncio.Future[Any]
    ) -> None:
        """Return when the link is broken; raise what `TopologyWatch.run` raises."""
        watching = asyncio.create_task(watch.run())
        ends: set[asyncio.Future[Any]] = {broken, watching}
        try:
            while True:
                done, _ = await asyncio.wait(
                    ends, timeout=_ANNOUNCE_SECONDS, return_when=asyncio.FIRST_COMPLETED
                )
                if done:
                    break
                self._announce(publisher)
            if not broken.done():
                watching.result()
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)

    def _on_recreated(self, names: frozenset[str], up: LinkUp) -> None:
        if CONTROL_STREAM in names:
            self._announce(up.publisher)  # no stream may be empty
        self._set_state(up)

    def _announce(self, publisher: Publisher) -> None:
        """Say to the workers of this installation what this operator understands."""
        announcement = replace(FIRST_COMMAND, installation=self._installation)
        message = command_message(announcement)
        publisher.publish(
            message.exchange, message.key, message.body, message.properties(), _ignore
        )

    async def _read_to_marker(self, publisher: Publisher, broken: asyncio.Future[Any]) -> None:
        """Return when everything that was in the inbox has been read, or the link is broken."""
        marker, read = self._markers.create(self)
        seen = asyncio.ensure_future(read.wait())
        try:
            while True:
                await self._publish_marker(publisher, marker)
                waiting: set[asyncio.Future[Any]] = {seen, broken}
                await asyncio.wait(
                    waiting, timeout=_MARKER_SECONDS, return_when=asyncio.FIRST_COMPLETED
                )
                if seen.done() or broken.done():
                    return
                self._set_state(
                    LinkDown(
                        "ReadingInbox",
                        f"reading queue {inbox_queue(self._installation)} up to date; if this "
                        "lasts, another operator still consumes it: operators that share a virtual "
                        "host need different names of their installations",
                    )
                )
        finally:
            seen.cancel()
            self._markers.discard(marker)

    async def _publish_marker(self, publisher: Publisher, marker: str) -> None:
        note = OutgoingMessage(
            exchange=OUTCOMES_EXCHANGE,
            key=marker_key(self._installation),
            body=b"",
            content_type=None,
            type=_MARKER_TYPE,
            correlation_id=marker,
        )
        try:
            async with asyncio.timeout(_CONFIRM_SECONDS):
                verdict, text = await publisher.publish_and_wait(
                    note.exchange, note.key, note.body, note.properties()
                )
        except TimeoutError as late:
            raise BrokerUnavailable(
                f"RabbitMQ at {self.parameters.address} confirms nothing: check for a memory "
                "or disk alarm (rabbitmq-diagnostics alarms)"
            ) from late
        if verdict is not Settled.CONFIRMED:
            raise BrokerUnavailable(
                f"RabbitMQ at {self.parameters.address}: marker not accepted: {text}"
            )

    def _on_delivery(self, delivery: Delivery) -> None:
        if delivery.properties.type == _MARKER_TYPE and delivery.routing_key.startswith(OPERATOR):
            # Of another installation, if a TaskQueue is named so that its binding fits: unknown.
            delivery.channel.ack(delivery.delivery_tag)
            self._markers.on_marker_read(delivery.properties.correlation_id, self)
            return
        try:
            self.on_message(delivery, self)
        except Exception as error:  # the last resort: no message may hold up those behind it
            log.error("message.intake_failed", exc_info=error, exchange=delivery.exchange)
            self.dead_letter_delivery(delivery, f"the operator failed on it: {error!r}")

    def _set_state(self, state: State) -> None:
        if state == self.state:
            return
        self.state = state
        if isinstance(state, LinkDown):
            log.warning(
                "broker.disconnected",
                broker=self.parameters.address,
                reason=state.reason,
                error=state.message,
            )
        for callback in tuple(self._subscribers):
            callback()


def _ignore(verdict: Settled, text: str) -> None:
    """Take no notice of what became of a publish."""
