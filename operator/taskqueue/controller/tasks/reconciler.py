"""Reconciles a Task whenever anything about it may have changed.

`admission.decide` makes the decision from the present state; the reconciler collects that state and
carries the decision out. It may be called at any time, as often as needed.
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
    """Decides what to do about a Task, and does it.

    Args:
        dispatcher_of: the queue's dispatcher of a Task.
        dependencies_of: the state of a Task's dependencies.
        transitions: apply the decision and write it.
        clock: wall time in seconds.
    """

    def __init__(
        self,
        *,
        dispatcher_of: Callable[[TrackedTask], Dispatcher],
        dependencies_of: Callable[[TrackedTask], DependencyState],
        transitions: TaskTransitions,
        clock: Clock,
    ) -> None:
        self._dispatcher_of = dispatcher_of
        self._dependencies_of = dependencies_of
        self._transitions = transitions
        self._clock = clock

    def reconcile(self, entry: TrackedTask) -> None:
        """Decide about a Task, and carry the decision out."""
        if entry.stage is TaskStage.FINISHED:
            return
        dispatcher, now = self._dispatcher_of(entry), self._clock()
        environment = TaskEnvironment(
            policy=dispatcher.policy(entry) if dispatcher.config is not None else None,
            dependencies=self._dependencies_of(entry),
            payload_error=entry.payload_error,
            hold_until=entry.hold_until,
        )
        decision = decide(
            entry.task, entry.status, environment, dispatched=entry.dispatched, now=now
        )
        self._set_timer(entry, decision.reconsider_at, now)
        if decision.step is AdmissionStep.END:
            self._transitions.finish(entry, decision.status)
        elif decision.status.epoch > entry.status.epoch:
            self._transitions.recall(entry, decision.status)
        elif decision.step is AdmissionStep.HOLD:
            status = decision.status
            if entry.stage is TaskStage.CLAIMING:
                status = lifecycle.unclaimed(status)  # nothing was published yet
            self._transitions.set_status(entry, status)
            dispatcher.hold(entry)
        else:
            if decision.status is not entry.status:
                self._transitions.set_status(entry, decision.status)
            if entry.stage not in _GOING:
                dispatcher.enqueue(entry)

    def _set_timer(self, entry: TrackedTask, at: float | None, now: float) -> None:
        if entry.reconcile_timer is not None:
            entry.reconcile_timer.cancel()
            entry.reconcile_timer = None
        if at is not None:
            loop = asyncio.get_running_loop()
            entry.reconcile_timer = loop.call_later(max(at - now, 0.0), self._on_timer, entry)

    def _on_timer(self, entry: TrackedTask) -> None:
        entry.reconcile_timer = None
        self.reconcile(entry)
