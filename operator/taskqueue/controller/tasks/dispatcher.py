"""Publishes the Tasks of one queue: by priority and age, within a window, confirmed.

Invariants:

* an Entry in stage WAITING is in the line or waits for its concurrency key, one in CLAIMING is in
  ``_claiming``, one in PUBLISHED in ``_published``, one in HELD in ``_held``, no other is in any;
* nothing is published while the dispatcher is closed (broker away, queue not declared, no
  TaskQueue) or the queue's stopPolicy holds; what is PUBLISHED then stays so, because the broker's
  queue is durable;
* a publish whose fate is unknown goes back into the line and out again with the same token; but
  not that of a Task with a concurrency key, which could then run beside itself: it is waited for,
  as if published, until the attempt's time is up;
* a Task with a concurrency key is published only after a write of its status says that it holds
  the key, and by a process that led when the write was done: whoever leads next knows of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Protocol

from taskqueue.amqp.publisher import Publisher, Settled
from taskqueue.contract.command import CommandKind, WorkerCommand
from taskqueue.contract.names import WORK_EXCHANGE, routing_key
from taskqueue.contract.work import WorkMessage
from taskqueue.controller.metrics import PUBLISHED
from taskqueue.controller.tasks.command_outbox import CommandOutbox
from taskqueue.controller.tasks.concurrency_keys import KeySlots
from taskqueue.controller.tasks.dispatch_queue import DispatchQueue, FinishRate, window_size
from taskqueue.controller.tasks.key_holds import KeyHolds
from taskqueue.controller.tasks.published_peak import PublishedPeak
from taskqueue.controller.tasks.tracked_task import TaskStage, TrackedTask, log_fields
from taskqueue.controller.tasks.unreported_attempts import SILENCE_SECONDS, UnreportedAttempts
from taskqueue.logs import EventLog
from taskqueue.model.queue import QueueConfig, QueueKey
from taskqueue.model.task import Policy
from taskqueue.model.token import TokenKeys
from taskqueue.timestamps import Clock

log = EventLog(__name__)

#: Publishes in one turn of the loop; the rest follows in the next, so that outcomes get theirs.
_BATCH = 128
#: Pause after the broker refused a publish (queue full, no queue): it needs time or a hand.
_REFUSED_PAUSE_SECONDS = 0.5


class DispatchListener(Protocol):
    """Who keeps the statuses; told what the dispatcher finds out."""

    def opened(self, key: QueueKey, publisher: Publisher) -> None:
        """Take note that the queue's broker is there."""

    def claim(self, entry: TrackedTask) -> None:
        """Record that ``entry.key`` is held, then call `Dispatcher.claimed`."""

    def parked(self, entry: TrackedTask) -> None:
        """Take note that the Task waits for its concurrency key."""

    def silent(self, entry: TrackedTask, since: float) -> None:
        """Take note that an attempt, with a worker since then, will not report any more."""


class Dispatcher:
    """See the module's contract.

    Args:
        key: the queue, which may not exist (yet).
        tokens: sign what is published.
        clock: wall time in seconds.
        ledger: keeps the statuses.
        leads: tells whether this process certainly still leads.
        on_backlog: called when there may be more to do for the workers.
        on_missing: called when the broker has no queue to route to.
    """

    def __init__(
        self,
        key: QueueKey,
        *,
        tokens: TokenKeys,
        clock: Clock,
        ledger: DispatchListener,
        leads: Callable[[], bool],
        on_backlog: Callable[[], None],
        on_missing: Callable[[], None],
    ) -> None:
        self.key = key
        #: Tasks all workers together can run at once, as far as known.
        self.slots = 0
        self._config: QueueConfig | None = None
        self._tokens = tokens
        self._clock = clock
        self._ledger = ledger
        self._leads = leads
        self._on_backlog = on_backlog
        self._on_missing = on_missing
        self._line: DispatchQueue[TrackedTask] = DispatchQueue()
        #: Holders are Entries, and tokens of attempts that were taken back and may still run.
        self._keys: KeySlots[TrackedTask | str] = KeySlots()
        self._lingering = KeyHolds(self._let_go)
        self._held: set[TrackedTask] = set()
        self._claiming: set[TrackedTask] = set()
        #: In the order of publishing, which is that of the broker's queue.
        self._published: dict[TrackedTask, None] = {}
        self._peak = PublishedPeak()
        self._silence = UnreportedAttempts(
            self._published, policy=self.policy, clock=clock, on_silent=ledger.silent
        )
        self._rate = FinishRate()
        self._orders = CommandOutbox()
        self._publisher: Publisher | None = None
        self._pump_planned = False
        self._paused_until = 0.0
        self._published_counter = PUBLISHED.labels(*key)

    @property
    def config(self) -> QueueConfig | None:
        """What the TaskQueue asks for; None while there is none."""
        return self._config

    @config.setter
    def config(self, config: QueueConfig | None) -> None:
        self._config = config
        for key in self._keys.keys_waited_for:
            self._unpark(key)
        self._plan_pump()

    @property
    def waiting(self) -> int:
        """Tasks that may run and are still in the operator."""
        return len(self._line) + len(self._claiming)

    @property
    def published(self) -> int:
        """Tasks in the broker or with a worker."""
        return len(self._published)

    def take_most_published(self) -> int:
        """Return the most messages of Tasks that were at the broker since this was last asked."""
        return self._peak.take(self._clock())

    @property
    def publisher(self) -> Publisher | None:
        """What is published with; None while closed."""
        return self._publisher

    @property
    def empty(self) -> bool:
        """Whether no Task of the queue is held, nor anything of one."""
        return not (
            self._line
            or self._keys.waiting
            or self._claiming
            or self._published
            or self._held
            or self._lingering
            or self._orders
        )

    def entries(self) -> Iterator[TrackedTask]:
        """Yield every Task held, in no order."""
        yield from self._line
        yield from (one for one in self._keys if isinstance(one, TrackedTask))
        yield from self._claiming
        yield from self._held
        yield from self._published

    def policy(self, entry: TrackedTask) -> Policy:
        """Return what holds for a Task now: its own fields over the queue's."""
        defaults = self._config.policy if self._config else Policy()
        return entry.task.spec.overrides.over(defaults)

    def open(self, publisher: Publisher) -> None:
        """Publish from now on; the queue is declared."""
        self._publisher = publisher
        self._paused_until = 0.0
        self._silence.be_patient()
        self._orders.open(publisher)
        self._ledger.opened(self.key, publisher)
        self._plan_pump()

    def close(self) -> None:
        """Publish nothing until opened again."""
        self._publisher = None
        self._orders.close()

    def adopt(self, entry: TrackedTask) -> None:
        """Take a Task that is new here.

        One that holds a key by its status was published by a former leader, as far as anybody
        knows. Publishing it again could have it run beside itself.
        """
        if entry.status.concurrency_key:
            entry.key = entry.status.concurrency_key
            self._keys.take(entry.key, entry)
            entry.stage = TaskStage.PUBLISHED
            self._published[entry] = None
            self._peak.came(self._clock())
            entry.confirmed = entry.unsure = True

    def submit(self, entry: TrackedTask) -> None:
        """Take a Task whose next attempt may be dispatched."""
        self._leave(entry)
        entry.stage = TaskStage.WAITING
        self._line.add(entry, priority=entry.task.spec.priority, created=entry.task.created)
        self._plan_pump()
        self._on_backlog()

    def hold(self, entry: TrackedTask) -> None:
        """Keep a Task that is not to be dispatched for now."""
        self._leave(entry)
        entry.stage = TaskStage.HELD
        self._held.add(entry)
        self._plan_pump()

    def withdraw(self, entry: TrackedTask, *, finished: bool) -> None:
        """Let go of a Task that is finished or gone."""
        self._leave(entry)
        if entry.key:
            self._release(entry)
        if finished:
            self._rate.add(self._clock())
        self._plan_pump()

    def token(self, entry: TrackedTask) -> str:
        """Return the token of a Task's attempt."""
        status = entry.status
        return self._tokens.sign(entry.task.uid, status.current_attempt, status.epoch)

    def linger(self, entry: TrackedTask) -> None:
        """Keep the key of a published attempt that is being stopped until its worker has answered.

        At the latest until the attempt would have timed out: then nothing of it can run any more.
        """
        if not entry.key:
            return
        token = self.token(entry)
        self._keys.take(entry.key, token)
        seconds = self.policy(entry).attempt_timeout_seconds + SILENCE_SECONDS
        self._lingering.add(token, entry.key, seconds)

    def answered(self, token: str) -> None:
        """Take note that no worker has this attempt any more."""
        self._lingering.end(token)

    def _let_go(self, key: str, token: str) -> None:
        self._keys.release(key, token)
        self._unpark(key)

    def order(self, kind: CommandKind, token: str, uid: str) -> None:
        """Tell the workers; kept until the broker has it."""
        self._orders.send(WorkerCommand(kind, token=token, uid=uid))

    def order_drain(self, pod: str) -> None:
        """Tell the worker of a pod to take no more work; kept until the broker has it."""
        self._orders.send(WorkerCommand(CommandKind.DRAIN, pod=pod, namespace=self.key[0]))

    def claimed(self, entry: TrackedTask, fence: int) -> None:
        """Publish a Task whose key is recorded; ``fence`` grows with every such record."""
        entry.fence = fence
        if entry.stage is not TaskStage.CLAIMING:
            return
        self._claiming.discard(entry)
        held = self._config is None or self._config.stop_policy.holds
        if self._publisher is None or held:
            self.submit(entry)
        else:
            self._publish_claimed(self._publisher, entry)

    def republish_all(self) -> int:
        """Put everything published back into the line: the broker has lost it.

        Not what holds a key: a worker may still run it.
        """
        lost = [entry for entry in self._published if not entry.key]
        for entry in lost:
            self.submit(entry)
        for entry in self._published:
            entry.unsure = True
        return len(lost)

    def observed_ready(self, ready: int, *, reporting: bool) -> None:
        """Take the broker's count of messages no worker has; see `unreported_attempts`.

        Args:
            ready: the count.
            reporting: whether the broker takes what workers report.
        """
        self._silence.observed(ready, reporting=reporting)

    def _leave(self, entry: TrackedTask) -> None:
        self._line.discard(entry)
        if entry in self._published:
            del self._published[entry]
            self._peak.left(self._clock())
        self._claiming.discard(entry)
        self._held.discard(entry)
        entry.confirmed = entry.unsure = False
        entry.delivered_at = None
        if entry.key and entry.status.concurrency_key != entry.key:
            self._release(entry)

    def _release(self, entry: TrackedTask) -> None:
        key, entry.key = entry.key, ""
        self._keys.leave(key, entry)
        self._keys.release(key, entry)
        self._unpark(key)

    def _unpark(self, key: str) -> None:
        """Put those that wait for a key into the line, as many as may have it."""
        limit = self._config.per_key if self._config else 1
        while (entry := self._keys.next(key, limit=limit)) is not None:
            if isinstance(entry, TrackedTask):
                self._keys.take(key, entry)  # or the next would find room too
                self._line.add(entry, priority=entry.task.spec.priority, created=entry.task.created)
                self._plan_pump()
                self._on_backlog()

    def _plan_pump(self, wait: float = 0.0) -> None:
        if self._pump_planned or self._publisher is None or not self._line:
            return
        self._pump_planned = True
        loop = asyncio.get_running_loop()
        if wait > 0:
            loop.call_later(wait, self._pump)
        else:
            loop.call_soon(self._pump)

    def _pump(self) -> None:
        self._pump_planned = False
        publisher, config = self._publisher, self._config
        if publisher is None or config is None or config.stop_policy.holds:
            return
        now = self._clock()
        window = window_size(
            max_published=config.max_published,
            slots=self.slots,
            finished_in_5_seconds=self._rate.recent(now),
        )
        for _ in range(_BATCH):
            if now < self._paused_until:
                self._plan_pump(self._paused_until - now)
                return
            if len(self._published) + len(self._claiming) >= window:
                return
            entry = self._line.pop()
            if entry is None:
                return
            if entry.status.concurrency_key:
                self._publish_claimed(publisher, entry)
            elif entry.task.spec.concurrency_key:
                self._claim_or_park(entry, config.per_key)
            else:
                self._publish(publisher, entry)
        self._plan_pump()

    def _claim_or_park(self, entry: TrackedTask, limit: int) -> None:
        entry.key = entry.task.spec.concurrency_key
        if self._keys.claim(entry.key, entry, limit=limit):
            entry.stage = TaskStage.CLAIMING
            self._claiming.add(entry)
            self._ledger.claim(entry)
        else:
            spec = entry.task.spec
            self._keys.wait(entry.key, entry, priority=spec.priority, created=entry.task.created)
            self._ledger.parked(entry)

    def _publish_claimed(self, publisher: Publisher, entry: TrackedTask) -> None:
        """Publish, if nobody else can have led before the claim was recorded."""
        if self._leads():
            self._publish(publisher, entry)
        else:
            # Whoever leads now has read the claim, and publishes; or this process still does,
            # and only its renewal is slow.
            self._paused_until = self._clock() + _REFUSED_PAUSE_SECONDS
            self.submit(entry)

    def _publish(self, publisher: Publisher, entry: TrackedTask) -> None:
        entry.stage = TaskStage.PUBLISHED
        entry.confirmed = entry.unsure = entry.astray = False
        entry.delivered_at = None
        self._published[entry] = None
        self._peak.came(self._clock())
        task, status, policy = entry.task, entry.status, self.policy(entry)
        attempt = status.current_attempt
        message = WorkMessage(
            namespace=task.namespace,
            queue=task.spec.queue,
            task=task.name,
            uid=task.uid,
            handler=task.spec.handler,
            attempt=attempt,
            max_attempts=policy.max_attempts,
            epoch=status.epoch,
            token=self.token(entry),
            max_deliveries=policy.max_deliveries,
            timeout_seconds=policy.attempt_timeout_seconds,
            body=task.spec.payload if entry.payload is None else entry.payload,
            fence=entry.fence if status.concurrency_key else None,
        )
        self._published_counter.inc()
        publisher.publish(
            WORK_EXCHANGE,
            routing_key(*self.key),
            message.body,
            message.properties(),
            lambda settled, text: self._settled(entry, (attempt, status.epoch), settled, text),
        )

    def _settled(
        self, entry: TrackedTask, published: tuple[int, int], settled: Settled, text: str
    ) -> None:
        status = entry.status
        if entry.stage is not TaskStage.PUBLISHED or published != (
            status.current_attempt,
            status.epoch,
        ):
            return  # its outcome was faster than the broker's word about the publish
        if settled is Settled.CONFIRMED:
            entry.confirmed = True
            return
        log.warning(
            "dispatch.not_published",
            **log_fields(entry.task, attempt=published[0], verdict=settled.value, problem=text),
        )
        self._paused_until = self._clock() + _REFUSED_PAUSE_SECONDS
        if entry.key and settled is not Settled.RETURNED:
            entry.confirmed = entry.unsure = True
            return
        self.submit(entry)
        entry.astray = settled is Settled.UNKNOWN
        if settled is Settled.RETURNED:
            self._on_missing()
