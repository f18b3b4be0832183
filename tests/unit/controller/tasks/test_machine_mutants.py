"""The random lives of `test_machine` find every one of these mistakes in the machine.

A mutant is a replacement in the text of a module. The text is compiled in memory, and the functions
of the real module get its code while the lives are tried.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FunctionType, ModuleType

import pytest
from hypothesis.stateful import run_state_machine_as_test

from taskqueue.controller.tasks import (
    admission,
    lifecycle,
    lost_attempts,
    machine,
    refusals,
    transition,
)
from tests.unit.controller.tasks.task_life import Life, life_settings

#: How many lives a mistake may survive at most.
LIVES = 1500


@dataclass(frozen=True)
class Mutant:
    """A mistake: ``after`` instead of ``before``, which the module has once.

    Lives that find a ``rare`` one take more than two seconds: `make test-long` tries it.
    """

    name: str
    module: ModuleType
    before: str
    after: str
    rare: bool = False


MUTANTS = [
    Mutant(
        "a success is acknowledged before the write",
        machine,
        """    draft.update(receipts=(*draft.tracked.receipts, event.about.receipt))
    draft.finish(lifecycle.succeeded(""",
        """    draft.do(effects.Acknowledge((event.about.receipt,)))
    draft.finish(lifecycle.succeeded(""",
    ),
    Mutant(
        "a failure is acknowledged before the write",
        machine,
        """    draft.update(receipts=(*draft.tracked.receipts, event.about.receipt))
    draft.fail(""",
        """    draft.do(effects.Acknowledge((event.about.receipt,)))
    draft.fail(""",
    ),
    Mutant(
        "an end is acknowledged before its completion event is confirmed",
        machine,
        "    draft.do(effects.PublishCompletion(reported, event.metadata), effects.RecordEnd())",
        """    draft.do(effects.Acknowledge(draft.tracked.receipts))
    draft.update(receipts=())
    draft.do(effects.PublishCompletion(False), effects.RecordEnd())""",
    ),
    Mutant(
        "the completion event is skipped",
        machine,
        "    draft.do(effects.PublishCompletion(reported, event.metadata), effects.RecordEnd())",
        "    draft.do(effects.RecordEnd())",
    ),
    Mutant(
        "one that had no place stays Blocked when it has its turn",
        machine,
        "    if draft.tracked.status.reason == QUEUE_FULL:\n",
        "    if False:\n",
    ),
    Mutant(
        "one that loses a conflict is not stopped",
        machine,
        """    draft.end(status)


def _on_turn_came""",
        """    draft.finish(status)


def _on_turn_came""",
    ),
    Mutant(
        "receipts are dropped at a write",
        machine,
        "        draft.do(effects.Acknowledge(done))\n",
        "",
    ),
    Mutant(
        "the repetition of an outcome is acknowledged before the outcome's write",
        machine,
        "    elif draft.tracked.receipts:\n",
        "    elif False:\n",
    ),
    Mutant(
        "a checkpoint is acknowledged before the write",
        machine,
        "        receipts=(*draft.tracked.receipts, receipt), checkpoint_receipt",
        """        receipts=draft.do(effects.Acknowledge((receipt,))) or draft.tracked.receipts,
        checkpoint_receipt""",
        rare=True,
    ),
    Mutant(
        "a checkpoint is not recorded",
        lifecycle,
        "    return replace(status, checkpoint=checkpoint)",
        "    return status",
        rare=True,
    ),
    Mutant(
        "lost deliveries are not counted",
        lost_attempts,
        "    draft.update(deliveries=draft.tracked.deliveries + deliveries)\n",
        "",
        rare=True,
    ),
    Mutant(
        "an attempt is published beside the worker that runs it",
        lost_attempts,
        "    if event.deliveries and _is_run_elsewhere(draft, event.worker):",
        "    if False:",
    ),
    Mutant(
        "a worker is lost a second after it was heard",
        transition,
        "self.environment.monotonic + WORKER_LOST_SECONDS",
        "self.environment.monotonic + 1.0",
    ),
    Mutant(
        "the attempt of a lost worker is never published again",
        lost_attempts,
        "    _publish_again(draft, tracked.returned)\n",
        "",
        rare=True,
    ),
    Mutant(
        "a worker that names its attempt no more is awaited as long",
        lost_attempts,
        "        draft.update(lost_at=at)\n",
        "",
        rare=True,
    ),
    Mutant(
        "an attempt without a message is published again when the queue is lost",
        machine,
        "    elif not draft.tracked.returned:",
        "    else:",
        rare=True,
    ),
    Mutant(
        "a snooze is acknowledged before the write",
        machine,
        """    draft.update(receipts=(*draft.tracked.receipts, event.about.receipt), deliveries=0)
    draft.go_on(lifecycle.snoozed(""",
        """    draft.do(effects.Acknowledge((event.about.receipt,)))
    draft.go_on(lifecycle.snoozed(""",
        rare=True,
    ),
    Mutant(
        "a snooze does not raise the epoch",
        lifecycle,
        "            epoch=max(status.epoch, ended.epoch) + 1,\n            snoozes",
        "            snoozes",
        rare=True,
    ),
    Mutant(
        "a snooze is cut short",
        lifecycle,
        "            next_attempt_time=ended.now + seconds,",
        "            next_attempt_time=ended.now + seconds - 1.0,",
        rare=True,
    ),
    Mutant(
        "a snooze ends with a suspension",
        lifecycle,
        "    due = status.next_attempt_time if status.attempts else None",
        "    due = status.next_attempt_time if status.history else None",
        rare=True,
    ),
    Mutant(
        "a Task may be snoozed without end",
        machine,
        "    if draft.tracked.status.snoozes >= SNOOZES:",
        "    if False:",
        rare=True,
    ),
    Mutant(
        "a Task with an unknown handler is tried at once",
        transition,
        "self.update(hold_until=missing.retry_at, is_handler_missing=True)",
        "self.update(is_handler_missing=True)",
        rare=True,
    ),
    Mutant(
        "a recall does not raise the epoch",
        lifecycle,
        'replace(released(status), epoch=status.epoch + 1, concurrency_key="")',
        'replace(released(status), concurrency_key="")',
        rare=True,
    ),
    Mutant(
        "a recall is commanded before it is written",
        transition,
        """        self.owe(CommandKind.RELEASE)
        self.hold_key()
        self.update(status=status, stray_copy_possible=False)""",
        """        present = self.tracked.status
        self.do(
            effects.SendCommand(CommandKind.RELEASE, present.current_attempt, present.epoch)
        )
        self.hold_key()
        self.update(status=status, stray_copy_possible=False)""",
        rare=True,
    ),
    Mutant(
        "a command that was owed is lost",
        transition,
        """        for one in due:
            self.do(effects.SendCommand(one.kind, one.attempt, one.epoch))""",
        "        del due",
    ),
    Mutant(
        "a Task with a key is published before its claim is written",
        machine,
        """        draft.move(TaskStage.CLAIMING)
        draft.write(urgent=True)""",
        "        draft.publish()",
    ),
    Mutant(
        "a Task with a key is published by a process that may not lead",
        transition,
        "        if self.environment.leads:",
        "        if True:",
        rare=True,
    ),
    Mutant(
        "a Task with a key is published beside itself after an unclear publish",
        machine,
        "    if draft.tracked.key and event.confirmation is events.Confirmation.UNKNOWN:",
        "    if False:",
        rare=True,
    ),
    Mutant(
        "a released attempt with a key keeps its token",
        lost_attempts,
        "(lifecycle.recalled if draft.tracked.key else lifecycle.released)(status)",
        "lifecycle.released(status)",
        rare=True,
    ),
    Mutant(
        "the number of a claim is not taken for its fence",
        machine,
        "        draft.update(fence=event.version)\n",
        "",
    ),
    Mutant(
        "the key of a recalled attempt is given away at once",
        transition,
        """        self.owe(CommandKind.RELEASE)
        self.hold_key()
        self.update(status=status, stray_copy_possible=False)""",
        """        self.owe(CommandKind.RELEASE)
        self.update(status=status, stray_copy_possible=False)""",
        rare=True,
    ),
    Mutant(
        "a Task goes on while a finalizer keeps it",
        transition,
        "        if tracked.task.deleting:",
        "        if False:",
    ),
    Mutant(
        "numbers that another writer has raised are not taken over",
        transition,
        "        status = lifecycle.renumbered(tracked.status, found)",
        "        status = tracked.status",
    ),
    Mutant(
        "an attempt whose epoch another writer has raised goes on",
        lifecycle,
        "    return after if epoch == status.epoch else replace(released(after), "
        'concurrency_key="")',
        "    return replace(status, attempts=attempts)",
    ),
    Mutant(
        "the key of a deleted Task is never released",
        transition,
        """            self.release_key()
        self.do(effects.Withdraw(finished=False))""",
        """            pass
        self.do(effects.Withdraw(finished=False))""",
        rare=True,
    ),
    Mutant(
        "a key that is not on record stays with a Task that leaves",
        transition,
        "        if tracked.key and tracked.status.concurrency_key != tracked.key:",
        "        if False:",
    ),
    Mutant(
        "the wait before a retry is cut short",
        admission,
        "    if due is not None and seconds_until(due, environment, anchors):",
        "    if due is not None and seconds_until(due, environment, anchors) > 1.0:",
    ),
    Mutant(
        "a wait follows the wall clock when that is set",
        admission,
        "        if wall == at:",
        "        if False:",
        rare=True,
    ),
    Mutant(
        "a retry has no time",
        lifecycle,
        "        next_attempt_time=ended.now + wait,",
        "        next_attempt_time=ended.now,",
    ),
    Mutant(
        "startAfter is ignored",
        admission,
        "    if fresh and start is not None and seconds_until(start, environment, anchors):",
        "    if False:",
        rare=True,
    ),
    Mutant(
        "a suspended Task is not recalled",
        admission,
        "    if spec.suspend:\n",
        "    if spec.suspend and dispatched is Dispatched.NO:\n",
        rare=True,
    ),
    Mutant(
        "a claimed Task is published to a queue that is held",
        machine,
        "        if draft.environment.can_publish:",
        "        if True:",
    ),
    Mutant(
        "a report of an earlier epoch counts",
        lifecycle,
        "status.phase.terminal or epoch < status.epoch or",
        "status.phase.terminal or",
    ),
    Mutant(
        "a report of an earlier attempt counts",
        lifecycle,
        " or attempt < status.current_attempt:",
        ":",
        rare=True,
    ),
    Mutant(
        "a finished Task is reconciled",
        transition,
        """        if tracked.stage is TaskStage.FINISHED:
            return
        if tracked.task""",
        "        if tracked.task",
        rare=True,
    ),
    Mutant(
        "a final status is given another message",
        machine,
        "    draft.update(written=event.status)\n",
        """    draft.update(written=event.status)
    if event.status is not draft.tracked.status and draft.tracked.status.phase.terminal:
        draft.update(status=replace(draft.tracked.status, message="written after another"))
""",
    ),
    Mutant(
        "an end names an old generation",
        machine,
        "    if event.generation > task.generation:",
        "    if False:",
    ),
    Mutant(
        "a timer is not set again",
        transition,
        "        if at != self.tracked.reconcile_at:",
        "        if at is not None and self.tracked.reconcile_at is None:",
    ),
    Mutant(
        "a timer that fired counts as set",
        machine,
        "    draft.update(write_at=None)\n",
        "",
    ),
    Mutant(
        "what changed back while it was written is never written",
        machine,
        "        draft.change(draft.tracked.status)  # it may have changed back",
        "        pass  # it may have changed back",
        rare=True,
    ),
    Mutant(
        "a refused status is dropped",
        refusals,
        "        draft.write(urgent=event.status.phase.terminal)\n",
        "",
    ),
    Mutant(
        "a refused status is written again as it was",
        refusals,
        "        _note_refusal(draft, shorter, event)\n",
        "        _note_refusal(draft, event.detail, event)\n",
    ),
    Mutant(
        "an outcome is held for a status that cannot be recorded",
        refusals,
        "    if draft.tracked.receipts:\n",
        "    if False:\n",
        rare=True,
    ),
    Mutant(
        "an outcome is let go of before the object was read",
        refusals,
        "    if refusal.reads and not refusal.is_behind:\n",
        "    if True:\n",
    ),
    Mutant(
        "a status that cannot be recorded is reported again and again",
        refusals,
        "replace(refusal, is_reported=True)",
        "refusal",
        rare=True,
    ),
    Mutant(
        "a refused status is not tried again",
        refusals,
        "    draft.do(effects.SetTimer(events.Timer.READ, seconds))\n",
        "",
    ),
]


def codes(code: CodeType) -> Iterator[tuple[str, CodeType]]:
    """Yield the code of every function in a module's, by qualified name."""
    for one in code.co_consts:
        if isinstance(one, CodeType):
            yield one.co_qualname, one
            yield from codes(one)


def functions(module: ModuleType) -> Iterator[FunctionType]:
    """Yield the functions and methods that a module defines."""
    for one in vars(module).values():
        members = vars(one).values() if isinstance(one, type) else (one,)
        for member in members:
            function = member.fget if isinstance(member, property) else member
            if isinstance(function, FunctionType) and function.__module__ == module.__name__:
                yield function


@contextmanager
def applied(mutant: Mutant) -> Iterator[None]:
    """Give the module's functions the mutant's code for a while."""
    assert mutant.module.__file__ is not None
    source = Path(mutant.module.__file__).read_text()
    assert source.count(mutant.before) == 1, f"{source.count(mutant.before)} times in the module"
    text = source.replace(mutant.before, mutant.after)
    compiled = dict(codes(compile(text, f"<{mutant.name}>", "exec", dont_inherit=True)))
    original = {one: one.__code__ for one in functions(mutant.module)}
    try:
        for one in original:
            if one.__qualname__ in compiled:
                one.__code__ = compiled[one.__qualname__]
        yield
    finally:
        for one, code in original.items():
            one.__code__ = code


@pytest.mark.parametrize(
    "mutant",
    [
        pytest.param(
            one, id=one.name.replace(" ", "-"), marks=[pytest.mark.long] if one.rare else []
        )
        for one in MUTANTS
    ],
)
def test_lives_find_a_mutant(mutant: Mutant) -> None:
    with applied(mutant), pytest.raises(AssertionError):
        run_state_machine_as_test(Life, settings=life_settings(LIVES, shrinks=False))


@pytest.mark.long
def test_lives_find_nothing_in_the_machine_as_it_is() -> None:
    run_state_machine_as_test(Life, settings=life_settings(LIVES))
