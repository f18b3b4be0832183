"""Random lives of some Tasks: users, workers, broker and API server act in any order.

The operator's parts are real, `model` is what surrounds them, and `invariants` checks what must
always hold. In the end everything is repaired, and every Task must end.

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
from taskqueue.contract.outcome import EventError, EventKind
from taskqueue.model.command import CommandKind
from taskqueue.model.flow import ConcurrencyPolicy
from taskqueue.model.queue import StopPolicy
from taskqueue.model.task import Policy
from taskqueue.timestamps import to_rfc3339
from tests.unit.controller.fakes import EPOCH, KEY
from tests.unit.controller.invariants import TIMEOUT
from tests.unit.controller.model import Model

NAMES = ("a", "b", "c", "d")
names = st.sampled_from(NAMES)
#: Which of a Task's messages: mostly the latest.
ages = st.sampled_from([0, 0, 0, 0, 1, 2])
#: Of the attempts of a Task whose TaskQueue is not there to say.
UNKNOWN_TIMEOUT = Policy().attempt_timeout_seconds


class Life(RuleBasedStateMachine):
    """A state machine whose rules are the actions of users, workers, broker and API server."""

    def __init__(self) -> None:
        super().__init__()
        logging.disable()  # every life is full of warnings
        self.model = Model()

    def seen(self) -> None:
        if not self.model.feed_lags:
            self.model.feed()

    @initialize(keys=st.lists(st.sampled_from(["", "k", "k"]), min_size=1, max_size=4))
    def begin(self, keys: list[str]) -> None:
        """Begin with work under way: a life of no Tasks teaches little."""
        for name, key in zip(NAMES, keys, strict=False):
            self.create(name, key, [], False, 0, None, None, False, False)
        self.all_statuses_are_written()

    # Users.

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
        if name in self.model.tasks:
            self.model.delete(name)  # created again
        spec: dict[str, object] = {"concurrencyKey": key, "priority": priority, "suspend": suspend}
        if depends:
            spec["dependsOn"] = [need for need in needs if need != name]
        if start is not None:
            spec["startAfter"] = to_rfc3339(EPOCH + self.model.loop.time() + start)
        if deadline is not None:
            spec["activeDeadlineSeconds"] = deadline
        if payload:
            spec["payloadFrom"] = [{"configMapKeyRef": {"name": "c", "key": "k"}}]
        self.model.create(name, **spec)
        self.seen()

    @rule(name=names, keyed=st.booleans())
    def create_plain(self, name: str, keyed: bool) -> None:
        if not self.model.is_unfinished(name):
            self.create(name, "k" if keyed else "", [], False, 0, None, None, False, False)

    @precondition(lambda self: self.model.tasks)
    @rule(name=names, suspend=st.booleans())
    def suspend_or_resume(self, name: str, suspend: bool) -> None:
        if self.model.is_unfinished(name):
            self.model.edit(name, suspend=suspend)
            self.seen()

    @precondition(lambda self: self.model.tasks)
    @rule(name=names)
    def cancel(self, name: str) -> None:
        if self.model.is_unfinished(name):
            self.model.edit(name, cancel=True)
            self.seen()

    @precondition(lambda self: self.model.tasks)
    @rule(name=names, priority=st.integers(-1, 1))
    def prioritize(self, name: str, priority: int) -> None:
        if self.model.is_unfinished(name):
            self.model.edit(name, priority=priority)
            self.seen()

    @precondition(lambda self: self.model.tasks)
    @rule(name=names, needs=st.lists(names, max_size=2, unique=True))
    def depend_on_others(self, name: str, needs: list[str]) -> None:
        if self.model.is_unfinished(name):
            self.model.edit(name, dependsOn=[need for need in needs if need != name])
            self.seen()

    @precondition(lambda self: self.model.tasks)
    @rule(name=names)
    def delete(self, name: str) -> None:
        if name in self.model.tasks:
            self.model.delete(name)
            self.seen()

    @rule(text=st.sampled_from([None, "no JSON", '{"from": "c"}', '{"from": "c"}']))
    def write_config_map(self, text: str | None) -> None:
        self.model.put_config_map(None if text is None else {"k": text})

    @precondition(lambda self: self.model.queue is not None)
    @rule(stop=st.sampled_from([*StopPolicy, StopPolicy.NONE]))
    def hold_or_let_go(self, stop: StopPolicy) -> None:
        if self.model.queue is not None:
            self.model.put_queue(stop_policy=stop)

    @precondition(lambda self: self.model.queue is not None)
    @rule(limit=st.sampled_from([1, 2]))
    def limit_keys(self, limit: int) -> None:
        if self.model.queue is not None:
            self.model.put_queue(keys=ConcurrencyPolicy(per_key=limit))

    @rule(stays=st.sampled_from([False, False, True]))
    def delete_or_create_the_queue(self, stays: bool) -> None:
        if self.model.queue is not None:
            self.model.drop_queue()
        if not stays:
            self.model.put_queue()

    # Transport.

    @rule()
    def feed_lags(self) -> None:
        """Until some time has passed."""
        self.model.feed_lags = True

    @precondition(lambda self: self.model.unwritten)
    @rule(name=names, first=st.sampled_from([1, 99]), late=st.booleans())
    def a_status_is_written(self, name: str, first: int, late: bool) -> None:
        if name in self.model.unwritten:
            self.model.write(name, first=first, late=late)
            self.seen()

    @precondition(lambda self: self.model.unwritten)
    @rule()
    def all_statuses_are_written(self) -> None:
        for name in self.model.unwritten:
            self.model.write(name)
        self.seen()

    @precondition(lambda self: self.model.unwritten)
    @rule(name=names)
    def a_status_is_refused(self, name: str) -> None:
        if name in self.model.unwritten:
            self.model.write(name, refuse=True)

    @precondition(lambda self: self.model.unsettled)
    @rule()
    def publishes_are_confirmed(self) -> None:
        for message in self.model.unsettled:
            self.model.settle(message, Settled.CONFIRMED, arrived=True)

    @precondition(lambda self: self.model.unsettled)
    @rule(
        which=st.integers(0, 2),
        verdict=st.sampled_from([Settled.UNKNOWN, Settled.RETURNED]),
        arrived=st.booleans(),
    )
    def a_publish_is_not_confirmed(self, which: int, verdict: Settled, arrived: bool) -> None:
        unsettled = self.model.unsettled
        message = unsettled[which % len(unsettled)]
        returned = verdict is Settled.RETURNED and message.arrived is None
        self.model.settle(
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
        if self.model.broker_up:
            self.model.lose_broker(arrived=arrived, closed_first=closed_first)
        if not stays:
            self.model.find_broker()

    # Workers.

    @precondition(lambda self: self.model.messages)
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
                EventKind.SNOOZED,
                EventKind.CHECKPOINT,
                EventKind.CHECKPOINT,
            ]
        ),
        error=st.sampled_from(["Boom", "Boom", "Final", "UnknownHandler"]),
    )
    def worker_reports(self, name: str, age: int, kind: EventKind, error: str) -> None:
        message = self.model.latest(name, age)
        if message is not None:
            why = EventError(
                type=error,
                message="it broke",
                retryable=error != "Final",
                reserved=error == "UnknownHandler",
            )
            self.model.report(message, kind, why if kind is EventKind.FAILED else None)

    @precondition(lambda self: self.model.messages)
    @rule(name=names)
    def worker_fails(self, name: str) -> None:
        self.worker_reports(name, 0, EventKind.FAILED, "Boom")

    @precondition(lambda self: self.model.messages)
    @rule(name=names)
    def worker_succeeds(self, name: str) -> None:
        self.worker_reports(name, 0, EventKind.SUCCEEDED, "")

    @precondition(lambda self: self.model.messages)
    @rule(name=names, age=ages)
    def broker_gives_up(self, name: str, age: int) -> None:
        message = self.model.latest(name, age)
        if message is not None:
            self.model.give_up(message)

    @precondition(lambda self: self.model.inbox)
    @rule(age=st.integers(0, 3))
    def worker_reports_again(self, age: int) -> None:
        inbox = self.model.inbox
        self.model.send_again(inbox[-1 - age % len(inbox)])

    @precondition(lambda self: self.model.messages)
    @rule(name=names, token=st.sampled_from(["k.00", "nobody.00"]))
    def worker_lies(self, name: str, token: str) -> None:
        message = self.model.latest(name, 0)
        if message is not None:
            self.model.report(message, EventKind.SUCCEEDED, token=token)

    # Time, and the operator.

    @rule(seconds=st.sampled_from([0.2, 0.6, 1.1, 2.1, 6.0]))
    def time_passes(self, seconds: float) -> None:
        self.model.loop.pass_time(seconds)
        self.model.feed_lags, self.model.harness.leads = False, True
        self.seen()

    @rule()
    def much_time_passes(self) -> None:
        self.time_passes(TIMEOUT + 11.0)

    @precondition(lambda self: self.model.messages)
    @rule(ready=st.sampled_from([0, 0, 1, 9]), reporting=st.sampled_from([True, True, False]))
    def broker_counts(self, ready: int, reporting: bool) -> None:
        self.model.count_ready(ready, reporting=reporting)

    @precondition(lambda self: self.model.messages)
    @rule()
    def broker_has_lost_the_queue(self) -> None:
        if self.model.broker_up and self.model.queue is not None:
            self.model.loop.do(self.model.harness.dispatcher.republish_all)

    @rule()
    def lease_is_uncertain(self) -> None:
        """Until some time has passed: its renewal was only slow."""
        self.model.harness.leads = False

    @rule(written=st.booleans(), arrived=st.booleans())
    def operator_is_killed(self, written: bool, arrived: bool) -> None:
        self.model.restart(written=written, arrived=arrived)

    @invariant()
    def all_is_well(self) -> None:
        self.model.invariants.check()

    # The end.

    def teardown(self) -> None:
        try:
            if sys.exc_info()[0] is None:
                self.repair_everything()
        finally:
            self.model.harness.publisher.closed.cancel()
            self.model.loop.die()
            logging.disable(logging.NOTSET)

    def repair_everything(self) -> None:
        model = self.model
        model.feed_lags, model.harness.leads = False, True
        model.put_config_map({"k": '{"from": "c"}'})
        if not model.broker_up:
            model.find_broker()
        model.put_queue(stop_policy=StopPolicy.NONE)
        for name in NAMES:
            self.suspend_or_resume(name, False)
        self.live_on()
        stuck = self.stuck()
        for name in NAMES:
            assert not model.is_unfinished(name) or name in stuck, f"{name} never ends"
        for name in stuck:
            self.cancel(name)
        self.live_on()
        self.nothing_is_left()

    def live_on(self) -> None:
        """Let workers do as they should, and everything be written, for as long as it takes."""
        model = self.model
        some_time = [0.1, 1.0, 6.0] * 10
        for seconds in (*some_time, UNKNOWN_TIMEOUT + 11.0, *some_time, TIMEOUT + 11.0, 0.1):
            model.feed()
            self.publishes_are_confirmed()
            for message in model.messages:
                if message.arrived and not message.answered:
                    model.report(message, self.answer(message.content.token))
            self.all_statuses_are_written()
            model.count_ready(0)
            model.loop.pass_time(seconds)
            model.invariants.check()

    def answer(self, token: str) -> EventKind:
        commands = {one.kind for one in self.model.harness.publisher.commands if one.token == token}
        if CommandKind.CANCEL in commands:
            return EventKind.CANCELLED
        return EventKind.RELEASED if CommandKind.RELEASE in commands else EventKind.SUCCEEDED

    def stuck(self) -> set[str]:
        """Return the Tasks that wait for one nobody created."""
        stuck: set[str] = set()
        while True:
            more = {
                name
                for name in NAMES
                if self.model.is_unfinished(name)
                and any(
                    need not in self.model.tasks or need in stuck
                    for need in self.model.tasks[name]["spec"].get("dependsOn", ())
                )
            }
            if more <= stuck:
                return stuck
            stuck |= more

    def nothing_is_left(self) -> None:
        model, harness = self.model, self.model.harness
        assert not harness.entries, f"still held: {sorted(harness.entries)}"
        assert not [one for one in model.inbox if not one.acknowledged], "an outcome is left"
        assert harness.dispatcher.is_empty, vars(harness.dispatcher)
        assert not any(vars(harness.dispatcher.keys._slots).values()), "a key is left"
        assert not any(vars(harness.tasks.dependencies._graph).values()), "a dependency is left"
        assert not harness.tasks._leaving
        assert model.loop.timers() <= 1, "a timer is left"  # of the look-ups of dependencies
        for name, raw in model.tasks.items():
            if raw["status"]["phase"] == "Succeeded":
                event_id = f"{raw['metadata']['uid']}.{raw['status']['attempts']}"
                assert event_id in model.events, f"no completion event of {name} was published"
        model.drop_queue()
        assert KEY not in harness.tasks._dispatchers


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
