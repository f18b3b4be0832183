"""Invariants of the operator's parts, whatever happens around them; see `Invariants`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import orjson

from taskqueue.contract.work import WorkMessage
from taskqueue.controller.tasks import lifecycle
from taskqueue.controller.tasks.admission import AdmissionStep, decide
from taskqueue.controller.tasks.dispatcher import Dispatcher
from taskqueue.controller.tasks.lifecycle import Verdict
from taskqueue.controller.tasks.tracked_task import TaskEnvironment, TaskStage, TrackedTask
from taskqueue.limits import HISTORY_LENGTH, REPORT_GRACE_SECONDS
from taskqueue.model.queue import StopPolicy
from taskqueue.model.task import Phase
from tests.unit.controller.fakes import EPOCH

if TYPE_CHECKING:
    from tests.unit.controller.model import Message, Model

MAX_PUBLISHED = 2
MAX_ATTEMPTS = 3
TIMEOUT = 20
#: Bytes: room for two of the payloads, so that others are read again.
PAYLOAD_BUDGET = 500


class Invariants:
    """Asserts at every publish, write and start, and at rest."""

    def __init__(self, model: Model) -> None:
        self._model = model
        #: How many may hold the key: the limit, or more for as long as more have it already.
        self.allowed = 1
        self._finals: dict[str, dict[str, Any]] = {}
        self._complete: set[str] = set()
        self._cancelled: set[str] = set()
        #: Changed when they had been published, or had their key: what they depend on matters no
        #: more, or again, if they are published once more.
        self._begun: set[str] = set()
        self._fence = 0
        self._checked = 0.0

    def shown(self, raw: dict[str, Any]) -> None:
        """Record what the operator is about to see."""
        uid = raw["metadata"]["uid"]
        held = self._entry(uid)
        published = any(message.content.uid == uid for message in self._model.messages)
        if published or (held is not None and held.status.concurrency_key):
            self._begun.add(uid)
        if raw["spec"].get("cancel"):
            self._cancelled.add(uid)

    def adopted(self) -> None:
        """Check a new operator that is synced and has published nothing."""
        for message in self._model.messages:
            message.forgotten |= not self._counts(message)
        # A released claim may still be on record: then no new holder gets the key.
        self.allowed = max(self.allowed, self._key_held())

    def written(self, uid: str, before: dict[str, Any], status: dict[str, Any]) -> None:
        assert status["attempts"] <= MAX_ATTEMPTS, f"{uid}: too many attempts"
        assert status["attempts"] >= before.get("attempts", 0), f"{uid}: attempts went down"
        assert status["epoch"] >= before.get("epoch", 0), f"{uid}: the epoch went down"
        numbers = [one["attempt"] for one in status.get("history", ())]
        assert numbers == sorted(set(numbers)), f"{uid}: history {numbers}"
        assert len(numbers) <= HISTORY_LENGTH
        if Phase(status["phase"]).terminal:
            final = {
                name: value
                for name, value in status.items()
                if name not in ("observedGeneration", "conditions")
            }
            assert self._finals.setdefault(uid, final) == final, f"{uid} ends a second time"
            if status["phase"] == Phase.SUCCEEDED:
                self._complete.add(uid.split("-")[1])

    def _entry(self, uid: str) -> TrackedTask | None:
        return self._model.harness.entries.get(uid)

    def _key_held(self) -> int:
        return len(self._model.harness.dispatcher.keys._slots._holders.get("k", ()))

    def _counts(self, message: Message) -> bool:
        """Return whether the operator waits for this attempt."""
        content, entry = message.content, self._entry(message.content.uid)
        if entry is None or entry.stage is TaskStage.FINISHED:
            return False
        verdict = lifecycle.judge(entry.status, attempt=content.attempt, epoch=content.epoch)
        return verdict is Verdict.COUNTS

    def _holders(self) -> set[str]:
        """Return the uids of the Tasks that may be with a worker together with the key."""
        now = self._model.loop.time()
        return {
            message.content.uid
            for message in self._model.messages
            if self._model.keys[message.content.uid]
            and not (message.answered or message.forgotten or message.arrived is False)
            and (message.stopped is None or now - message.stopped < TIMEOUT + REPORT_GRACE_SECONDS)
        }

    def published(self, content: WorkMessage) -> None:
        who, uid, queue = f"{content.task} ({content.uid})", content.uid, self._model.queue
        entry = self._entry(uid)
        assert entry is not None, f"{who} is published, and not held"
        assert queue is not None, f"{who} is published without a TaskQueue"
        assert queue.stop_policy is StopPolicy.NONE, f"{who} is published while all are held"
        assert self._model.broker_up
        assert uid not in self._cancelled, f"{who} is published though cancelled"
        assert not entry.task.spec.suspend, f"{who} is published though suspended"
        assert content.attempt <= MAX_ATTEMPTS, f"{who} is published too often"
        assert self._model.harness.dispatcher.published <= MAX_PUBLISHED, (
            f"{who} is above the window"
        )
        start = entry.task.spec.start_after
        assert start is None or start <= EPOCH + self._model.loop.time() + 0.001, (
            f"{who} is published too early"
        )
        reason = entry.status.reason if entry.status.phase is Phase.BLOCKED else ""
        assert reason in ("", "UnknownHandler", "ConcurrencyLimit"), f"{who} is published: {reason}"
        before = [message for message in self._model.messages if message.content.uid == uid]
        if not before and uid not in self._begun:
            missing = set(entry.task.spec.depends_on) - self._complete
            assert not missing, f"{who} is published before {missing}"
        if uid not in self._model.refused:
            assert content.checkpoint == self._model.saved.get(uid), f"{who}: old checkpoint"
        body = orjson.loads(content.body)
        assert bool(entry.task.spec.payload_from) == ("from" in body), f"{who} has payload {body}"
        assert body["made"] == int(uid.split("-")[-1]), f"{who} has another's payload: {body}"
        raw = self._model.tasks.get(content.task)
        recorded = raw["status"] if raw and raw["metadata"]["uid"] == uid else None
        if recorded is not None and recorded.get("history"):
            ended = recorded["history"][-1]["attempt"]
            assert content.attempt > ended, f"{who}: attempt {ended} has ended, and is published"
        if self._model.keys[uid]:
            assert uid not in self._holders(), f"{who} is published beside itself"
            others = self._holders() - {uid}
            assert len(others) < self.allowed, f"{who} is published beside {sorted(others)}"
            assert recorded is None or recorded.get("concurrencyKey"), f"{who} has no claim"
            assert content.fence is not None
            returned = before and before[-1].arrived is False
            assert returned or self.allowed > 1 or content.fence > self._fence, f"{who}: old fence"
            self._fence = max(self._fence, content.fence)

    def check(self) -> None:
        """Check everything; called when nothing happens."""
        assert not self._model.loop.problems, self._model.loop.problems
        assert not self._model.harness.problems, self._model.harness.problems
        self._model.take_acknowledgements()
        now, self._checked = self._checked, self._model.loop.time()
        for message in self._model.messages:
            if message.stopped is None and not message.answered and not self._counts(message):
                message.stopped = now  # at the earliest
        limit = self._model.queue.keys.per_key if self._model.queue else 1
        self.allowed = max(limit, min(self.allowed, self._key_held()))
        unfinished = [
            one
            for one in self._model.harness.entries.values()
            if one.stage is not TaskStage.FINISHED
        ]
        placed = list(_places(self._model.harness.dispatcher))
        assert len(placed) == len(set(placed)), "a Task is in two places"
        going = {one.uid for one in unfinished if one.stage is not TaskStage.HELD}
        assert set(placed) == going, "a Task is nowhere"
        assert set(self._model.harness.dispatcher.uids) == {one.uid for one in unfinished}
        for entry in unfinished:
            self._check_entry(entry)

    def _check_entry(self, entry: TrackedTask) -> None:
        who = f"{entry.task.uid} ({entry.stage.name}, {entry.status.phase})"
        assert entry.task.uid not in self._cancelled, f"{who} is cancelled, and goes on"
        raw = self._model.tasks.get(entry.task.name)
        there = raw is not None and raw["metadata"]["uid"] == entry.task.uid
        to_be_written = entry.write_at is not None or entry.task.name in self._model.unwritten
        if raw is not None and there and not to_be_written and entry.refusal is None:
            assert entry.status == entry.written, f"{who}: what is true is not going to be written"
            if not self._model.behind:
                phase = raw["status"]["phase"]
                assert phase == entry.status.phase, f"{who}: the API server says {phase}"
        if entry.task.uid in self._begun:
            return
        step = self._decide(entry)
        if entry.stage is TaskStage.HELD:
            assert step is AdmissionStep.HOLD, f"{who} is held, and nothing holds it"
        elif self._model.queue is not None:
            assert step is AdmissionStep.GO, f"{who} is under way, and something is in the way"

    def _decide(self, entry: TrackedTask) -> AdmissionStep:
        dispatcher = self._model.harness.dispatcher
        environment = TaskEnvironment(
            policy=dispatcher.policy(entry) if dispatcher.config is not None else None,
            dependencies=self._model.harness.tasks.dependencies.state_of(entry.task),
            payload_error=self._model.harness.tasks.payloads.error(entry.uid),
            now=EPOCH + self._model.loop.time() - 0.001,  # its timer is about to fire
        )
        decision = decide(
            entry.task,
            entry.status,
            environment,
            dispatched=entry.dispatched,
            hold_until=entry.hold_until,
        )
        return decision.step


def _places(dispatcher: Dispatcher) -> Iterator[str]:
    """Yield every uid that is queued, loading, waits for its key, claims it or is published."""
    yield from dispatcher._queue.places
    for queue in dispatcher.keys._slots._queues.values():
        yield from queue.places
    yield from dispatcher._loading
    yield from dispatcher._claiming
    yield from dispatcher.attempts
