"""Publishes the Tasks of one queue: by priority and age, within a window, confirmed.

Invariants:

* a Task in stage WAITING is in the dispatch queue, among the loading (it is its turn, and its
  payload is being read), or waits for its concurrency key; one in CLAIMING is among the claiming,
  one in PUBLISHED among the published; no other is in any;
* nothing is published while the dispatcher is closed (broker away, queue not declared, no
  TaskQueue), the queue's stopPolicy holds, or many statuses of the namespace cannot be written;
  what is PUBLISHED then stays so, because the broker's queue is durable.

When a Task has its turn, and what became of its publish, are events of the Task; what follows is
decided by `taskqueue.controller.tasks.machine`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence

from taskqueue.amqp.publisher import Publisher, Settled
from taskqueue.contract.command import WorkerCommand
from taskqueue.contract.names import WORK_EXCHANGE, routing_key
from taskqueue.contract.work import WorkMessage
from taskqueue.controller.metrics import PUBLISHED
from taskqueue.controller.tasks.command_outbox import CommandOutbox
from taskqueue.controller.tasks.dispatch_keys import DispatchKeys
from taskqueue.controller.tasks.dispatch_queue import PriorityQueue
from taskqueue.controller.tasks.events import (
    AttemptMissed,
    AttemptUnreported,
    Confirmation,
    Event,
    HandlerRegistered,
    MessagesLost,
    PlaceMissing,
    PublishSettled,
    ReportsResumed,
    TurnCame,
)
from taskqueue.controller.tasks.flow.flow_queue import FlowQueue
from taskqueue.controller.tasks.flow.rate_limiter import RateLimiter
from taskqueue.controller.tasks.missing_handlers import MissingHandlers
from taskqueue.controller.tasks.payloads import Payloads
from taskqueue.controller.tasks.published_attempts import (
    FinishRate,
    PublishedAttempts,
    window_size,
)
from taskqueue.controller.tasks.tracked_task import TrackedTask
from taskqueue.model.command import CommandKind
from taskqueue.model.flow import ConcurrencyPolicy, FlowPolicy
from taskqueue.model.queue import QueueConfig, QueueKey
from taskqueue.model.task import Policy
from taskqueue.timestamps import Clock

#: Publishes in one turn of the loop; the rest follows in the next, so that outcomes get theirs.
_BATCH = 128
#: Pause after the broker refused a publish (queue full, no queue): it needs time or a hand.
_REFUSED_PAUSE_SECONDS = 0.5
_DEFAULTS = Policy()
_CONFIRMATIONS = {settled: Confirmation[settled.name] for settled in Settled}


class Dispatcher:
    """Publishes the Tasks of one queue; see the module's invariants.

    Args:
        key: the queue, which may not exist (yet).
        tasks: the unfinished Tasks of all queues by uid.
        send: hands an event to a Task.
        clock: monotonic time in seconds.
        payloads: has the payload at hand of a Task that gets its turn.
        on_open: called when publishing begins.
        on_owed: called when the commands that are owed have changed.
        clogged: the namespaces whose outcomes cannot be recorded at the moment.
    """

    def __init__(
        self,
        key: QueueKey,
        *,
        tasks: Mapping[str, TrackedTask],
        send: Callable[[str, Event], None],
        clock: Clock,
        payloads: Payloads,
        on_open: Callable[[QueueKey, Publisher], None],
        on_owed: Callable[[], None],
        clogged: Collection[str],
    ) -> None:
        self.key = key
        self._slots = 0
        #: Items of TaskBatches that may run, and are no Tasks yet.
        self.unbegun = 0
        #: The uids of the queue's Tasks that are not finished.
        self.uids: dict[str, None] = {}
        #: The handlers of these that a worker did not know.
        self.missing = MissingHandlers()
        #: Called when there may be more to do for the workers. Set by whoever serves the TaskQueue.
        self.on_backlog: Callable[[], None] = do_nothing
        #: Called when the broker has no queue to route to. Set as `on_backlog`.
        self.on_missing: Callable[[], None] = do_nothing
        self._config: QueueConfig | None = None
        #: Whether every end of its Tasks is passed on, to an archive or to a webhook.
        self.has_sinks = False
        self._is_held_back = True
        self._routing_key = routing_key(*key)
        self._tasks = tasks
        self._send = send
        self._clock = clock
        self._payloads = payloads
        self._on_open = on_open
        self._clogged = clogged
        self._queue: PriorityQueue | FlowQueue = PriorityQueue()
        self._rates = RateLimiter()
        self._rate_timer: asyncio.TimerHandle | None = None
        self.keys = DispatchKeys(tasks=tasks, on_granted=self._add, on_lost=send)
        #: Those whose turn it is as soon as their payload is read.
        self._loading: set[str] = set()
        self._claiming: set[str] = set()
        #: Those in the broker or with a worker.
        self.attempts = PublishedAttempts(
            timeout_of=lambda uid: self._tasks[uid].attempt_seconds(self.policy(self._tasks[uid])),
            clock=clock,
            on_unreported=lambda uid, seconds: send(uid, AttemptUnreported(seconds)),
        )
        self._rate = FinishRate()
        self.commands = CommandOutbox(key, on_owed=on_owed)
        self._publisher: Publisher | None = None
        self._pump_planned = False
        self._paused_until = 0.0
        self._published_counter = PUBLISHED.labels(*key)

    @property
    def slots(self) -> int:
        """Tasks all workers together can run at once, as far as known."""
        return self._slots

    @slots.setter
    def slots(self, slots: int) -> None:
        grown, self._slots = slots > self._slots, slots
        if grown:
            self._plan_pump()  # the window may be larger now

    @property
    def config(self) -> QueueConfig | None:
        """What the TaskQueue asks for; None while there is none."""
        return self._config

    @config.setter
    def config(self, config: QueueConfig | None) -> None:
        before, self._config = self._config, config
        self._is_held_back = config is None or config.stop_policy.holds
        self.has_sinks = config is not None and config.has_sinks
        self._set_flow(None if config is None else config.flow)
        self.keys.configure(ConcurrencyPolicy() if config is None else config.keys, self.uids)
        if config is not None and before is not None and config.generation != before.generation:
            self._retry(self.missing.pop_all())  # its workers may have another image now
        self._plan_pump()

    @property
    def waiting(self) -> int:
        """Tasks that may run and are still in the operator."""
        return self.unbegun + len(self._queue) + len(self._loading) + len(self._claiming)

    @property
    def limited_by(self) -> str:
        """The name of a rate limit that holds all that waits back; "": none does."""
        return self._queue.limited_by(self._clock())

    @property
    def excess(self) -> int:
        """Those that ask for no worker; of all that wait for a missing handler, one does."""
        return max(self.missing.tried - 1, 0) + max(self._queue.excess, self.keys.excess)

    @property
    def published(self) -> int:
        """Tasks in the broker or with a worker."""
        return len(self.attempts)

    def pop_most_published(self) -> int:
        """Return the most messages of Tasks that were at the broker since this was last asked."""
        return self.attempts.pop_most()

    @property
    def publisher(self) -> Publisher | None:
        """What is published with; None while closed."""
        return self._publisher

    @property
    def can_publish(self) -> bool:
        """Whether the queue is declared at its broker, and not held back."""
        return self._publisher is not None and not self._is_held_back

    @property
    def is_empty(self) -> bool:
        """Whether no Task of the queue is tracked, nor anything kept of one."""
        return not (self.uids or self.keys.holds or self.commands.owed)

    def policy(self, tracked: TrackedTask) -> Policy:
        """Return what holds for a Task now: its own fields over the queue's."""
        defaults = self._config.policy if self._config else _DEFAULTS
        return tracked.task.spec.overrides.over(defaults)

    # The broker.

    def open(self, publisher: Publisher) -> None:
        """Publish from now on; the queue is declared."""
        self._publisher = publisher
        self._paused_until = 0.0
        self.attempts.restart_timeouts()
        for uid in list(self.attempts):
            self._send(uid, ReportsResumed())
        self.commands.open(publisher)
        self._on_open(self.key, publisher)
        self._plan_pump()

    def close(self) -> None:
        """Publish nothing until opened again."""
        self._publisher = None
        self.commands.close()

    def republish_all(self) -> int:
        """Have published again what holds no key, and return how many: the broker lost it."""
        before = len(self.attempts)
        for uid in list(self.attempts):
            self._send(uid, MessagesLost())
        return before - len(self.attempts)

    def on_ready_count(self, ready: int, *, reporting: bool) -> None:
        """Take the broker's count of messages no worker has; see `PublishedAttempts`."""
        self.attempts.on_ready_count(ready, reporting=reporting)

    def pause(self) -> None:
        """Publish nothing for a moment."""
        self._paused_until = self._clock() + _REFUSED_PAUSE_SECONDS

    def send_command(self, kind: CommandKind, token: str, uid: str) -> None:
        """Send a command about an attempt; kept until the broker has it."""
        self.commands.send(WorkerCommand(kind, token=token, uid=uid))

    def send_drain(self, pod: str) -> None:
        """Command the worker of a pod to take no more work."""
        self.commands.send(WorkerCommand(CommandKind.DRAIN, pod=pod, namespace=self.key[0]))

    # Where a Task is.

    def enqueue(self, uid: str) -> None:
        """Queue a Task whose next attempt may be dispatched."""
        self._remove(uid)
        self._add(uid)
        if self.keys.contend_for_keys:
            self.keys.contend(uid)

    def hold(self, uid: str) -> None:
        """Keep a Task that is not to be dispatched for now."""
        self._remove(uid)
        if self.keys.contend_for_keys:
            self.keys.contend(uid)
        self._plan_pump()

    def withdraw(self, uid: str, *, finished: bool) -> None:
        """Let go of a Task that is finished or gone."""
        self._remove(uid)
        if self.missing.handlers:
            self.missing.remove_task(uid)
        if self.keys.contend_for_keys:
            self.keys.leave(uid)
        self.uids.pop(uid, None)
        if finished:
            self._rate.add(self._clock())
        self._plan_pump()

    def publish(self, message: WorkMessage) -> None:
        """Publish an attempt; how that ends is sent to the Task as `PublishSettled`.

        Raises:
            RuntimeError: the dispatcher is closed.
        """
        if self._publisher is None:
            raise RuntimeError(f"nothing can be published to {self.key[0]}/{self.key[1]}")
        uid, attempt, epoch = message.uid, message.attempt, message.epoch
        self._claiming.discard(uid)
        self.attempts.add(uid)
        self._published_counter.inc()
        self._publisher.publish(
            WORK_EXCHANGE,
            self._routing_key,
            message.body,
            message.properties(),
            lambda settled, text: self._send(
                uid, PublishSettled(attempt, epoch, _CONFIRMATIONS[settled], text)
            ),
        )

    def on_payload_loaded(self, uid: str) -> None:
        """Give a Task the turn that it waits for."""
        if uid not in self._loading:
            return
        self._loading.discard(uid)
        config = self._config
        if config is None or not self.can_publish or self._clock() < self._paused_until:
            self._queue_up(uid)
            self._plan_pump()
        else:
            self._give_turn(uid)

    def on_running_reported(self, worker: str, uids: Collection[str]) -> None:
        """Take note that a worker runs the attempts of these Tasks and no others."""
        for uid in self.attempts.missed_by(worker, uids):
            self._send(uid, AttemptMissed(worker))

    def on_handlers_registered(self, names: Collection[str]) -> None:
        """Try the Tasks at once that have waited for a worker with one of these handlers."""
        for handler in self.missing.known_to(names) if self.missing.handlers else ():
            self._retry(self.missing.pop(handler))

    def _retry(self, uids: Sequence[str], start: int = 0) -> None:
        """Try Tasks at once that have waited for their handler, so many in each turn."""
        end = start + _BATCH
        for uid in uids[start:end]:
            self._send(uid, HandlerRegistered())
        if end < len(uids):
            asyncio.get_running_loop().call_soon(self._retry, uids, end)

    # The pump.

    def _add(self, uid: str) -> None:
        self._queue_up(uid)
        if self.missing.handlers:
            self.missing.begin_try(uid, self._tasks[uid].task.spec.handler)
        self._plan_pump()
        self.on_backlog()

    def _queue_up(self, uid: str) -> None:
        task = self._tasks[uid].task
        if task.spec.concurrency_key:
            self.keys.on_queued(uid, task.spec.concurrency_key)
        if not self._queue.queue_up(task):
            self._send(uid, PlaceMissing())

    def _remove(self, uid: str) -> None:
        if self.missing.handlers:
            self.missing.end_try(uid)
        if not self.attempts.discard(uid):
            self._claiming.discard(uid)
            self._loading.discard(uid)
            self._queue.discard(uid)
            if self.keys.queued:
                self.keys.on_dequeued(uid)

    def _set_flow(self, flow: FlowPolicy | None) -> None:
        """Have the Tasks that wait do so by this policy."""
        if flow == self._queue.policy:
            return
        self._rates.configure(() if flow is None else flow.rate_limits, self._clock())
        uids = list(self._queue)
        self._queue = PriorityQueue() if flow is None else FlowQueue(flow, self._rates)
        for uid in uids:
            self._queue_up(uid)

    def _plan_pump(self, wait: float = 0.0) -> None:
        if self._pump_planned or self._publisher is None or not self._queue.places:
            return
        self._pump_planned = True
        loop = asyncio.get_running_loop()
        if wait > 0:
            loop.call_later(wait, self._pump)
        else:
            loop.call_soon(self._pump)

    def _pump(self) -> None:
        self._pump_planned = False
        config = self._config
        if config is None or not self.can_publish:
            return
        if self.key[0] in self._clogged:
            self.pause()
        now = self._clock()
        window = window_size(
            max_published=config.max_published,
            slots=self._slots,
            finished_in_5_seconds=self._rate.recent(now),
        )
        window = self._queue.window(window, self._slots)
        for _ in range(_BATCH):
            if now < self._paused_until:
                self._plan_pump(self._paused_until - now)
                return
            if len(self.attempts) + len(self._claiming) + len(self._loading) >= window:
                return
            uid = self._queue.pop_next(now)
            if uid is None:
                self._wait_for_rate()
                return
            if self._has_to_load(uid):
                self._loading.add(uid)
                self._payloads.load(self._tasks[uid].task)
            else:
                self._give_turn(uid)
        self._plan_pump()

    def _wait_for_rate(self) -> None:
        """Go on when a rate limit lets the next attempt pass."""
        seconds = self._queue.wait_seconds(self._clock())
        if self._rate_timer is not None:
            self._rate_timer.cancel()
            self._rate_timer = None
        if seconds is not None:
            loop = asyncio.get_running_loop()
            self._rate_timer = loop.call_later(seconds, self._plan_pump)

    def _has_to_load(self, uid: str) -> bool:
        """Return whether a payload is needed that is not at hand."""
        task = self._tasks[uid].task
        key = task.spec.concurrency_key
        if key and not self.keys.has_room(key, uid):
            return False
        return not self._payloads.is_at_hand(task)

    def _give_turn(self, uid: str) -> None:
        tracked = self._tasks[uid]
        key, claimed = tracked.task.spec.concurrency_key, bool(tracked.status.concurrency_key)
        has_key = claimed or not key or self.keys.has_room(key, uid)
        if has_key and not self._queue.take(tracked.task, self._clock()):
            self._queue_up(uid)
            self._wait_for_rate()
            return
        if key:
            self.keys.on_dequeued(uid)
        if claimed or not key:
            self._send(uid, TurnCame())
        elif self.keys.claim(key, uid):
            self._claiming.add(uid)
            self._send(uid, TurnCame(key_granted=True))
            if self.keys.contend_for_keys:
                self.keys.contend(uid)
        else:
            self.missing.end_try(uid)
            self._queue.discard(uid)
            self.keys.enqueue(key, tracked.task)
            self._send(uid, TurnCame(key_granted=False))


def do_nothing() -> None:
    """Stand for a callback while there is no TaskQueue."""
