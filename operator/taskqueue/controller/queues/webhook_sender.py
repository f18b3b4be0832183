"""Sends the ends of one TaskQueue's Tasks from the outbox of one webhook to its receiver.

Contract:

* An end leaves the outbox when the receiver has accepted it, with a status of 200 to 299. Whatever
  is killed in between, it is sent again, with the same ``webhook-id``.
* One that was not accepted waits in a queue beside the outbox, longer each time, and nothing waits
  for it. After a day it is a dead letter of the TaskQueue.
* After `AWAY_FAILURES` in a row the receiver is away: nothing is read from the outbox for a while,
  then one end is sent to see whether it is there again.
* Ends have no order.
* What a receiver answers is in no condition, Event or log, but its status.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from taskqueue.amqp.channel import BrokerUnavailable, Delivery
from taskqueue.amqp.connection import Connection
from taskqueue.amqp.publisher import Publisher, Settled
from taskqueue.contract.cloudevents import CONTENT_TYPE, decode_envelope
from taskqueue.contract.names import (
    ERROR_HEADER,
    EVENTS_EXCHANGE,
    EXCHANGE_HEADER,
    FAILURES_HEADER,
    ContractError,
    dead_queue,
)
from taskqueue.contract.outbox import retry_delay, webhook_outbox
from taskqueue.contract.outgoing import OutgoingMessage
from taskqueue.controller.completions.webhook_client import (
    WebhookClient,
    WebhookFailure,
    WebhookTrouble,
    is_usable,
)
from taskqueue.controller.completions.webhook_networks import WebhookNetworks
from taskqueue.controller.completions.webhook_signature import (
    SigningSecretInvalid,
    SigningSecrets,
    webhook_id,
)
from taskqueue.controller.metrics import WEBHOOKS_SENT
from taskqueue.controller.queues.conditions.sink_state import SinkState
from taskqueue.controller.queues.sink_loop import (
    OutboxConsumer,
    Restart,
    SinkLoop,
    first_of_group,
)
from taskqueue.kubernetes.client import ApiClient, ApiError
from taskqueue.kubernetes.secret_values import SecretUnusable, read_secret
from taskqueue.limits import ARCHIVE_EVENT_BYTES, WEBHOOK_SECONDS
from taskqueue.logs import EventLog
from taskqueue.model.queue import QueueKey
from taskqueue.model.webhook import SecretKey, WebhookConfig
from taskqueue.timestamps import Clock

log = EventLog(__name__)

#: Requests at once.
AT_ONCE = 8
#: After so many failures in a row, whatever they are, the receiver is away.
AWAY_FAILURES = 10
#: What no other event would change: the receiver is away at the first.
_OF_ADDRESS = (WebhookTrouble.ADDRESS_NOT_ALLOWED, WebhookTrouble.URL_INVALID)
#: Longest pause between two tries while the receiver is away, in seconds.
_LONGEST_PAUSE = 60.0
#: The Secrets are read again this often, in seconds.
_CHECK_SECONDS = 30.0
#: How long the condition says that an end was not accepted, or was given up, in seconds.
_FAILED_SECONDS, _GIVEN_UP_SECONDS = 60.0, 3600.0


class ReceiverAway(Exception):
    """A receiver has accepted none of the last ends."""

    def __init__(self, failure: WebhookFailure) -> None:
        super().__init__(str(failure))
        self.failure = failure


@dataclass(frozen=True, slots=True)
class _Endpoint:
    """Where and how events are sent, as the Secrets say at present."""

    url: str = field(repr=False)
    secrets: SigningSecrets


@dataclass(frozen=True, slots=True)
class _End:
    """What the sender has to know of an event."""

    id: str
    time: float
    phase: str
    chosen: tuple[str, ...] | None


class WebhookSender:
    """Drains the outbox of one webhook.

    Args:
        name: of the webhook.
        key: (namespace, name) of the TaskQueue.
        client: for the API server.
        installation: in the outbox's name.
        networks: that receivers may be in.
        clock: wall time in seconds.
    """

    def __init__(
        self,
        name: str,
        key: QueueKey,
        *,
        client: ApiClient,
        installation: str,
        networks: WebhookNetworks,
        clock: Clock = time.time,
    ) -> None:
        self.name = name
        self._key = key
        self._client = client
        self._installation = installation
        self._networks = networks
        self._clock = clock
        self._outbox = webhook_outbox(name, ())
        self._failures_in_a_row = 0
        #: What the receiver was last served with: of another one nothing is known.
        self._served: tuple[WebhookConfig, _Endpoint] | None = None
        #: The last failure, and the last event that was given up, by the loop's clock.
        self._failed: tuple[float, WebhookFailure] | None = None
        self._given_up: tuple[float, WebhookFailure] | None = None
        self.loop: SinkLoop[WebhookConfig] = SinkLoop(
            "webhook", key, serve=self._serve, explain=_explain, longest_pause=_LONGEST_PAUSE
        )

    @property
    def sink(self) -> str:
        """What its outbox is called after."""
        return self._outbox.sink

    @property
    def _is_away(self) -> bool:
        return self._failures_in_a_row >= AWAY_FAILURES

    async def _serve(
        self, config: WebhookConfig, connection: Connection, on_up: Callable[[], None]
    ) -> None:
        """Send what is in the outbox, until something fails."""
        endpoint = await self._endpoint(config)
        if (config, endpoint) != self._served:
            self._served, self._failures_in_a_row = (config, endpoint), 0
            self._failed = self._given_up = None
        if not is_usable(endpoint.url):
            raise ReceiverAway(WebhookFailure(WebhookTrouble.URL_INVALID))
        at_once = 1 if self._is_away else AT_ONCE
        client = WebhookClient(self._networks, at_once=at_once)
        try:
            publisher = await Publisher.open(connection)
            try:
                batch = _Sending(self, config, endpoint, client, publisher, on_up)
                await self._drain(batch, connection, at_once)
            finally:
                await publisher.close()
        finally:
            await client.close()

    async def _drain(self, sending: _Sending, connection: Connection, at_once: int) -> None:
        outbox = self._outbox.name(*self._key, self._installation)
        consumer = await OutboxConsumer.open(connection, outbox, prefetch=2 * at_once)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._watch(sending.config, sending.endpoint))
                for _ in range(at_once):
                    group.create_task(self._send_each(sending, consumer))
        except ExceptionGroup as failed:
            raise first_of_group(failed) from None
        finally:
            await consumer.close()

    async def _send_each(self, sending: _Sending, consumer: OutboxConsumer) -> None:
        if not self._is_away:
            self._update_state()
        while True:
            (delivery,) = await consumer.next_batch(1)
            await sending.send(delivery)

    async def _watch(self, config: WebhookConfig, endpoint: _Endpoint) -> None:
        """Notice other Secrets, and that the last failure was long ago."""
        while True:
            await asyncio.sleep(_CHECK_SECONDS)
            if not self._is_away:
                self._update_state()
            with contextlib.suppress(ApiError):
                if await self._endpoint(config) != endpoint:
                    raise Restart

    async def _endpoint(self, config: WebhookConfig) -> _Endpoint:
        url = config.url
        if config.url_secret is not None:
            url = (await self._value(config.url_secret)).strip()
        text = await self._value(config.signing_secret)
        try:
            return _Endpoint(url, SigningSecrets.parse(text))
        except SigningSecretInvalid as error:
            raise self._unusable(config.signing_secret, str(error)) from None

    async def _value(self, where: SecretKey) -> str:
        secret = await read_secret(
            self._client,
            (self._key[0], where.name),
            where=f"Secret {self._key[0]}/{where.name} of spec.notifications",
            advice="create it",
        )
        if where.key not in secret.data:
            raise self._unusable(where, f"it has no key {where.key}: add it")
        return secret.data[where.key]

    def _unusable(self, where: SecretKey, problem: str) -> SecretUnusable:
        text = f"Secret {self._key[0]}/{where.name}, key {where.key}: {problem}"
        return SecretUnusable("SecretInvalid", text)

    # What becomes of an event.

    def read(self, body: bytes) -> _End | None:
        """Return an end; None: it is no event of this TaskQueue. Only the operator publishes here.

        One that cannot be read would block those behind it, and subscribers have it, too.
        """
        try:
            envelope = decode_envelope(body, limit=ARCHIVE_EVENT_BYTES)
            data = envelope["data"]
            namespace, queue = envelope["subject"].partition("/")[0], envelope["taskqueue"]
            if (namespace, queue) != self._key:
                raise ContractError(f"it is about TaskQueue {namespace}/{queue}")
            chosen = data.get("notificationNames")
            return _End(
                id=str(envelope["id"]),
                time=datetime.fromisoformat(envelope["time"]).timestamp(),
                phase=str(data["phase"]),
                chosen=None if chosen is None else tuple(chosen),
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            log.error("webhook.event_unreadable", error=str(error), **self.fields())
            return None

    def is_wanted(self, end: _End, config: WebhookConfig) -> bool:
        """Return whether an end is one of those that this webhook gets."""
        is_chosen = end.chosen is None or self.name in end.chosen
        return is_chosen and end.phase in config.phases

    def is_old(self, end: _End) -> bool:
        """Return whether an end is not sent again once it was not accepted."""
        return self._clock() - end.time > WEBHOOK_SECONDS

    @property
    def failure_while_away(self) -> WebhookFailure | None:
        """Why the receiver is away; None: it is not."""
        return self._failed[1] if self._is_away and self._failed is not None else None

    def on_accepted(self) -> None:
        """Note that the receiver accepts what is sent."""
        was_away, self._failures_in_a_row = self._is_away, 0
        self.count("accepted")
        if was_away:
            raise Restart  # and send many at once
        self._update_state()

    def on_failed(self, failure: WebhookFailure) -> None:
        """Note that the receiver has not accepted an end."""
        of_address = failure.trouble in _OF_ADDRESS
        self._failures_in_a_row = AWAY_FAILURES if of_address else self._failures_in_a_row + 1
        self._failed = (asyncio.get_running_loop().time(), failure)
        self.count("failed")
        if self._is_away:
            raise ReceiverAway(failure)
        self._update_state()

    def on_given_up(self, end: _End, failure: WebhookFailure) -> None:
        """Note that an end was not accepted for a day."""
        self._given_up = (asyncio.get_running_loop().time(), failure)
        self.count("given_up")
        log.warning("webhook.given_up", event_id=end.id, error=str(failure), **self.fields())

    def count(self, result: str) -> None:
        """Count a request, or an end that was given up."""
        WEBHOOKS_SENT.labels(*self._key, result).inc()

    def retry_queue(self, failures: int) -> str:
        """Return the name of the queue that gives an end back which has failed so often."""
        seconds = retry_delay(failures)
        return self._outbox.retry_name(seconds, *self._key, self._installation)

    @property
    def dead_queue(self) -> str:
        """The name of the TaskQueue's dead queue."""
        return dead_queue(*self._key)

    def fields(self) -> dict[str, Any]:
        """Return what each log line has."""
        return {"namespace": self._key[0], "queue": self._key[1], "webhook": self.name}

    def _update_state(self) -> None:
        now = asyncio.get_running_loop().time()
        if self._given_up is not None and now - self._given_up[0] < _GIVEN_UP_SECONDS:
            text = f"ends were not accepted for a day, and are dead letters: {self._given_up[1]}"
            self.loop.set_state(SinkState(False, "GivenUp", text))
        elif self._failed is not None and now - self._failed[0] < _FAILED_SECONDS:
            text = f"an end was not accepted, and is sent again: {self._failed[1]}"
            self.loop.set_state(SinkState(True, "Retrying", text))
        else:
            self.loop.set_state(SinkState(True, "Delivered"))


@dataclass(frozen=True, slots=True)
class _Sending:
    """Sends events to a receiver over connections that are open."""

    sender: WebhookSender
    config: WebhookConfig
    endpoint: _Endpoint
    client: WebhookClient
    publisher: Publisher
    on_up: Callable[[], None]

    async def send(self, delivery: Delivery) -> None:
        """Send an event, and acknowledge it when it is accepted, or safe elsewhere.

        Raises:
            ReceiverAway: nothing more should be sent for a while.
            Restart: the receiver is there again.
            BrokerUnavailable: it is safe nowhere else, and comes again.
        """
        sender = self.sender
        end = sender.read(delivery.body)
        if end is None or not sender.is_wanted(end, self.config):
            _acknowledge(delivery)
            return
        away = sender.failure_while_away
        if away is not None and sender.is_old(end):
            await self._give_up(delivery, end, away)
            return
        failure = await self._post(end, delivery.body)
        if failure is None:
            _acknowledge(delivery)
            self.on_up()
            sender.on_accepted()
            return
        if sender.is_old(end):
            await self._give_up(delivery, end, failure)
        else:
            failures = _failures(delivery) + 1
            queue = sender.retry_queue(failures)
            await self._move(delivery, queue, {FAILURES_HEADER: failures})
        sender.on_failed(failure)

    async def _post(self, end: _End, body: bytes) -> WebhookFailure | None:
        message_id, timestamp = webhook_id(end.id), int(time.time())
        headers = {
            **dict(self.config.headers),
            "Content-Type": CONTENT_TYPE,
            "webhook-id": message_id,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": self.endpoint.secrets.sign(message_id, timestamp, body),
        }
        return await self.client.post(
            self.endpoint.url, body, headers, timeout_seconds=self.config.timeout_seconds
        )

    async def _give_up(self, delivery: Delivery, end: _End, failure: WebhookFailure) -> None:
        headers = {
            EXCHANGE_HEADER: EVENTS_EXCHANGE,
            ERROR_HEADER: f"webhook {self.sender.name}: not accepted for a day: {failure}",
        }
        await self._move(delivery, self.sender.dead_queue, headers)
        self.sender.on_given_up(end, failure)

    async def _move(self, delivery: Delivery, queue: str, headers: dict[str, Any]) -> None:
        """Put an event into another queue, and acknowledge it when it is there."""
        message = OutgoingMessage(
            exchange="",
            key=queue,
            body=delivery.body,
            content_type=CONTENT_TYPE,
            correlation_id=delivery.properties.correlation_id,
            headers=headers,
            timestamp=int(time.time()),
        )
        verdict, text = await self.publisher.publish_and_wait(
            message.exchange, message.key, message.body, message.properties()
        )
        if verdict is not Settled.CONFIRMED:
            raise BrokerUnavailable(f"queue {queue} has not taken an end of a Task: {text}")
        _acknowledge(delivery)


def _explain(problem: Exception) -> SinkState | None:
    if isinstance(problem, ReceiverAway):
        return SinkState(False, problem.failure.trouble, str(problem))
    return None


def _failures(delivery: Delivery) -> int:
    found = (delivery.properties.headers or {}).get(FAILURES_HEADER)
    return found if isinstance(found, int) else 0


def _acknowledge(delivery: Delivery) -> None:
    delivery.channel.ack(delivery.delivery_tag)
