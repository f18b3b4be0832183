"""The backlog against a model of a broker whose statistics are old."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from taskqueue.controller.queues.backlog import (
    STATISTICS_AGE_SECONDS,
    STATISTICS_SECONDS,
    BacklogEstimate,
    BacklogMeter,
)
from taskqueue.controller.tasks.published_attempts import LATE_SECONDS, PublishedPeak
from taskqueue.model.queue_stats import QueueStats


def with_statistics() -> BacklogMeter:
    meter = BacklogMeter()
    meter.expect_statistics(0.0)
    return meter


#: The oldest statistics that the model gives.
OLDEST = 0.9 * STATISTICS_AGE_SECONDS
#: How long an acknowledgement may follow the end of its Task.
LATE = 0.9 * LATE_SECONDS


@dataclass
class Model:
    """A queue at a broker: what is there really, what the operator knows, what it is told."""

    meter: BacklogMeter = field(default_factory=with_statistics)
    now: float = 1000.0
    own_ready: int = 0
    own_running: int = 0
    #: When the message of a Task that has ended goes.
    ended: list[float] = field(default_factory=list)
    foreign_ready: int = 0
    foreign_running: int = 0
    waiting: int = 0
    peak: PublishedPeak = field(default_factory=PublishedPeak)
    #: (time, ready, unacknowledged, foreign of either) after each change.
    past: list[tuple[float, int, int, int, int]] = field(default_factory=list)
    #: What the meter was last told: foreign ready by the count, then by the statistics.
    counted_foreign: int = 0
    told_foreign: tuple[int, int] = (0, 0)

    @property
    def published(self) -> int:
        return self.own_ready + self.own_running

    def changed(self) -> None:
        self.ended = [when for when in self.ended if when > self.now]
        unacknowledged = self.own_running + len(self.ended) + self.foreign_running
        ready = self.own_ready + self.foreign_ready
        self.past.append(
            (self.now, ready, unacknowledged, self.foreign_ready, self.foreign_running)
        )

    def wait(self, seconds: float) -> None:
        until = self.now + seconds
        for when in sorted(self.ended):
            if when <= until:
                self.now = when
                self.changed()
        self.now = until

    def publish(self, number: int) -> None:
        self.own_ready += number
        for _ in range(number):
            self.peak.add(self.now)

    def deliver(self, number: int) -> None:
        number = min(number, self.own_ready)
        self.own_ready -= number
        self.own_running += number

    def end(self, number: int) -> None:
        number = min(number, self.own_running)
        self.own_running -= number
        for _ in range(number):
            self.peak.remove(self.now)
        self.ended += [self.now + LATE * (1 + place) / (1 + number) for place in range(number)]

    def give_back(self, number: int) -> None:
        number = min(number, self.own_running)
        self.own_running -= number
        self.own_ready += number

    def foreign_publish(self, number: int) -> None:
        self.foreign_ready += number

    def foreign_deliver(self, number: int) -> None:
        number = min(number, self.foreign_ready)
        self.foreign_ready -= number
        self.foreign_running += number

    def foreign_end(self, number: int) -> None:
        self.foreign_running -= min(number, self.foreign_running)

    def count(self) -> None:
        self._observe()
        self.meter.set_ready(
            self.own_ready + self.foreign_ready, published=self.published, now=self.now
        )
        self.counted_foreign = self.foreign_ready

    def tell(self, age: float) -> None:
        """Have the statistics read; they are ``age`` seconds old."""
        self._observe()
        seen = [one for one in self.past if one[0] <= self.now - age] or self.past[:1]
        _, ready, unacknowledged, *foreign = seen[-1]
        self.told_foreign = (foreign[0], foreign[1])
        self.meter.set_statistics(QueueStats(ready, unacknowledged), read_at=self.now)

    def read(self, workers_foreign: int = 0) -> BacklogEstimate:
        self._observe()
        return self.meter.update_estimate(
            waiting=self.waiting,
            published=self.published,
            workers_foreign=workers_foreign,
            now=self.now,
            error="cannot be read",
        )

    def _observe(self) -> None:
        self.meter.observe_published(max(self.peak.pop(self.now), self.published), self.now)

    def do(self, name: str, value: float) -> None:
        if name == "wait":
            self.wait(value)
        elif name == "tell":
            self.tell(value)
        elif name == "count":
            self.count()
        else:
            getattr(self, name)(int(value))
            self.changed()


def steps(*names: str) -> st.SearchStrategy[list[tuple[str, float]]]:
    waits = st.tuples(st.just("wait"), st.floats(0.0, 6.0))
    told = st.tuples(st.just("tell"), st.floats(0.0, OLDEST))
    counts = st.tuples(st.just("count"), st.just(0.0))
    work = st.tuples(st.sampled_from(names), st.integers(1, 20).map(float))
    return st.lists(st.one_of(waits, told, counts, work, work), max_size=40)


OWN = ("publish", "deliver", "end", "give_back")
FOREIGN = ("foreign_publish", "foreign_deliver", "foreign_end")


@settings(max_examples=200)
@given(steps(*OWN), st.integers(0, 9))
def test_without_foreign_messages_the_backlog_is_the_own_tasks_however_fast_they_come_and_go(
    taken: list[tuple[str, float]], waiting: int
) -> None:
    model = Model(waiting=waiting)
    model.changed()
    for name, value in taken:
        model.do(name, value)
        signal = model.read()
        assert signal.backlog == waiting + model.published


@settings(max_examples=200)
@given(steps(*OWN, *FOREIGN), st.integers(0, 9), st.integers(0, 5))
def test_the_backlog_is_never_less_than_what_is_known_nor_more_than_there_was(
    taken: list[tuple[str, float]], waiting: int, workers_foreign: int
) -> None:
    model = Model(waiting=waiting)
    model.changed()
    counted = 0
    for name, value in taken:
        model.do(name, value)
        if name == "count":
            counted = max(model.own_ready + model.foreign_ready - model.published, 0)
        signal = model.read(workers_foreign)
        assert signal.backlog is not None
        own = waiting + model.published
        assert signal.backlog >= own + counted + workers_foreign
        ready, running = model.told_foreign
        assert signal.backlog <= own + max(
            model.counted_foreign + max(workers_foreign, running), ready + running
        )
        if signal.ready is not None:
            assert signal.running is not None
            assert signal.running >= 0


@settings(max_examples=100)
@given(steps(*OWN), st.integers(1, 5), st.floats(0.0, OLDEST))
def test_the_backlog_is_never_zero_while_statistics_tell_of_an_unacknowledged_direct_message(
    before: list[tuple[str, float]], number: int, age: float
) -> None:
    model = Model()
    model.changed()
    for name, value in before:
        model.do(name, value)
    model.do("deliver", model.own_ready)
    model.do("end", model.own_running)
    model.do("foreign_publish", number)
    model.do("foreign_deliver", number)
    model.read()
    model.wait(2 * LATE_SECONDS)
    model.read()
    model.wait(1.1 * STATISTICS_AGE_SECONDS)
    model.do("tell", age)
    for _ in range(int(STATISTICS_SECONDS)):
        model.do("count", 0)
        assert model.read().backlog == number
        model.wait(0.9)


@given(st.integers(0, 50), st.integers(0, 50), st.integers(0, 50))
def test_statistics_as_old_as_the_operators_own_knowledge_tell_exactly(
    running: int, foreign_ready: int, foreign_running: int
) -> None:
    """A pool at rest: nothing comes or goes for a while."""
    model = Model()
    model.do("publish", running)
    model.do("deliver", running)
    model.do("foreign_publish", foreign_ready + foreign_running)
    model.do("foreign_deliver", foreign_running)
    model.wait(20.0)
    model.do("count", 0)
    model.do("tell", 3.0)
    signal = model.read()
    assert signal == BacklogEstimate(
        backlog=running + foreign_ready + foreign_running,
        ready=foreign_ready,
        running=running + foreign_running,
    )
