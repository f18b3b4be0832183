"""The executions that hold a worker's slots, and the timers of their runs.

A slot is taken from the start of an execution until the executor reports its end, even when the
outcome (a time-out, a release) was published before.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from taskqueue.worker import run_effects as effects
from taskqueue.worker.deadlines import Deadlines
from taskqueue.worker.executor import AttemptResult, Execution, Executor
from taskqueue.worker.outcome import failure
from taskqueue.worker.run_effects import Timer
from taskqueue.worker.runs import AttemptRun


class _Unstarted:
    """Stands for an execution that could not be started, until that is reported."""

    progress = None
    killable = False

    def cancel(self) -> None:
        """Do nothing."""

    def kill(self) -> bool:
        """Do nothing."""
        return False


class Slots:
    """Starts, cancels and kills the executions of runs.

    Args:
        executor: runs the attempts.
        loop: everything here is called on it.
        count: executions at once.
        on_busy_changed: called when the first slot is taken, and when none is any more.
        on_ended: called with the id of a run when its slot is free again, and with the result.
        on_attempt_due: called with the id of a run, and whether its execution is killable, when
            its attempt timer is due.
        on_end_due: likewise, for its end timer.

    Attributes:
        executions: by the ids of their runs, in the order they started.
        count: see above.
    """

    def __init__(
        self,
        executor: Executor,
        loop: asyncio.AbstractEventLoop,
        count: int,
        *,
        on_busy_changed: Callable[[], None],
        on_ended: Callable[[int, AttemptResult], None],
        on_attempt_due: Callable[[int, bool], None],
        on_end_due: Callable[[int, bool], None],
    ) -> None:
        self._executor = executor
        self._loop = loop
        self._on_busy_changed = on_busy_changed
        self._on_ended = on_ended
        self._on_attempt_due = on_attempt_due
        self._on_end_due = on_end_due
        self._attempt_timers: Deadlines[int] = Deadlines(loop, self._on_attempt_timer)
        self._timers: Mapping[Timer, Deadlines[int]] = {
            Timer.ATTEMPT: self._attempt_timers,
            Timer.END: Deadlines(loop, self._on_end_timer),
        }
        self.executions: dict[int, Execution] = {}
        self.count = count

    def start(self, run_id: int, run: AttemptRun, effect: effects.StartExecution) -> None:
        """Start an execution; one that cannot be started has failed."""
        done = partial(self._free, run_id)
        try:
            execution = self._executor.start(run.attempt, done)
        except Exception as error:  # no more threads or processes, for one
            execution = _Unstarted()
            result = failure("ChildDied", f"it cannot be started: {error}", 0.0)
            self._loop.call_soon(done, result)
        self.executions[run_id] = execution
        self._attempt_timers.set(run_id, effect.timer_at)
        if len(self.executions) == 1:
            self._on_busy_changed()

    def cancel(self, run_id: int, _: Any, __: effects.CancelExecution) -> None:
        """Ask an execution to end."""
        self.executions[run_id].cancel()

    def kill(self, run_id: int, _: Any, __: effects.KillExecution) -> None:
        """End an execution by force."""
        self.executions[run_id].kill()

    def set_timer(self, run_id: int, _: Any, effect: effects.SetTimer) -> None:
        """Set or move a timer."""
        self._timers[effect.timer].set(run_id, effect.at)

    def drop_timer(self, run_id: int, _: Any, effect: effects.DropTimer) -> None:
        """Remove a timer."""
        self._timers[effect.timer].drop(run_id)

    def close_attempt_timers(self) -> None:
        """Remove the attempt timers of all runs."""
        self._attempt_timers.close()

    def _free(self, run_id: int, result: AttemptResult) -> None:
        del self.executions[run_id]
        self._attempt_timers.drop(run_id)
        self._on_ended(run_id, result)
        if not self.executions:
            self._on_busy_changed()

    def _on_attempt_timer(self, run_id: int) -> None:
        self._on_attempt_due(run_id, self.executions[run_id].killable)

    def _on_end_timer(self, run_id: int) -> None:
        self._on_end_due(run_id, self.executions[run_id].killable)
