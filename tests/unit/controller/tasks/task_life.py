"""Random lives of one Task: what may happen around it, in any order.

`tests.unit.controller.tasks.task_record` checks what the machine does. In the end everything is
repaired, and the Task must end with every report acknowledged.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from taskqueue.controller.tasks import events
from taskqueue.controller.tasks.dependency_graph import DependencyState
from taskqueue.controller.tasks.events import Confirmation
from taskqueue.controller.tasks.tracked_task import TaskStage
from taskqueue.limits import SNOOZES
from taskqueue.model import task as model
from taskqueue.model.command import CommandKind
from taskqueue.model.flow import OnConflict
from taskqueue.model.task import AttemptRecord, PolicyOverrides, TaskSpec, TaskState
from tests.unit.controller.tasks.task_model import TaskModel
from tests.unit.controller.tasks.task_record import ENDS, KEY, POLICY, START, TIMEOUT, Copy

PLAIN = TaskSpec(queue="q", handler="h")
KEYED = replace(PLAIN, concurrency_key=KEY)
WAITING = DependencyState(waiting=("other",))
_FAILED_ONCE = TaskState(
    phase=model.Phase.RETRYING,
    reason="Boom",
    attempts=1,
    history=(AttemptRecord(1, "Failed", START - 2, START - 1, reason="Boom"),),
    next_attempt_time=START + 4,
)
_SNOOZED = TaskState(
    phase=model.Phase.SCHEDULED,
    reason="Snoozed",
    attempts=1,
    epoch=1,
    snoozes=SNOOZES,
    next_attempt_time=START + 4,
)
_RUNNING = TaskState(phase=model.Phase.RUNNING, attempts=1, epoch=1, worker="pod-0")

#: How the informer may show a Task first.
STARTS: dict[str, Callable[[], TaskModel]] = {
    "plain": lambda: TaskModel.of(PLAIN),
    "keyed": lambda: TaskModel.of(KEYED),
    "suspended": lambda: TaskModel.of(replace(KEYED, suspend=True)),
    "dependent": lambda: TaskModel.of(replace(PLAIN, depends_on=("o",)), dependencies=WAITING),
    "scheduled": lambda: TaskModel.of(replace(PLAIN, start_after=START + 3)),
    "with a deadline": lambda: TaskModel.of(
        replace(KEYED, overrides=PolicyOverrides(active_deadline_seconds=40))
    ),
    "with a payload to merge": lambda: TaskModel.of(
        replace(PLAIN, payload_from=(model.PayloadSource("c", "k"),)), payload_error="no c"
    ),
    "claimed before": lambda: TaskModel.of(
        KEYED, TaskState(concurrency_key=KEY, epoch=2), copies=[Copy(1, 2, True, is_settled=True)]
    ),
    "claimed before, and never published": lambda: TaskModel.of(
        KEYED, TaskState(concurrency_key=KEY)
    ),
    "retrying": lambda: TaskModel.of(PLAIN, _FAILED_ONCE),
    "snoozed": lambda: TaskModel.of(PLAIN, _SNOOZED),
    "running": lambda: TaskModel.of(PLAIN, _RUNNING, copies=[Copy(1, 1, False, is_settled=True)]),
}

EDITS: dict[str, dict[str, bool | int | str]] = {
    "suspend": {"suspend": True},
    "resume": {"suspend": False},
    "resume, as most do": {"suspend": False},
    "cancel": {"cancel": True},
    "prioritize": {"priority": 7},
    "set the key": {"concurrency_key": KEY},
    "remove the key": {"concurrency_key": ""},
}
#: What a good worker reports after a command, or none.
ANSWERS = {None: "succeeded", CommandKind.CANCEL: "stopped", CommandKind.RELEASE: "released"}

losses = st.sampled_from(["", "", "", "broker", "lease"])
settlements = st.sampled_from([Confirmation.CONFIRMED, Confirmation.CONFIRMED, None, *Confirmation])
#: Of an attempt whose TaskQueue is not there to say.
UNKNOWN_TIMEOUT = model.Policy().attempt_timeout_seconds
#: Tried at every run, the same ones.
LIVES = 300

times = st.sampled_from([0.3, 1.1, 2.1, 6.0, TIMEOUT + 11.0])


class Life(RuleBasedStateMachine):
    """A state machine whose rules are what users, workers, broker and API server do."""

    model: TaskModel

    @initialize(
        start=st.sampled_from([*sorted(STARTS), "keyed", "keyed"]), settled=settlements, lost=losses
    )
    def begin(self, start: str, settled: Confirmation | None, lost: str) -> None:
        """Begin with work under way: a life of a Task that waits teaches little."""
        self.model = STARTS[start]()
        self.model.send(events.Seen())
        self.it_is_dispatched(settled, lost)

    # Users, and what surrounds the Task.

    @rule(edit=st.sampled_from(sorted(EDITS)), sure=st.integers(0, 3), lags=st.booleans())
    def user_edits(self, edit: str, sure: int, lags: bool) -> None:
        if edit == "set the key" and not all(copy.keyed for copy in self.model.copies):
            return  # no key holds back what was published without one
        if edit != "cancel" or sure == 0:
            self.model.edit(lags=lags, **EDITS[edit])

    @precondition(lambda self: self.model.is_tracked and not self.model.is_deleted)
    @rule(sure=st.integers(0, 15), kept=st.booleans())
    def user_deletes(self, sure: int, kept: bool) -> None:
        """A finalizer may keep the object for a while."""
        if sure == 0 and kept:
            self.model.begin_deletion()
            self.model.show()
        elif sure == 0:
            self.model.is_deleted = True
            self.model.unseen.append(events.LeftInformer())
            self.model.show()

    @precondition(lambda self: self.model.unseen)
    @rule()
    def informer_catches_up(self) -> None:
        self.model.show()

    @rule(
        what=st.sampled_from(["queue", "broker", "lease", "key"]),
        there=st.sampled_from([True, True, False]),
    )
    def something_goes_or_comes(self, what: str, there: bool) -> None:
        model = self.model
        match what:
            case "queue":
                model.policy = POLICY if there else None
                model.send(events.EnvironmentChanged())
            case "broker":
                model.can_publish = there
            case "lease":
                model.leads = there
            case "key" if there or not (model.has_key or model.holds):
                model.another_has_key = not there
                model.free_key()

    @precondition(lambda self: self.model.tracked.is_handler_missing)
    @rule()
    def worker_registers_handler(self) -> None:
        self.model.register_handler()

    @precondition(lambda self: self.model.dependencies is WAITING)
    @rule(fails=st.sampled_from([False, False, False, True]))
    def dependency_ends(self, fails: bool) -> None:
        self.model.dependencies = DependencyState(
            failed=("o", "failed") if fails else None,
            completed=None if fails else self.model.now,
        )
        self.model.send(events.EnvironmentChanged())

    @precondition(lambda self: self.model.spec.payload_from)
    @rule(error=st.sampled_from(["no c", None, None]), digest=st.sampled_from(["d1", "d2"]))
    def config_map_changes(self, error: str | None, digest: str) -> None:
        """What is published has been read a moment ago, or it is not published."""
        if self.model.stage in (TaskStage.HELD, TaskStage.WAITING):
            self.model.payload_error, self.model.payload_digest = error, digest
            self.model.send(events.EnvironmentChanged())

    @precondition(lambda self: self.model.is_queued and self.model.spec.payload_from)
    @rule(sure=st.integers(0, 3))
    def payload_is_refused(self, sure: int) -> None:
        if sure == 0:
            self.model.send(events.PayloadRefused("too large"))

    # Dispatching.

    @precondition(lambda self: self.model.is_queued)
    @rule(sure=st.integers(0, 1))
    def place_is_missing(self, sure: int) -> None:
        if sure == 0:
            self.model.send(events.PlaceMissing())

    @rule(sure=st.integers(0, 15), policy=st.sampled_from(OnConflict))
    def conflict_is_lost(self, sure: int, policy: OnConflict) -> None:
        if sure == 0 and self.model.is_tracked:
            self.model.send(events.ConflictLost("other", policy))

    @precondition(lambda self: self.model.is_queued and self.model.environment.can_publish)
    @rule()
    def turn_comes(self) -> None:
        self.model.give_turn()

    @precondition(lambda self: self.unsettled())
    @rule(
        confirmation=st.sampled_from([Confirmation.CONFIRMED, *Confirmation]),
        arrived=st.booleans(),
    )
    def publish_is_settled(self, confirmation: Confirmation, arrived: bool) -> None:
        copy = self.unsettled()[-1]
        if copy.reported:  # so it has arrived
            arrived = True
            if confirmation is Confirmation.RETURNED:
                confirmation = Confirmation.UNKNOWN
        arrived |= confirmation is Confirmation.CONFIRMED
        self.model.settle(copy, confirmation, arrived=arrived)

    @precondition(lambda self: self.model.stage is TaskStage.PUBLISHED)
    @rule(sure=st.integers(0, 7))
    def broker_loses_the_queue(self, sure: int) -> None:
        if sure == 0:
            self.model.send(events.MessagesLost())

    @rule(settled=settlements, lost=losses)
    def it_is_dispatched(self, settled: Confirmation | None, lost: str) -> None:
        """If it is its turn; the broker or the lease may be lost while its claim is written."""
        if self.model.is_queued and self.model.environment.can_publish:
            self.model.give_turn()
            self.something_goes_or_comes(lost, False)
            self.everything_is_written()
            if settled is not None:
                while self.unsettled():
                    self.publish_is_settled(settled, True)

    # Workers.

    @precondition(lambda self: self.model.copies)
    @rule(
        age=st.sampled_from([0, 0, 0, 1, 2]),
        kind=st.sampled_from(["started", "checkpoint", "failed", *ENDS]),
        deliveries=st.sampled_from([0, 0, 1, 2]),
        retry_after=st.sampled_from([None, None, 7.0]),
        then=st.sampled_from(["", "", "written", "edited and written", "dispatched again"]),
    )
    def worker_reports(
        self, age: int, kind: str, deliveries: int, retry_after: float | None, then: str
    ) -> None:
        copy = self.model.copies[max(len(self.model.copies) - 1 - age, 0)]
        if not copy.is_live and not copy.reported:
            return  # it never arrived, or was given up
        if copy.keyed and copy.reported:
            # The same report again: nothing of it runs any more.
            if kind in ("started", "checkpoint"):
                return
            kind = copy.reported
        self.model.report(copy, kind, retry_after=retry_after, deliveries=deliveries)
        if then == "edited and written":
            self.model.edit(priority=7, lags=True)
        if then:
            self.everything_is_written()
        if then == "dispatched again":
            self.time_passes(7.0)
            if self.model.tracked.is_handler_missing:
                self.worker_registers_handler()  # the pause may have grown beyond that
            self.it_is_dispatched(Confirmation.CONFIRMED, "")

    @precondition(lambda self: self.model.copies)
    @rule(
        heard=st.sampled_from(["", "started", "heartbeat"]),
        deliveries=st.sampled_from([1, 1, 2]),
        runs_on=st.booleans(),
        then=st.sampled_from(["", "", "missed", "heard", "done", "connection", "loses the queue"]),
    )
    def message_is_delivered_to_another_worker(
        self, heard: str, deliveries: int, runs_on: bool, then: str
    ) -> None:
        """The first one lives and runs the attempt, or is dead."""
        copy = self.model.copies[-1]
        if copy.keyed or copy.reported or not copy.is_live:
            return
        if heard == "started":
            self.model.report(copy, "started")
        elif heard:
            self.model.report_heartbeat()
        self.model.report(copy, "released", deliveries=deliveries, worker="pod-2", runs_on=runs_on)
        match then:
            case "missed":
                self.model.miss()
            case "heard":
                self.model.report_heartbeat()
            case "done" if runs_on:
                self.model.report(copy, "succeeded")
            case "connection":
                self.model.resume_reports()
            case "loses the queue" if self.model.stage is TaskStage.PUBLISHED:
                self.model.send(events.MessagesLost())

    @rule(percent=st.sampled_from([None, 10, 90]))
    def worker_sends_a_heartbeat(self, percent: int | None) -> None:
        self.model.report_heartbeat(percent)

    @precondition(lambda self: self.model.is_overdue)
    @rule()
    def attempt_is_unreported(self) -> None:
        self.model.give_up_on_worker()

    # The API server, and time.

    @precondition(lambda self: self.model.puts and not self.model.in_flight)
    @rule()
    def write_begins(self) -> None:
        self.model.begin_write()

    @precondition(lambda self: self.model.in_flight)
    @rule(code=st.sampled_from([200, 200, 200, 422]), shown_first=st.booleans())
    def write_ends(self, code: int, shown_first: bool) -> None:
        self.model.end_write(code, shown_first=shown_first)

    @precondition(lambda self: self.model.puts or self.model.in_flight)
    @rule(times=st.integers(1, 3), again=st.booleans())
    def status_is_refused(self, times: int, again: bool) -> None:
        """As it is, in short, and perhaps as bare as can be, also when the object was read."""
        for _ in range(times):
            self.model.begin_write()
            self.model.end_write(422)
        if again:
            self.time_passes(6.0)
            self.model.end_reads()
            self.status_is_refused(times, False)

    @precondition(lambda self: self.model.puts or self.model.in_flight)
    @rule()
    def everything_is_written(self) -> None:
        for _ in range(3):
            self.model.end_write()
            self.model.begin_write()

    @precondition(lambda self: self.model.copies and self.model.is_tracked)
    @rule(attempts=st.integers(0, 1), epochs=st.integers(0, 2), sure=st.integers(0, 3))
    def late_writer_raises_the_numbers(self, attempts: int, epochs: int, sure: int) -> None:
        """A former leader, of an attempt that it has published."""
        if sure == 0:
            self.model.raise_numbers(attempts=attempts, epochs=epochs)

    @precondition(lambda self: self.model.announcing is not None)
    @rule()
    def completion_is_confirmed(self) -> None:
        self.model.confirm_completion()

    @precondition(lambda self: self.model.reads)
    @rule()
    def reads_end(self) -> None:
        self.model.end_reads()

    @rule(seconds=st.sampled_from([-400.0, -3.0, 3.0, 400.0]), sure=st.integers(0, 3))
    def wall_clock_is_set(self, seconds: float, sure: int) -> None:
        """Nothing that waits comes earlier or later for it."""
        if sure == 0:
            self.model.step += seconds

    @rule(seconds=times)
    def time_passes(self, seconds: float) -> None:
        self.model.pass_time(seconds)
        self.model.can_publish = self.model.leads = True

    def unsettled(self) -> list[Copy]:
        return [copy for copy in self.model.copies if not copy.is_settled]

    @invariant()
    def promises_are_kept(self) -> None:
        if hasattr(self, "model"):
            self.model.check()

    # The end.

    def teardown(self) -> None:
        if sys.exc_info()[0] is None and hasattr(self, "model"):
            self.repair_everything()

    def repair_everything(self) -> None:
        model = self.model
        for what in ("queue", "broker", "lease", "key"):
            self.something_goes_or_comes(what, True)
        model.show()
        model.edit(suspend=False)
        if model.dependencies is WAITING:
            self.dependency_ends(False)
        if model.payload_error is not None:
            self.config_map_changes(None, "d1")
        some_time = (0.1, 2.1, 6.0, 0.1, 0.1, TIMEOUT + 11.0) * 4
        for seconds in (*some_time, UNKNOWN_TIMEOUT + 11.0, *some_time):
            if not model.is_tracked and model.announcing is None:
                break
            self.live_on(seconds)
        self.everything_has_ended()

    def live_on(self, seconds: float) -> None:
        """Let everybody do as they should for a while."""
        model = self.model
        for copy in self.unsettled():
            model.settle(copy, Confirmation.CONFIRMED, arrived=True)
        if model.is_overdue:
            model.give_up_on_worker()
        commands = {(one.attempt, one.epoch): one.kind for one in model.commands}
        for copy in list(model.copies):
            if copy.is_live:
                model.report(copy, ANSWERS[commands.get(copy.token)])
        for _ in range(3):
            model.begin_write()
            model.end_write()
        model.pass_time(max(seconds, model.timers.get(events.Timer.READ, 0.0) - model.now))
        model.end_reads()
        if model.is_queued and model.is_tracked:
            model.give_turn()
        if model.announcing is not None:
            model.confirm_completion()
        model.check()

    def everything_has_ended(self) -> None:
        model = self.model
        assert not model.is_tracked, f"it never ends: {model.tracked}"
        left = {one: model.inbox[one] for one in model.inbox.keys() - model.acknowledged}
        assert not left, f"never acknowledged: {left}"
        assert model.ends == 1
        if model.final is not None and model.final == model.tracked.status:
            # Deleted by hand before its end was written with the last generation.
            assert model.ttl_started == 1 or model.is_deleted, "nothing deletes it"
        assert model.stage is TaskStage.FINISHED


def life_settings(lives: int, *, new: bool = False, shrinks: bool = True) -> settings:
    return settings(
        max_examples=lives,
        stateful_step_count=40,
        deadline=None,
        derandomize=not new,
        database=None,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, *([Phase.shrink] if shrinks else [])],
    )
