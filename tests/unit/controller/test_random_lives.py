"""Any life of some Tasks: people, workers, broker and API server do as they like, in any order.

The engine's parts are the real ones; what is around them is `model`, and what
must always be true is `invariants`. In the end everything is put right, and every Task
must end.

The same 200 lives are tried at each run, and new ones by ``make test-long``.
"""

from __future__ import annotations

import logging
import os
import sys

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from taskqueue.amqp.publisher import Settled
from taskqueue.contract.command import CommandKind
from taskqueue.contract.outcome import EventError, EventKind
from taskqueue.model.queue import StopPolicy
from taskqueue.model.task import Policy
from taskqueue.timestamps import to_rfc3339
from tests.unit.controller.fakes import EPOCH, KEY
from tests.unit.controller.invariants import TIMEOUT
from tests.unit.controller.model import World

NAMES = ("a", "b", "c", "d")
names = st.sampled_from(NAMES)
#: Which of a Task's messages: mostly the latest.
ages = st.sampled_from([0, 0, 0, 0, 1, 2])
#: Of the attempts of a Task whose TaskQueue is not there to say.
UNKNOWN_TIMEOUT = Policy().attempt_timeout_seconds


class Life(RuleBasedStateMachine):
    """See the module's docstring."""

    def __init__(self) -> None:
        super().__init__()
        logging.disable()  # every life is full of warnings
        self.world = World()

    def seen(self) -> None:
        if not self.world.feed_lags:
            self.world.feed()

    @initialize(keys=st.lists(st.sampled_from(["", "k", "k"]), min_size=1, max_size=4))
    def begin(self, keys: list[str]) -> None:
        """Begin with work under way: a life of no Tasks teaches little."""
        for name, key in zip(NAMES, keys, strict=False):
            self.create(name, key, [], False, 0, None, None, False, False)
        self.all_statuses_are_written()

    # People.

    @rule(
        name=names,
        key=st.sampled_from(["", "k"]),
        needs=st.lists(names, max_size=2, unique=True),
        depends=st.booleans(),
        priority=st.sampled_from([0, 0, 7]),
        start=st.sampled_from([None, None, None, 3.0]),
        deadline=st.sampled_from([None, None, 5, 60]),
        suspend=st.sampled_from([False, False, False, True]),
        payload=st.sampled_from([False, False, False, True]),
    )
    def create(
        self,
        name: str,
        key: str,
        needs: list[str],
        depends: bool,
        priority: int,
        start: float | None,
        deadline: int | None,
        suspend: bool,
        payload: bool,
    ) -> None:
        if name in self.world.tasks:
            self.world.delete(name)  # made anew
        spec: dict[str, object] = {"concurrencyKey": key, "priority": priority, "suspend": suspend}
        if depends:
            spec["dependsOn"] = [need for need in needs if need != name]
        if start is not None:
            spec["startAfter"] = to_rfc3339(EPOCH + self.world.loop.time() + start)
        if deadline is not None:
            spec["activeDeadlineSeconds"] = deadline
        if payload:
            spec["payloadFrom"] = [{"configMapKeyRef": {"name": "c", "key": "k"}}]
        self.world.create(name, **spec)
        self.seen()

    @rule(name=names, keyed=st.booleans())
    def create_plain(self, name: str, keyed: bool) -> None:
        if not self.world.is_unfinished(name):
            self.create(name, "k" if keyed else "", [], False, 0, None, None, False, False)

    @precondition(lambda self: self.world.tasks)
    @rule(name=names, suspend=st.booleans())
    def suspend_or_resume(self, name: str, suspend: bool) -> None:
        if self.world.is_unfinished(name):
            self.world.edit(name, suspend=suspend)
            self.seen()

    @precondition(lambda self: self.world.tasks)
    @rule(name=names)
    def cancel(self, name: str) -> None:
        if self.world.is_unfinished(name):
            self.world.edit(name, cancel=True)
            self.seen()

    @precondition(lambda self: self.world.tasks)
    @rule(name=names, priority=st.integers(-1, 1))
    def prioritize(self, name: str, priority: int) -> None:
        if self.world.is_unfinished(name):
            self.world.edit(name, priority=priority)
            self.seen()

    @precondition(lambda self: self.world.tasks)
    @rule(name=names, needs=st.lists(names, max_size=2, unique=True))
    def depend_on_others(self, name: str, needs: list[str]) -> None:
        if self.world.is_unfinished(name):
            self.world.edit(name, dependsOn=[need for need in needs if need != name])
            self.seen()

    @precondition(lambda self: self.world.tasks)
    @rule(name=names)
    def delete(self, name: str) -> None:
        if name in self.world.tasks:
            self.world.delete(name)
            self.seen()

    @rule(text=st.sampled_from([None, "no JSON", '{"from": "c"}', '{"from": "c"}']))
    def write_config_map(self, text: str | None) -> None:
        self.world.put_config_map(None if text is None else {"k": text})

    @precondition(lambda self: self.world.queue is not None)
    @rule(stop=st.sampled_from([*StopPolicy, StopPolicy.NONE]))
    def hold_or_let_go(self, stop: StopPolicy) -> None:
        if self.world.queue is not None:
            self.world.put_queue(stop_policy=stop)

    @precondition(lambda self: self.world.queue is not None)
    @rule(limit=st.sampled_from([1, 2]))
    def limit_keys(self, limit: int) -> None:
        if self.world.queue is not None:
            self.world.put_queue(per_key=limit)

    @rule(stays=st.sampled_from([False, False, True]))
    def delete_or_create_the_queue(self, stays: bool) -> None:
        if self.world.queue is not None:
            self.world.drop_queue()
        if not stays:
            self.world.put_queue()

    # What carries words.

    @rule()
    def feed_lags(self) -> None:
        """Until some time has passed."""
        self.world.feed_lags = True

    @precondition(lambda self: self.world.unwritten)
    @rule(name=names, first=st.sampled_from([1, 99]), late=st.booleans())
    def a_status_is_written(self, name: str, first: int, late: bool) -> None:
        if name in self.world.unwritten:
            self.world.write(name, first=first, late=late)
            self.seen()

    @precondition(lambda self: self.world.unwritten)
    @rule()
    def all_statuses_are_written(self) -> None:
        for name in self.world.unwritten:
            self.world.write(name)
        self.seen()

    @precondition(lambda self: self.world.unwritten)
    @rule(name=names)
    def a_status_is_refused(self, name: str) -> None:
        if name in self.world.unwritten:
            self.world.write(name, refuse=True)

    @precondition(lambda self: self.world.unsettled)
    @rule()
    def publishes_are_confirmed(self) -> None:
        for message in self.world.unsettled:
            self.world.settle(message, Settled.CONFIRMED, arrived=True)

    @precondition(lambda self: self.world.unsettled)
    @rule(
        which=st.integers(0, 2),
        verdict=st.sampled_from([Settled.UNKNOWN, Settled.RETURNED]),
        arrived=st.booleans(),
    )
    def a_publish_is_not_confirmed(self, which: int, verdict: Settled, arrived: bool) -> None:
        unsettled = self.world.unsettled
        message = unsettled[which % len(unsettled)]
        returned = verdict is Settled.RETURNED and message.arrived is None
        self.world.settle(
            message,
            Settled.RETURNED if returned else Settled.UNKNOWN,
            arrived=arrived and not returned,
        )

    @rule(
        arrived=st.booleans(),
        closed_first=st.booleans(),
        stays=st.sampled_from([False, False, True]),
    )
    def broker_goes_or_comes(self, arrived: bool, closed_first: bool, stays: bool) -> None:
        if self.world.broker_up:
            self.world.lose_broker(arrived=arrived, closed_first=closed_first)
        if not stays:
            self.world.find_broker()

    # Workers.

    @precondition(lambda self: self.world.messages)
    @rule(
        name=names,
        age=ages,
        kind=st.sampled_from(
            [
                EventKind.STARTED,
                EventKind.SUCCEEDED,
                EventKind.FAILED,
                EventKind.RELEASED,
                EventKind.CANCELLED,
            ]
        ),
        error=st.sampled_from(["Boom", "Boom", "Final", "UnknownHandler"]),
    )
    def worker_tells(self, name: str, age: int, kind: EventKind, error: str) -> None:
        message = self.world.latest(name, age)
        if message is not None:
            why = EventError(type=error, message="it broke", retryable=error != "Final")
            self.world.report(message, kind, why if kind is EventKind.FAILED else None)

    @precondition(lambda self: self.world.messages)
    @rule(name=names)
    def worker_fails(self, name: str) -> None:
        self.worker_tells(name, 0, EventKind.FAILED, "Boom")

    @precondition(lambda self: self.world.messages)
    @rule(name=names)
    def worker_succeeds(self, name: str) -> None:
        self.worker_tells(name, 0, EventKind.SUCCEEDED, "")

    @precondition(lambda self: self.world.messages)
    @rule(name=names, age=ages)
    def broker_gives_up(self, name: str, age: int) -> None:
        message = self.world.latest(name, age)
        if message is not None:
            self.world.give_up(message)

    @precondition(lambda self: self.world.letters)
    @rule(age=st.integers(0, 3))
    def worker_tells_again(self, age: int) -> None:
        letters = self.world.letters
        self.world.send_again(letters[-1 - age % len(letters)])

    @precondition(lambda self: self.world.messages)
    @rule(name=names, token=st.sampled_from(["k.00", "nobody.00"]))
    def worker_lies(self, name: str, token: str) -> None:
        message = self.world.latest(name, 0)
        if message is not None:
            self.world.report(message, EventKind.SUCCEEDED, token=token)

    # Time, and the operator.

    @rule(seconds=st.sampled_from([0.2, 0.6, 1.1, 2.1, 6.0]))
    def time_passes(self, seconds: float) -> None:
        self.world.loop.pass_time(seconds)
        self.world.feed_lags, self.world.engine.leads = False, True
        self.seen()

    @rule()
    def much_time_passes(self) -> None:
        self.time_passes(TIMEOUT + 11.0)

    @precondition(lambda self: self.world.messages)
    @rule(ready=st.sampled_from([0, 0, 1, 9]), reporting=st.sampled_from([True, True, False]))
    def broker_counts(self, ready: int, reporting: bool) -> None:
        self.world.count_ready(ready, reporting=reporting)

    @precondition(lambda self: self.world.messages)
    @rule()
    def broker_has_lost_the_queue(self) -> None:
        if self.world.broker_up and self.world.queue is not None:
            self.world.loop.do(self.world.engine.dispatcher.republish_all)

    @rule()
    def lease_is_uncertain(self) -> None:
        """Until some time has passed: its renewal was only slow."""
        self.world.engine.leads = False

    @rule(written=st.booleans(), arrived=st.booleans())
    def operator_is_killed(self, written: bool, arrived: bool) -> None:
        self.world.restart(written=written, arrived=arrived)

    @invariant()
    def all_is_well(self) -> None:
        self.world.laws.check()

    # The end.

    def teardown(self) -> None:
        try:
            if sys.exc_info()[0] is None:
                self.put_everything_right()
        finally:
            self.world.engine.publisher.closed.cancel()
            self.world.loop.die()
            logging.disable(logging.NOTSET)

    def put_everything_right(self) -> None:
        world = self.world
        world.feed_lags, world.engine.leads = False, True
        world.put_config_map({"k": '{"from": "c"}'})
        if not world.broker_up:
            world.find_broker()
        world.put_queue(stop_policy=StopPolicy.NONE)
        for name in NAMES:
            self.suspend_or_resume(name, False)
        self.live_on()
        stuck = self.stuck()
        for name in NAMES:
            assert not world.is_unfinished(name) or name in stuck, f"{name} never ends"
        for name in stuck:
            self.cancel(name)
        self.live_on()
        self.nothing_is_left()

    def live_on(self) -> None:
        """Let workers do as they should, and everything be written, for as long as it takes."""
        world = self.world
        some_time = [0.1, 1.0, 6.0] * 10
        for seconds in (*some_time, UNKNOWN_TIMEOUT + 11.0, *some_time, TIMEOUT + 11.0, 0.1):
            world.feed()
            self.publishes_are_confirmed()
            for message in world.messages:
                if message.arrived and not message.answered:
                    world.report(message, self.answer(message.content.token))
            self.all_statuses_are_written()
            world.count_ready(0)
            world.loop.pass_time(seconds)
            world.laws.check()

    def answer(self, token: str) -> EventKind:
        orders = {one.kind for one in self.world.engine.publisher.orders if one.token == token}
        if CommandKind.CANCEL in orders:
            return EventKind.CANCELLED
        return EventKind.RELEASED if CommandKind.RELEASE in orders else EventKind.SUCCEEDED

    def stuck(self) -> set[str]:
        """Return the Tasks that wait for one nobody created."""
        stuck: set[str] = set()
        while True:
            more = {
                name
                for name in NAMES
                if self.world.is_unfinished(name)
                and any(
                    need not in self.world.tasks or need in stuck
                    for need in self.world.tasks[name]["spec"].get("dependsOn", ())
                )
            }
            if more <= stuck:
                return stuck
            stuck |= more

    def nothing_is_left(self) -> None:
        world, engine = self.world, self.world.engine
        assert not engine.entries, f"still held: {sorted(engine.entries)}"
        assert not [one for one in world.letters if not one.acknowledged], "an outcome is left"
        assert engine.dispatcher.empty, vars(engine.dispatcher)
        assert not any(vars(engine.dispatcher._keys).values()), "a key is left"
        assert not any(vars(engine.tasks.dependencies._graph).values()), "a dependency is left"
        assert not engine.tasks._leaving
        assert world.loop.timers() <= 1, "a timer is left"  # of the look-ups of dependencies
        for name, raw in world.tasks.items():
            if raw["status"]["phase"] == "Succeeded":
                told = f"{raw['metadata']['uid']}.{raw['status']['attempts']}"
                assert told in world.events, f"nobody was told of {name}"
        world.drop_queue()
        assert KEY not in engine.tasks._dispatchers


def _settings(lives: int, *, new: bool) -> settings:
    return settings(
        max_examples=lives,
        stateful_step_count=40,
        deadline=None,
        derandomize=not new,
        database=None,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
        phases=[phase for phase in Phase if phase is not Phase.explain],
    )


TestLife = Life.TestCase
TestLife.settings = _settings(200, new=False)


@pytest.mark.long
@pytest.mark.timeout(3600)
class TestManyNewLives(Life.TestCase):  # type: ignore[misc, valid-type]
    """Other lives at each run, ``TASKQUEUE_LIVES`` of them."""

    settings = _settings(int(os.environ.get("TASKQUEUE_LIVES", "3000")), new=True)
