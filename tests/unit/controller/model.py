"""A model of what surrounds and outlives the operator: API server, informer, broker, workers.

A `Model` runs one operator process at a time on its own loop. When that dies, the next one has what
the API server accepted, what the broker has, and the unacknowledged outcomes.

`tests.unit.controller.invariants` has what must always hold.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from typing import Any, cast

import orjson
from pika.spec import BasicProperties

from taskqueue.amqp.publisher import OnSettled, Settled
from taskqueue.contract.names import (
    DEAD_EXCHANGE,
    EVENTS_EXCHANGE,
    OUTCOMES_EXCHANGE,
    WORK_EXCHANGE,
)
from taskqueue.contract.outcome import AttemptEvent, EventError, EventKind, decode, encode
from taskqueue.contract.work import WorkMessage, parse_work
from taskqueue.kubernetes.status_updater import WriteRefused, Written
from taskqueue.kubernetes.task_codec import task_path
from taskqueue.limits import REPORT_GRACE_SECONDS
from taskqueue.model.queue import QueueConfig
from taskqueue.model.task import Phase, Policy, RetryBackoff
from tests.unit.controller.fakes import (
    KEY,
    FakeChannel,
    FakePublisher,
    TaskHarness,
    Write,
    raw_task,
)
from tests.unit.controller.invariants import (
    MAX_ATTEMPTS,
    MAX_PUBLISHED,
    PAYLOAD_BUDGET,
    TIMEOUT,
    Invariants,
)
from tests.unit.controller.virtual_time import VirtualLoop

CONFIG_MAP = "/api/v1/namespaces/shop/configmaps/c"
_FINAL = frozenset(phase.value for phase in Phase if phase.terminal)
_ENDS = frozenset(EventKind) - {EventKind.STARTED, EventKind.CHECKPOINT}
#: How long an attempt ran, or for how long its handler asked to be left alone.
SECONDS = 3.0


@dataclass(eq=False)
class Message:
    """A work message on its way to the broker, or there, or lost."""

    content: WorkMessage
    on_settled: OnSettled | None
    #: None: nobody knows yet whether it reached the broker.
    arrived: bool | None = None
    #: A worker has reported that no worker has it any more.
    answered: bool = False
    #: When its outcome was first seen not to count any more.
    stopped: float | None = None
    #: The operator process that knew of that has ended.
    forgotten: bool = False


@dataclass(eq=False)
class IncomingMessage:
    """A message in the operator's inbox until it is acknowledged."""

    body: bytes
    exchange: str = OUTCOMES_EXCHANGE
    properties: BasicProperties | None = None
    tags: dict[FakeChannel, int] = field(default_factory=dict)
    acknowledged: bool = False


class WatchedPublisher(FakePublisher):
    """Passes publishes to the model; all of them are unknown once it is closed."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self._model = model
        self._unsettled: list[OnSettled] = []

    def publish(
        self,
        exchange: str,
        key: str,
        body: bytes,
        properties: BasicProperties,
        on_settled: OnSettled,
        *,
        mandatory: bool = True,
    ) -> None:
        if self.closed.done():
            asyncio.get_running_loop().call_soon(on_settled, Settled.UNKNOWN, "closed")
        elif exchange == WORK_EXCHANGE:
            message = parse_work(properties, body, exchange=WORK_EXCHANGE)
            assert isinstance(message, WorkMessage)
            self._model.published(message, on_settled)
        else:
            self._unsettled.append(on_settled)

            def confirmed(verdict: Settled, text: str) -> None:
                if on_settled in self._unsettled:
                    self._unsettled.remove(on_settled)
                    if exchange == EVENTS_EXCHANGE:
                        self._model.events.add(orjson.loads(body)["id"])
                    on_settled(verdict, text)

            super().publish(exchange, key, body, properties, confirmed, mandatory=mandatory)

    def close(self) -> None:
        self.closed.set_result("connection lost")
        unsettled, self._unsettled = self._unsettled, []
        for on_settled in unsettled:
            on_settled(Settled.UNKNOWN, "connection lost")


class Model:
    """See the module's docstring."""

    def __init__(self) -> None:
        #: Tasks by name, as the API server has them; never changed in place.
        self.tasks: dict[str, dict[str, Any]] = {}
        #: The same and ConfigMaps, by path.
        self.objects: dict[str, dict[str, Any]] = {}
        self.queue: QueueConfig | None = QueueConfig(
            namespace="shop",
            name="q",
            uid="queue",
            generation=1,
            connection_secret="rabbit",
            max_published=MAX_PUBLISHED,
            policy=_policy(),
        )
        self.broker_up = True
        self.feed_lags = False
        self.messages: list[Message] = []
        self.inbox: list[IncomingMessage] = []
        self.events: set[str] = set()
        #: By uid: the checkpoint that was delivered last and counted, and whose may be lost.
        self.saved: dict[str, bytes] = {}
        self.refused: set[str] = set()
        self._absent_queue = self.queue
        self._feed: list[tuple[str, dict[str, Any]]] = []
        self._versions = 1000
        self._made = 0
        self.keys: dict[str, str] = {}
        self.invariants = Invariants(self)
        self.loop = VirtualLoop()
        self.harness = self.loop.do(self._new_harness)
        self._start()

    # Users, through the API server.

    def create(self, name: str, **spec: Any) -> None:
        self._made += 1
        age = self._made / 1000  # or the order of those made at once would be chance
        payload = {"made": self._made}
        raw = raw_task(name, created=self.loop.time() + age, payload=payload, **spec)
        raw["metadata"]["uid"] = f"uid-{name}-{self._made}"
        self.keys[raw["metadata"]["uid"]] = spec.get("concurrencyKey", "")
        self._store(name, raw)

    def edit(self, name: str, **spec: Any) -> None:
        raw = self.tasks[name]
        metadata = {**raw["metadata"], "generation": raw["metadata"]["generation"] + 1}
        self._store(name, {**raw, "metadata": metadata, "spec": {**raw["spec"], **spec}})

    def delete(self, name: str) -> None:
        raw = self.tasks.pop(name)
        del self.objects[task_path("shop", name)]
        if raw["status"]["phase"] not in _FINAL:
            self._feed.append(("deleted", raw))

    def put_config_map(self, data: dict[str, str] | None) -> None:
        self.objects.pop(CONFIG_MAP, None)
        if data is not None:
            self._versions += 1
            metadata = {"resourceVersion": str(self._versions)}
            self.objects[CONFIG_MAP] = {"metadata": metadata, "data": data}

    def put_queue(self, **changes: Any) -> None:
        """Change the TaskQueue, or create it again."""
        self.queue = replace(self.queue or self._absent_queue, **changes)
        self.invariants.allowed = max(self.invariants.allowed, self.queue.keys.per_key)

        def taken() -> None:
            self.harness.dispatcher.config = self.queue
            self.harness.tasks.on_queue_changed(KEY)
            self._open()

        self.loop.do(taken)

    def drop_queue(self) -> None:
        self._absent_queue, self.queue = self.queue or self._absent_queue, None

        def dropped() -> None:
            self.harness.dispatcher.close()
            self.harness.dispatcher.config = None
            self.harness.tasks.on_queue_changed(KEY)

        self.loop.do(dropped)

    def is_unfinished(self, name: str) -> bool:
        return name in self.tasks and self.tasks[name]["status"]["phase"] not in _FINAL

    def _store(self, name: str, raw: dict[str, Any]) -> None:
        self._versions += 1
        metadata = {**raw["metadata"], "resourceVersion": str(self._versions)}
        raw = self.tasks[name] = {**raw, "metadata": metadata}
        self.objects[task_path("shop", name)] = raw
        left = raw["status"]["phase"] in _FINAL
        self._feed.append(("deleted" if left else "shown", raw))

    # The informer.

    def feed(self) -> None:
        """Deliver pending changes to the operator."""
        if self._feed:
            self.loop.do(self._feed_all)

    @property
    def behind(self) -> bool:
        """Whether the operator has not seen every change yet."""
        return bool(self._feed)

    def _feed_all(self) -> None:
        events, self._feed = self._feed, []
        shown, tasks = self.harness._shown, self.harness.tasks
        for what, raw in events:
            metadata = raw["metadata"]
            key, uid = ("shop", metadata["name"]), metadata["uid"]
            if what == "deleted":
                if shown.get(key) == uid:
                    del shown[key]
                tasks.on_deleted(key, uid)
                continue
            before = shown.get(key)
            if before is not None and before != uid:
                tasks.on_deleted(key, before)
            shown[key] = uid
            self.invariants.shown(raw)
            tasks.on_upserted(raw)

    # The status writer and the API server.

    @property
    def unwritten(self) -> list[str]:
        """Names of the Tasks with a status on its way."""
        return list(dict.fromkeys(_name(write) for write in self.harness.writer.writes))

    def write(
        self, name: str, *, refuse: bool = False, first: int = 99, late: bool = False
    ) -> None:
        """Have the API server answer a write of a Task's status, and the newer ones it contains.

        Args:
            name: of the Task.
            refuse: with 422, whatever it is.
            first: how many of what waits are contained; what was put later waits on.
            late: the informer delivers it before the writer gets its result.
        """
        writes = [one for one in self.harness.writer.writes if _name(one) == name][:first]
        for one in writes:
            self.harness.writer.writes.remove(one)
        refuse = refuse and self.is_unfinished(name)  # what it took once it takes again
        if refuse:
            self.refused.add(writes[-1].uid)  # then its status is recorded in short
        fate: Written | WriteRefused = (
            WriteRefused(422, "too long") if refuse else self._write(writes[-1])
        )
        if late and not self.feed_lags:
            self.feed()

        def settle() -> None:
            for one in writes:
                one.on_result(fate)

        self.loop.do(settle)

    def _write(self, write: Write) -> Written | WriteRefused:
        raw = self.tasks.get(_name(write))
        if raw is None:
            return WriteRefused(404, "not found")
        if raw["metadata"]["uid"] != write.uid:
            return WriteRefused(422, "the uid is another")
        before, status = raw["status"], write.status
        if before["phase"] in _FINAL and before["phase"] != status["phase"]:
            return WriteRefused(422, "the phase of a finished Task never changes")
        self.invariants.written(write.uid, before, status)
        self._store(_name(write), {**raw, "status": status})
        return Written(raw["metadata"]["generation"], self._versions)

    # The broker.

    def published(self, content: WorkMessage, on_settled: OnSettled) -> None:
        """Take a work message, if it may be published at all."""
        self.invariants.published(content)
        self.messages.append(Message(content, on_settled))

    def settle(self, message: Message, verdict: Settled, *, arrived: bool) -> None:
        on_settled, message.on_settled = message.on_settled, None
        if message.arrived is None:
            message.arrived = arrived
        assert on_settled is not None
        self.loop.do(lambda: on_settled(verdict, "as the test says"))

    def lose_broker(self, *, arrived: bool, closed_first: bool) -> None:
        self.broker_up = False
        publisher = cast(WatchedPublisher, self.harness.publisher)

        def lost() -> None:
            if closed_first:
                self.harness.dispatcher.close()
            publisher.close()
            for message in self.unsettled:
                self._lose(message, arrived)
            self.harness.dispatcher.close()

        self.loop.do(lost)

    def find_broker(self) -> None:
        self.broker_up = True

        def found() -> None:
            self.harness.publisher = WatchedPublisher(self)
            self._connect()
            self._open()

        self.loop.do(found)

    def count_ready(self, ready: int, *, reporting: bool = True) -> None:
        """Give the operator a count of the messages no worker has."""
        dispatcher = self.harness.dispatcher
        if dispatcher.publisher is None:
            return
        now = self.loop.time()
        for uid, since in dispatcher.attempts._published.items():
            if since is not None and now - since > TIMEOUT + REPORT_GRACE_SECONDS:
                token = self.harness.token(self.harness.entries[uid])
                for message in self.messages:
                    # Its worker would have stopped it and reported that.
                    message.answered |= message.content.token == token
        self.loop.do(lambda: dispatcher.on_ready_count(ready, reporting=reporting))

    @property
    def unsettled(self) -> list[Message]:
        return [message for message in self.messages if message.on_settled is not None]

    def _lose(self, message: Message, arrived: bool) -> None:
        on_settled, message.on_settled = message.on_settled, None
        if message.arrived is None:
            message.arrived = arrived
        assert on_settled is not None
        on_settled(Settled.UNKNOWN, "connection lost")

    def _connect(self) -> None:
        """Deliver what is in the inbox, before anything is published."""
        self.take_acknowledgements()
        self.harness.channel = FakeChannel()
        for incoming in self.inbox:
            if not incoming.acknowledged:
                self._deliver(incoming)

    def _open(self) -> None:
        if self.broker_up and self.queue is not None and self.harness.dispatcher.publisher is None:
            self.harness.open()

    def _deliver(self, incoming: IncomingMessage) -> None:
        self._note_checkpoint(incoming)
        incoming.tags[self.harness.channel] = self.harness.message(
            incoming.body,
            exchange=incoming.exchange,
            properties=incoming.properties,
        )

    def _note_checkpoint(self, incoming: IncomingMessage) -> None:
        if incoming.exchange != OUTCOMES_EXCHANGE or b"task.checkpoint" not in incoming.body:
            return
        event = decode(incoming.body)
        sources = (one for one in self.messages if one.content.token == event.token)
        message = next(sources, None)
        if message is not None and self.invariants._counts(message):
            self.saved[event.uid] = orjson.dumps(event.checkpoint)

    def take_acknowledgements(self) -> None:
        acked = self.harness.channel.acked
        assert len(acked) == len(set(acked)), "an outcome is acknowledged twice"
        for incoming in self.inbox:
            if incoming.tags.get(self.harness.channel) in acked:
                incoming.acknowledged = True

    # Workers.

    def latest(self, name: str, age: int) -> Message | None:
        """Return a message of a Task of this name that may be with a worker; 0: the last one."""
        of_name = [
            message
            for message in self.messages
            if message.content.task == name and message.arrived is not False
        ]
        return of_name[-1 - age] if age < len(of_name) else None

    def report(
        self, message: Message, kind: EventKind, error: EventError | None = None, *, token: str = ""
    ) -> None:
        """Deliver an attempt event; with another ``token`` it is forged."""
        content = message.content
        event = AttemptEvent(
            kind=kind,
            namespace="shop",
            queue="q",
            task=content.task,
            uid=content.uid,
            token=token or content.token,
            attempt=content.attempt,
            epoch=content.epoch,
            worker="pod-1",
            seconds=SECONDS,
            result={"by": "pod-1"} if kind is EventKind.SUCCEEDED else None,
            error=error,
            checkpoint={"n": len(self.inbox)} if kind is EventKind.CHECKPOINT else None,
        )
        if not token:
            message.arrived = True
            message.answered |= kind in _ENDS
        self._send(IncomingMessage(encode(event)))

    def give_up(self, message: Message) -> None:
        """Dead-letter a message at the broker."""
        message.arrived = message.answered = True
        properties = message.content.properties()
        death = {"x-last-death-reason": "delivery_limit"}
        properties.headers = {**(properties.headers or {}), **death}
        self._send(IncomingMessage(message.content.body, DEAD_EXCHANGE, properties))

    def send_again(self, incoming: IncomingMessage) -> None:
        """Deliver a worker's message again."""
        self._send(IncomingMessage(incoming.body, incoming.exchange, incoming.properties))

    def _send(self, incoming: IncomingMessage) -> None:
        self.inbox.append(incoming)
        if self.broker_up:
            self.loop.do(lambda: self._deliver(incoming))

    # The operator process.

    def restart(self, *, written: bool, arrived: bool) -> None:
        """End the operator without a warning, and start another.

        Args:
            written: whether what was being written came through.
            arrived: whether what was being published came through.
        """
        self.take_acknowledgements()
        for name in self.unwritten if written else ():
            self._write(next(one for one in self.harness.writer.writes if _name(one) == name))
        for message in self.unsettled:
            message.on_settled = None
            message.arrived = arrived if message.arrived is None else message.arrived
        now = self.loop.time()
        self.harness.publisher.closed.cancel()
        self.loop.die()
        self.loop = VirtualLoop(now)
        self.harness = self.loop.do(self._new_harness)
        self._start()

    def _new_harness(self) -> TaskHarness:
        harness = TaskHarness(payload_budget=PAYLOAD_BUDGET)
        harness.api.objects = self.objects
        harness.publisher = WatchedPublisher(self)
        harness.dispatcher.config = self.queue
        harness.synced = False
        harness._spawn(harness.tasks.dependencies.run(), "dependencies")
        return harness

    def _start(self) -> None:
        self._feed = [
            ("shown", raw) for name, raw in self.tasks.items() if self.is_unfinished(name)
        ]
        self.loop.do(self._feed_all)
        self.harness.synced = True
        if self.broker_up:
            self.loop.do(self._connect)
        self.invariants.adopted()
        self.loop.do(self._open)


def _policy() -> Policy:
    return Policy(
        max_attempts=MAX_ATTEMPTS,
        backoff=RetryBackoff(1.0, 4.0, 10.0, 0.0),
        attempt_timeout_seconds=TIMEOUT,
    )


def _name(write: Write) -> str:
    return write.path.split("/")[-2]
