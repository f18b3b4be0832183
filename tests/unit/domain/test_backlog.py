"""The backlog against a model of a broker whose statistics are old, and rule by rule."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from taskqueue.domain.backlog import (
    FIGURES_AGE_SECONDS,
    LATE_SECONDS,
    SETTLING_SECONDS,
    STATISTICS_SECONDS,
    BacklogMeter,
    Figures,
    PublishedPeak,
    Signal,
)

MISSING = "cannot be read"


def read(
    meter: BacklogMeter, now: float, *, waiting: int = 0, published: int = 0, foreign: int = 0
) -> Signal:
    return meter.read(
        waiting=waiting, published=published, workers_foreign=foreign, now=now, problem=MISSING
    )


def with_statistics(*, since: float = 0.0) -> BacklogMeter:
    meter = BacklogMeter()
    meter.want_statistics(since)
    return meter


# Rule by rule.


def test_own_tasks_are_the_backlog_wherever_they_are() -> None:
    meter = BacklogMeter()
    meter.counted(6, published=10, now=100.0)
    assert read(meter, 100.0, waiting=3, published=10) == Signal(backlog=13, ready=6, running=4)


def test_more_ready_than_published_is_of_others() -> None:
    meter = BacklogMeter()
    meter.counted(15, published=10, now=100.0)
    assert read(meter, 100.0, published=10).backlog == 15


def test_tasks_that_ended_since_the_count_are_no_messages_of_others() -> None:
    meter = BacklogMeter()
    meter.counted(10, published=10, now=100.0)
    assert read(meter, 100.9, published=1) == Signal(backlog=1, ready=10, running=0)


def test_what_was_not_counted_is_unknown_and_the_rest_still_holds() -> None:
    meter = BacklogMeter()
    meter.counted(20, published=10, now=100.0)
    meter.uncounted()
    signal = read(meter, 101.0, waiting=1, published=10, foreign=2)
    assert signal == Signal(backlog=13, ready=None, running=None)


def test_what_workers_have_beyond_their_tasks_is_of_others() -> None:
    meter = BacklogMeter()
    meter.counted(0, published=4, now=100.0)
    signal = read(meter, 100.0, published=4, foreign=3)
    assert signal == Signal(backlog=7, ready=0, running=7)


def test_statistics_tell_of_direct_messages_that_workers_do_not_tell_of() -> None:
    meter = with_statistics()
    meter.counted(0, published=2, now=100.0)
    meter.told(Figures(0, 5), read_at=100.0)
    signal = read(meter, 100.0, published=2)
    assert signal == Signal(backlog=5, ready=0, running=5)


def test_statistics_tell_of_direct_messages_hidden_behind_running_tasks() -> None:
    meter = with_statistics()
    meter.counted(10, published=10, now=100.0)
    assert read(meter, 100.0, published=10).backlog == 10
    meter.told(Figures(10, 10), read_at=100.0)
    signal = read(meter, 100.0, published=10)
    assert signal == Signal(backlog=20, ready=10, running=10)


def test_workers_and_statistics_telling_of_the_same_messages_count_once() -> None:
    meter = with_statistics()
    meter.counted(7, published=0, now=100.0)
    meter.told(Figures(7, 3), read_at=100.0)
    assert read(meter, 100.0, foreign=3).backlog == 10


def test_new_messages_are_added_to_those_that_statistics_saw_running() -> None:
    meter = with_statistics()
    meter.told(Figures(0, 5), read_at=100.0)
    meter.counted(100, published=0, now=104.0)
    assert read(meter, 104.0).backlog == 105


def test_tasks_that_ended_before_the_statistics_were_read_do_not_come_back() -> None:
    meter = with_statistics()
    meter.counted(0, published=50, now=100.0)
    read(meter, 100.0, published=50)
    read(meter, 102.0, published=0)
    read(meter, 109.0, published=0)
    meter.told(Figures(0, 50), read_at=109.0)
    assert read(meter, 109.0).backlog == 0


def test_more_published_than_before_are_no_messages_of_others() -> None:
    meter = with_statistics()
    for second, number in enumerate((3, 0, 10)):
        read(meter, 100.0 + second, published=number)
    meter.told(Figures(10, 0), read_at=103.0)
    assert read(meter, 103.0, published=10).backlog == 10


def test_a_number_published_counts_until_it_ended_however_smaller_ones_vary() -> None:
    meter = with_statistics()
    meter.published(1000, 0.0)
    for second in range(1, 60):
        meter.published(second % 7, float(second))
    meter.told(Figures(0, 30), read_at=60.0)
    assert read(meter, 60.0, published=0).backlog == 30 - 6


def test_nothing_is_asked_of_statistics_that_are_not_wanted() -> None:
    meter = BacklogMeter()
    assert read(meter, 1e6).problem == ""


def test_statistics_that_never_came_are_a_problem_after_a_while() -> None:
    meter = with_statistics(since=100.0)
    assert read(meter, 100.0 + STATISTICS_SECONDS).problem == ""
    assert read(meter, 100.1 + STATISTICS_SECONDS).problem == MISSING


def test_statistics_cut_off_hold_for_a_while_and_are_then_a_problem_with_a_lower_bound() -> None:
    meter = with_statistics()
    meter.told(Figures(4, 5), read_at=100.0)
    meter.counted(4, published=0, now=100.0)
    assert read(meter, 100.0 + STATISTICS_SECONDS) == Signal(backlog=9, ready=4, running=5)
    later = read(meter, 100.1 + STATISTICS_SECONDS, foreign=2)
    assert later == Signal(backlog=6, ready=4, running=2, problem=MISSING)


def test_statistics_that_come_back_end_the_problem() -> None:
    meter = with_statistics()
    meter.told(Figures(0, 5), read_at=100.0)
    assert read(meter, 200.0).problem == MISSING
    meter.told(Figures(0, 4), read_at=201.0)
    assert read(meter, 201.0) == Signal(backlog=4, ready=None, running=None)


def test_zero_just_after_a_connection_is_not_believed() -> None:
    meter = with_statistics()
    meter.told(Figures(0, 5), read_at=100.0)
    meter.connected(105.0)
    meter.told(Figures(0, 0), read_at=104.9 + SETTLING_SECONDS)
    assert read(meter, 104.9 + SETTLING_SECONDS).backlog == 5
    meter.told(Figures(0, 0), read_at=105.0 + SETTLING_SECONDS)
    assert read(meter, 105.0 + SETTLING_SECONDS).backlog == 0


def test_zero_just_after_a_connection_does_not_end_the_wait_for_statistics() -> None:
    meter = with_statistics()
    meter.connected(100.0)
    meter.told(Figures(0, 0), read_at=109.0)
    assert read(meter, 109.0).problem == MISSING


def test_more_than_zero_just_after_a_connection_is_believed() -> None:
    meter = with_statistics()
    meter.connected(100.0)
    meter.told(Figures(0, 1), read_at=101.0)
    assert read(meter, 101.0).backlog == 1


def test_messages_given_back_over_a_lost_connection_count_once() -> None:
    meter = with_statistics()
    meter.told(Figures(1, 5), read_at=100.0)
    meter.connected(103.0)
    meter.counted(6, published=0, now=103.0)  # requeued
    assert read(meter, 103.0).backlog == 6


def test_other_statistics_begin_anew() -> None:
    meter = with_statistics()
    meter.told(Figures(0, 5), read_at=100.0)
    meter.want_statistics(100.0)
    assert read(meter, 101.0).backlog == 0
    meter.want_statistics(None)
    assert read(meter, 1000.0).problem == ""


def test_the_most_published_is_of_the_time_since_it_was_last_asked() -> None:
    peak = PublishedPeak()
    for _ in range(3):
        peak.came(100.0)
    for _ in range(3):
        peak.left(100.1)
    assert peak.take(102.0) == 3
    assert peak.take(102.0) == 0


def test_a_task_that_has_just_ended_counts_beside_the_one_published_in_its_place() -> None:
    peak = PublishedPeak()
    peak.came(100.0)
    peak.left(101.0)
    peak.came(101.0 + LATE_SECONDS)
    assert peak.take(101.0 + LATE_SECONDS) == 2
    assert peak.take(150.0) == 2
    peak.left(200.0)
    peak.came(200.1 + LATE_SECONDS)
    assert peak.take(202.0) == 1


# Against a model.

#: The oldest statistics that the model gives.
OLDEST = 0.9 * FIGURES_AGE_SECONDS
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
            self.peak.came(self.now)

    def deliver(self, number: int) -> None:
        number = min(number, self.own_ready)
        self.own_ready -= number
        self.own_running += number

    def end(self, number: int) -> None:
        number = min(number, self.own_running)
        self.own_running -= number
        for _ in range(number):
            self.peak.left(self.now)
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
        self.meter.counted(
            self.own_ready + self.foreign_ready, published=self.published, now=self.now
        )
        self.counted_foreign = self.foreign_ready

    def tell(self, age: float) -> None:
        """Have the statistics read; they are ``age`` seconds old."""
        self._observe()
        seen = [one for one in self.past if one[0] <= self.now - age] or self.past[:1]
        _, ready, unacknowledged, *foreign = seen[-1]
        self.told_foreign = (foreign[0], foreign[1])
        self.meter.told(Figures(ready, unacknowledged), read_at=self.now)

    def read(self, workers_foreign: int = 0) -> Signal:
        self._observe()
        return read(
            self.meter,
            self.now,
            waiting=self.waiting,
            published=self.published,
            foreign=workers_foreign,
        )

    def _observe(self) -> None:
        self.meter.published(max(self.peak.take(self.now), self.published), self.now)

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
    model.wait(1.1 * FIGURES_AGE_SECONDS)
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
    assert signal == Signal(
        backlog=running + foreign_ready + foreign_running,
        ready=foreign_ready,
        running=running + foreign_running,
    )
