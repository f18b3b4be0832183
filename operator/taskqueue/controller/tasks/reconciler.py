"""Looks at a Task whenever anything about it may have changed, and has done what is due.

What is due is decided by `admission.decide`, from what is true now; the governor knows
only where to ask and whom to tell. It may be asked as often as anybody likes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from taskqueue.controller.tasks import lifecycle
from taskqueue.controller.tasks.admission import AdmissionStep, TaskEnvironment, decide
from taskqueue.controller.tasks.dependency_graph import DependencyState
from taskqueue.controller.tasks.dispatcher import Dispatcher
from taskqueue.controller.tasks.tracked_task import TaskStage, TrackedTask
from taskqueue.controller.tasks.transitions import TaskTransitions
from taskqueue.timestamps import Clock

#: Where a Task is on its way to a worker, or with one.
_GOING = (TaskStage.WAITING, TaskStage.CLAIMING, TaskStage.PUBLISHED)


class TaskReconciler:
    """See the module's contract.

    Args:
        dispatcher_of: the queue's dispatcher of a Task.
        dependencies_of: what is known of a Task's dependencies.
        recorder: writes down what was decided.
        clock: wall time in seconds.
    """

    def __init__(
        self,
        *,
        dispatcher_of: Callable[[TrackedTask], Dispatcher],
        dependencies_of: Callable[[TrackedTask], DependencyState],
        recorder: TaskTransitions,
        clock: Clock,
    ) -> None:
        self._dispatcher_of = dispatcher_of
        self._dependencies_of = dependencies_of
        self._recorder = recorder
        self._clock = clock

    def look(self, entry: TrackedTask) -> None:
        """Do what is due about a Task."""
        if entry.stage is TaskStage.FINISHED:
            return
        dispatcher, now = self._dispatcher_of(entry), self._clock()
        around = TaskEnvironment(
            policy=dispatcher.policy(entry) if dispatcher.config is not None else None,
            dependencies=self._dependencies_of(entry),
            payload_problem=entry.payload_problem,
            hold_until=entry.hold_until,
        )
        decision = decide(entry.task, entry.status, around, dispatched=entry.dispatched, now=now)
        self._set_alarm(entry, decision.look_again, now)
        if decision.step is AdmissionStep.END:
            self._recorder.end(entry, decision.status)
        elif decision.status.epoch > entry.status.epoch:
            self._recorder.take_back(entry, decision.status)
        elif decision.step is AdmissionStep.HOLD:
            status = decision.status
            if entry.stage is TaskStage.CLAIMING:
                status = lifecycle.unclaimed(status)  # nothing of it was published yet
            self._recorder.change(entry, status)
            dispatcher.hold(entry)
        else:
            if decision.status is not entry.status:
                self._recorder.change(entry, decision.status)
            if entry.stage not in _GOING:
                dispatcher.submit(entry)

    def _set_alarm(self, entry: TrackedTask, at: float | None, now: float) -> None:
        if entry.alarm is not None:
            entry.alarm.cancel()
            entry.alarm = None
        if at is not None:
            loop = asyncio.get_running_loop()
            entry.alarm = loop.call_later(max(at - now, 0.0), self._alarmed, entry)

    def _alarmed(self, entry: TrackedTask) -> None:
        entry.alarm = None
        self.look(entry)
