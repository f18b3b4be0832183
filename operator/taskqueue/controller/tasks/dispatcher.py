"""Publishes the Tasks of one queue: by priority and age, within a window, confirmed.

Invariants:

* a `TrackedTask` in stage WAITING is in the dispatch queue or waits for its concurrency key, one in
  CLAIMING is in ``_claiming``, one in PUBLISHED in ``_published``, one in HELD in ``_held``, and no
  other is in any;
* nothing is published while the dispatcher is closed (broker away, queue not declared, no
  TaskQueue) or the queue's stopPolicy holds; what is PUBLISHED then stays so, because the broker's
  queue is durable;
* a publish that is neither confirmed nor returned goes back into the dispatch queue and out again
  with the same token. A Task with a concurrency key could then run beside itself, so it counts as
  published until the attempt's time is up;
* a Task with a concurrency key is published only after a status write records that it holds the
  key, and by a process that led when the write was done: the next leader knows of it.
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
from taskqueue.controller.tasks.unreported_attempts import UnreportedAttempts
from taskqueue.limits import REPORT_GRACE_SECONDS
from taskqueue.logs import EventLog
from taskqueue.model.queue import QueueConfig, QueueKey
from taskqueue.model.task import Policy
from taskqueue.model.token import TokenKeys
from taskqueue.timestamps import Clock

log = EventLog(__name__)

#: Publishes in one turn of the loop; the rest follows in later turns, so that outcomes get one.
_BATCH = 128
#: Pause after the broker refused a publish (queue full, or no queue).
_REFUSED_PAUSE_SECONDS = 0.5


class DispatchListener(Protocol):
    """Receives what the dispatcher finds out, and keeps the statuses."""

    def on_opened(self, key: QueueKey, publisher: Publisher) -> None:
        """The queue's broker is connected, and the queue declared."""

    def on_key_claimed(self, entry: TrackedTask) -> None:
        """Write that ``entry.key`` is held, then call `Dispatcher.on_claim_recorded`."""

    def on_parked(self, entry: TrackedTask) -> None:
        """The Task waits for its concurrency key."""

    def on_unreported(self, entry: TrackedTask, since: float) -> None:
        """No worker will report this attempt, which has been with a worker since then."""


class Dispatcher:
    """Publishes the Tasks of one queue, by the module's invariants.

    Args:
        key: the queue, which may not exist (yet).
        tokens: sign what is published.
        clock: wall time in seconds.
        listener: keeps the statuses.
        leads: whether this process certainly still leads.
        on_backlog: called when there may be more to do for the workers.
        on_missing: called when the broker has no queue to route to.
    """

    def __init__(
        self,
        key: QueueKey,
        *,
        tokens: TokenKeys,
        clock: Clock,
        listener: DispatchListener,
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
        self._listener = listener
        self._leads = leads
        self._on_backlog = on_backlog
        self._on_missing = on_missing
        self._queue: DispatchQueue[TrackedTask] = DispatchQueue()
        #: Holders are tracked Tasks, and tokens of recalled attempts that may still run.
        self._keys: KeySlots[TrackedTask | str] = KeySlots()
        self._key_holds = KeyHolds(self._on_key_hold_end)
        self._held: set[TrackedTask] = set()
        self._claiming: set[TrackedTask] = set()
        #: In the order of publishing, which is the order of the broker's queue.
        self._published: dict[TrackedTask, None] = {}
        self._peak = PublishedPeak()
        self._unreported = UnreportedAttempts(
            self._published, policy=self.policy, clock=clock, on_unreported=listener.on_unreported
        )
        self._rate = FinishRate()
        self._commands = CommandOutbox()
        self._publisher: Publisher | None = None
        self._publishing_scheduled = False
        self._paused_until = 0.0
        self._published_counter = PUBLISHED.labels(*key)

    @property
    def config(self) -> QueueConfig | None:
        """The TaskQueue's configuration; None while there is no TaskQueue."""
        return self._config

    @config.setter
    def config(self, config: QueueConfig | None) -> None:
        self._config = config
        for key in self._keys.keys_waited_for:
            self._unpark(key)
        self._schedule_publishing()

    @property
    def waiting(self) -> int:
        """Tasks that may run and are still in the operator."""
        return len(self._queue) + len(self._claiming)

    @property
    def published(self) -> int:
        """Tasks in the broker or with a worker."""
        return len(self._published)

    def pop_most_published(self) -> int:
        """Return the most messages of Tasks at the broker since the last call."""
        return self._peak.pop(self._clock())

    @property
    def publisher(self) -> Publisher | None:
        """The publisher of the queue's broker; None while closed."""
        return self._publisher

    @property
    def empty(self) -> bool:
        """Whether nothing of the queue is held: no Task, no key, no command."""
        return not (
            self._queue
            or self._keys.waiting
            or self._claiming
            or self._published
            or self._held
            or self._key_holds
            or self._commands
        )

    def entries(self) -> Iterator[TrackedTask]:
        """Yield every Task held, in no order."""
        yield from self._queue
        yield from (one for one in self._keys if isinstance(one, TrackedTask))
        yield from self._claiming
        yield from self._held
        yield from self._published

    def policy(self, entry: TrackedTask) -> Policy:
        """Return a Task's present policy: its own fields over the queue's."""
        defaults = self._config.policy if self._config else Policy()
        return entry.task.spec.overrides.over(defaults)

    def open(self, publisher: Publisher) -> None:
        """Start publishing; the queue is declared."""
        self._publisher = publisher
        self._paused_until = 0.0
        self._unreported.restart_timeouts()
        self._commands.open(publisher)
        self._listener.on_opened(self.key, publisher)
        self._schedule_publishing()

    def close(self) -> None:
        """Publish nothing until opened again."""
        self._publisher = None
        self._commands.close()

    def adopt(self, entry: TrackedTask) -> None:
        """Add a Task that is new here.

        A former leader may have published a Task whose status has a concurrency key. It counts as
        published, because a second copy could run beside the first.
        """
        if entry.status.concurrency_key:
            entry.key = entry.status.concurrency_key
            self._keys.assign(entry.key, entry)
            entry.stage = TaskStage.PUBLISHED
            self._published[entry] = None
            self._peak.add(self._clock())
            entry.confirmed = entry.maybe_published = True

    def enqueue(self, entry: TrackedTask) -> None:
        """Put a Task whose next attempt may be dispatched into the queue."""
        self._detach(entry)
        entry.stage = TaskStage.WAITING
        self._queue.add(entry, priority=entry.task.spec.priority, created=entry.task.created)
        self._schedule_publishing()
        self._on_backlog()

    def hold(self, entry: TrackedTask) -> None:
        """Keep a Task that is not to be dispatched for now."""
        self._detach(entry)
        entry.stage = TaskStage.HELD
        self._held.add(entry)
        self._schedule_publishing()

    def withdraw(self, entry: TrackedTask, *, finished: bool) -> None:
        """Remove a Task that is finished or deleted."""
        self._detach(entry)
        if entry.key:
            self._release(entry)
        if finished:
            self._rate.add(self._clock())
        self._schedule_publishing()

    def token(self, entry: TrackedTask) -> str:
        """Return the token of a Task's attempt."""
        status = entry.status
        return self._tokens.sign(entry.task.uid, status.current_attempt, status.epoch)

    def hold_key(self, entry: TrackedTask) -> None:
        """Hold the key of a published attempt that is being stopped, until its worker answers.

        The hold ends at the latest when the attempt must have timed out.
        """
        if not entry.key:
            return
        token = self.token(entry)
        self._keys.assign(entry.key, token)
        seconds = self.policy(entry).attempt_timeout_seconds + REPORT_GRACE_SECONDS
        self._key_holds.add(token, entry.key, seconds)

    def end_key_hold(self, token: str) -> None:
        """Release the key held for an attempt that no worker has any more."""
        self._key_holds.end(token)

    def _on_key_hold_end(self, key: str, token: str) -> None:
        self._keys.release(key, token)
        self._unpark(key)

    def send_command(self, kind: CommandKind, token: str, uid: str) -> None:
        """Send a command to the workers; kept until the broker confirms it."""
        self._commands.send(WorkerCommand(kind, token=token, uid=uid))

    def send_drain(self, pod: str) -> None:
        """Send the worker of a pod the command to drain; not kept while the broker is away."""
        self._commands.send(WorkerCommand(CommandKind.DRAIN, pod=pod, namespace=self.key[0]))

    def on_claim_recorded(self, entry: TrackedTask, fence: int) -> None:
        """Publish a Task whose claim is written; ``fence`` grows with every claim."""
        entry.fence = fence
        if entry.stage is not TaskStage.CLAIMING:
            return
        self._claiming.discard(entry)
        held = self._config is None or self._config.stop_policy.holds
        if self._publisher is None or held:
            self.enqueue(entry)
        else:
            self._publish_claimed(self._publisher, entry)

    def republish_all(self) -> int:
        """Put every published Task back into the queue, because the broker has lost the messages.

        Tasks that hold a key stay published: a worker may still run them. Return the count.
        """
        lost = [entry for entry in self._published if not entry.key]
        for entry in lost:
            self.enqueue(entry)
        for entry in self._published:
            entry.maybe_published = True
        return len(lost)

    def on_ready_count(self, ready: int, *, reporting: bool) -> None:
        """Check for unreported attempts, given the broker's count of messages no worker has.

        Args:
            ready: the count.
            reporting: whether the broker takes what workers report.
        """
        self._unreported.on_ready_count(ready, reporting=reporting)

    def _detach(self, entry: TrackedTask) -> None:
        self._queue.discard(entry)
        if entry in self._published:
            del self._published[entry]
            self._peak.remove(self._clock())
        self._claiming.discard(entry)
        self._held.discard(entry)
        entry.confirmed = entry.maybe_published = False
        entry.delivered_at = None
        if entry.key and entry.status.concurrency_key != entry.key:
            self._release(entry)

    def _release(self, entry: TrackedTask) -> None:
        key, entry.key = entry.key, ""
        self._keys.stop_waiting(key, entry)
        self._keys.release(key, entry)
        self._unpark(key)

    def _unpark(self, key: str) -> None:
        """Move Tasks that wait for a key into the dispatch queue, as many as may have it."""
        limit = self._config.per_key if self._config else 1
        while (entry := self._keys.pop_next(key, limit=limit)) is not None:
            if isinstance(entry, TrackedTask):
                self._keys.assign(key, entry)  # or the next would find room too
                self._queue.add(
                    entry, priority=entry.task.spec.priority, created=entry.task.created
                )
                self._schedule_publishing()
                self._on_backlog()

    def _schedule_publishing(self, wait: float = 0.0) -> None:
        if self._publishing_scheduled or self._publisher is None or not self._queue:
            return
        self._publishing_scheduled = True
        loop = asyncio.get_running_loop()
        if wait > 0:
            loop.call_later(wait, self._publish_batch)
        else:
            loop.call_soon(self._publish_batch)

    def _publish_batch(self) -> None:
        self._publishing_scheduled = False
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
                self._schedule_publishing(self._paused_until - now)
                return
            if len(self._published) + len(self._claiming) >= window:
                return
            entry = self._queue.pop()
            if entry is None:
                return
            if entry.status.concurrency_key:
                self._publish_claimed(publisher, entry)
            elif entry.task.spec.concurrency_key:
                self._claim_or_park(entry, config.per_key)
            else:
                self._publish(publisher, entry)
        self._schedule_publishing()

    def _claim_or_park(self, entry: TrackedTask, limit: int) -> None:
        entry.key = entry.task.spec.concurrency_key
        if self._keys.claim(entry.key, entry, limit=limit):
            entry.stage = TaskStage.CLAIMING
            self._claiming.add(entry)
            self._listener.on_key_claimed(entry)
        else:
            spec = entry.task.spec
            self._keys.enqueue(entry.key, entry, priority=spec.priority, created=entry.task.created)
            self._listener.on_parked(entry)

    def _publish_claimed(self, publisher: Publisher, entry: TrackedTask) -> None:
        """Publish, unless another process may have led before the claim was written."""
        if self._leads():
            self._publish(publisher, entry)
        else:
            # The present leader has read the claim, and publishes; or this process still leads,
            # and only its renewal is slow.
            self._paused_until = self._clock() + _REFUSED_PAUSE_SECONDS
            self.enqueue(entry)

    def _publish(self, publisher: Publisher, entry: TrackedTask) -> None:
        entry.stage = TaskStage.PUBLISHED
        entry.confirmed = entry.maybe_published = entry.stray_copy_possible = False
        entry.delivered_at = None
        self._published[entry] = None
        self._peak.add(self._clock())
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
            lambda settled, text: self._on_publish_settled(
                entry, (attempt, status.epoch), settled, text
            ),
        )

    def _on_publish_settled(
        self, entry: TrackedTask, published: tuple[int, int], settled: Settled, text: str
    ) -> None:
        status = entry.status
        if entry.stage is not TaskStage.PUBLISHED or published != (
            status.current_attempt,
            status.epoch,
        ):
            return  # its outcome came before the broker's confirm
        if settled is Settled.CONFIRMED:
            entry.confirmed = True
            return
        log.warning(
            "dispatch.not_published",
            **log_fields(entry.task, attempt=published[0], verdict=settled.value, error=text),
        )
        self._paused_until = self._clock() + _REFUSED_PAUSE_SECONDS
        if entry.key and settled is not Settled.RETURNED:
            entry.confirmed = entry.maybe_published = True
            return
        self.enqueue(entry)
        entry.stray_copy_possible = settled is Settled.UNKNOWN
        if settled is Settled.RETURNED:
            self._on_missing()
