"""Publishes the Tasks of one queue: by priority and age, within a window, confirmed.

Invariants:

* an Entry in stage WAITING is in the line, one in PUBLISHED is in ``_published``, no other is in
  either;
* nothing is published while the dispatcher is closed (broker away, queue not declared, no
  TaskQueue); what is PUBLISHED then stays so, because the broker's queue is durable;
* a publish whose fate is unknown goes back into the line and out again with the same token.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator

from taskqueue.broker.contract import WORK_EXCHANGE, WorkMessage, routing_key
from taskqueue.broker.publisher import Publisher, Settled
from taskqueue.domain.dispatch_order import WaitingLine, window_size
from taskqueue.domain.queue import QueueConfig, QueueKey
from taskqueue.domain.task import Policy
from taskqueue.domain.token import TokenKeys
from taskqueue.engine.entry import Entry, Stage, log_fields
from taskqueue.engine.metrics import PUBLISHED
from taskqueue.logs import EventLog

log = EventLog(__name__)

Clock = Callable[[], float]

#: Publishes in one turn of the loop; the rest follows in the next, so that outcomes get theirs.
_BATCH = 128
#: Pause after the broker refused a publish (queue full, no queue): it needs time or a hand.
_REFUSED_PAUSE_SECONDS = 0.5
_RATE_WINDOW_SECONDS = 5


class FinishRate:
    """How many Tasks finished in the last five seconds, counted by whole seconds."""

    def __init__(self) -> None:
        self._seconds: deque[tuple[int, int]] = deque()

    def add(self, now: float) -> None:
        """Count one that finished now."""
        second = int(now)
        if self._seconds and self._seconds[-1][0] == second:
            self._seconds[-1] = (second, self._seconds[-1][1] + 1)
        else:
            self._seconds.append((second, 1))

    def recent(self, now: float) -> int:
        """Return the count of the last five seconds."""
        while self._seconds and self._seconds[0][0] < now - _RATE_WINDOW_SECONDS:
            self._seconds.popleft()
        return sum(count for _, count in self._seconds)


class Dispatcher:
    """See the module's contract.

    Args:
        key: the queue, which may not exist (yet).
        tokens: sign what is published.
        clock: wall time in seconds.
        on_backlog: called when there may be more to do for the workers.
        on_missing: called when the broker has no queue to route to.
    """

    def __init__(
        self,
        key: QueueKey,
        *,
        tokens: TokenKeys,
        clock: Clock,
        on_backlog: Callable[[], None],
        on_missing: Callable[[], None],
    ) -> None:
        self.key = key
        self.config: QueueConfig | None = None
        #: Tasks all workers together can run at once, as far as known.
        self.slots = 0
        self._tokens = tokens
        self._clock = clock
        self._on_backlog = on_backlog
        self._on_missing = on_missing
        self._line: WaitingLine[Entry] = WaitingLine()
        self._delayed: set[Entry] = set()
        self._published: set[Entry] = set()
        self._rate = FinishRate()
        self._publisher: Publisher | None = None
        self._pump_planned = False
        self._paused_until = 0.0
        self._published_counter = PUBLISHED.labels(*key)

    @property
    def waiting(self) -> int:
        """Tasks that may run and are still in the operator."""
        return len(self._line)

    @property
    def published(self) -> int:
        """Tasks in the broker or with a worker."""
        return len(self._published)

    @property
    def empty(self) -> bool:
        """Whether no Task of the queue is held."""
        return not (self._line or self._published or self._delayed)

    def entries(self) -> Iterator[Entry]:
        """Yield every Task held, in no order."""
        yield from self._line
        yield from self._delayed
        yield from self._published

    def policy(self, entry: Entry) -> Policy:
        """Return what holds for a Task now: its own fields over the queue's."""
        defaults = self.config.policy if self.config else Policy()
        return entry.task.spec.overrides.over(defaults)

    def open(self, publisher: Publisher) -> None:
        """Publish from now on; the queue is declared."""
        self._publisher = publisher
        self._paused_until = 0.0
        self._plan_pump()

    def close(self) -> None:
        """Publish nothing until opened again."""
        self._publisher = None

    def submit(self, entry: Entry, *, wait_seconds: float = 0.0) -> None:
        """Take a Task whose next attempt is due now, at its status' nextAttemptTime, or later."""
        self._leave(entry)
        wait = max(wait_seconds, (entry.status.next_attempt_time or 0.0) - self._clock())
        if wait > 0:
            entry.stage = Stage.DELAYED
            self._delayed.add(entry)
            entry.due = asyncio.get_running_loop().call_later(wait, self._due, entry)
        else:
            self._wait(entry)

    def withdraw(self, entry: Entry, *, finished: bool) -> None:
        """Let go of a Task that is finished or gone."""
        self._leave(entry)
        if finished:
            self._rate.add(self._clock())
        self._plan_pump()

    def republish_all(self) -> int:
        """Put everything published back into the line: the broker has lost it."""
        lost = list(self._published)
        for entry in lost:
            self.submit(entry)
        return len(lost)

    def _due(self, entry: Entry) -> None:
        entry.due = None
        self._delayed.discard(entry)
        self._wait(entry)

    def _wait(self, entry: Entry) -> None:
        entry.stage = Stage.WAITING
        self._line.add(entry, priority=entry.task.spec.priority, created=entry.task.created)
        self._plan_pump()
        self._on_backlog()

    def _leave(self, entry: Entry) -> None:
        self._line.discard(entry)
        self._published.discard(entry)
        if entry in self._delayed:
            self._delayed.discard(entry)
            if entry.due is not None:
                entry.due.cancel()
                entry.due = None

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
        publisher = self._publisher
        if publisher is None or self.config is None:
            return
        now = self._clock()
        if now < self._paused_until:
            self._plan_pump(self._paused_until - now)
            return
        window = window_size(
            max_published=self.config.max_published,
            slots=self.slots,
            finished_in_5_seconds=self._rate.recent(now),
        )
        for _ in range(min(_BATCH, window - len(self._published))):
            entry = self._line.pop()
            if entry is None:
                return
            self._publish(publisher, entry)
        if len(self._published) < window:
            self._plan_pump()

    def _publish(self, publisher: Publisher, entry: Entry) -> None:
        entry.stage = Stage.PUBLISHED
        self._published.add(entry)
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
            token=self._tokens.sign(task.uid, attempt, status.epoch),
            max_deliveries=policy.max_deliveries,
            timeout_seconds=policy.attempt_timeout_seconds,
            body=task.spec.payload,
        )
        self._published_counter.inc()
        publisher.publish(
            WORK_EXCHANGE,
            routing_key(*self.key),
            message.body,
            message.properties(),
            lambda settled, text: self._settled(entry, attempt, settled, text),
        )

    def _settled(self, entry: Entry, attempt: int, settled: Settled, text: str) -> None:
        if settled is Settled.CONFIRMED:
            return
        if entry.stage is not Stage.PUBLISHED or entry.status.current_attempt != attempt:
            return  # its outcome was faster than the broker's word about the publish
        log.warning(
            "dispatch.not_published",
            **log_fields(entry.task, attempt=attempt, verdict=settled.value, problem=text),
        )
        self._paused_until = self._clock() + _REFUSED_PAUSE_SECONDS
        self.submit(entry)
        if settled is Settled.RETURNED:
            self._on_missing()
