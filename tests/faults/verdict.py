"""Judges what a watcher has recorded: which promises were broken.

Pure: records in, `Verdict` out. It knows the message contract and the meaning of a Task's status,
and nothing of how the operator is built.

An attempt is published again, with the same epoch, for two reasons: a worker gave it back, or the
operator cannot know whether a publish arrived, which takes a disturbance. So each publish beyond
the first must have an excuse of its own before it: a report that gives the attempt back, or a
`Disturbance`, at most `REPUBLISH_SECONDS` ago.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field, fields
from itertools import pairwise
from math import inf
from typing import TypeVar

#: How long after a disturbance an attempt may be published again: a Lease runs out, the inbox is
#: handed over, connections are opened.
REPUBLISH_SECONDS = 120.0

FINISHED = frozenset({"Succeeded", "Failed", "Cancelled"})

#: Events of workers that end an attempt that ran.
_RAN = frozenset({"task.succeeded", "task.failed"})

#: Failures that are reported without a run.
_NOT_RUN = frozenset({"UnknownHandler", "WorkerLost"})

_R = TypeVar("_R", bound="Record")


@dataclass(frozen=True, kw_only=True)
class Record:
    """What was seen of a Task; ``at`` in seconds, by the watcher's monotonic clock."""

    at: float
    uid: str


@dataclass(frozen=True, kw_only=True)
class Applied(Record):
    """A Task was created."""

    name: str
    handler: str


@dataclass(frozen=True, kw_only=True)
class Deleted(Record):
    """A Task was deleted."""


@dataclass(frozen=True, kw_only=True)
class Status(Record):
    """A Task's status was written; an absent number is 0, an absent text empty."""

    phase: str
    attempts: int = 0
    epoch: int = 0
    completion_time: str = ""


@dataclass(frozen=True, kw_only=True)
class Published(Record):
    """A work message with a token was published."""

    attempt: int
    epoch: int = 0
    message_id: str = ""


@dataclass(frozen=True, kw_only=True)
class Reported(Record):
    """A worker published an event about an attempt, such as `task.succeeded`.

    ``error_type`` is that of a failure which the worker has found itself; "": of none.
    """

    event: str
    attempt: int
    epoch: int = 0
    error_type: str = ""

    @property
    def error(self) -> str:
        """The short name of the error's type."""
        return self.error_type.rpartition(".")[2]

    @property
    def gives_back(self) -> bool:
        """Whether the attempt is to be published again, uncounted."""
        return self.event == "task.released" or self.error == "UnknownHandler"


@dataclass(frozen=True, kw_only=True)
class Completed(Record):
    """The operator published the end of a Task."""

    event_id: str
    event: str


@dataclass(frozen=True, kw_only=True)
class Ran(Record):
    """A handler said that it runs."""

    attempt: int
    worker: str = ""


@dataclass(frozen=True, kw_only=True)
class Disturbance:
    """Something that makes publishers unsure; ``ended`` is infinite while it lasts."""

    reason: str
    began: float
    ended: float = inf


@dataclass(frozen=True)
class Verdict:
    """What was broken: a sentence for each finding, by kind."""

    lost: list[str] = field(default_factory=list)
    double_ends: list[str] = field(default_factory=list)
    double_publishes: list[str] = field(default_factory=list)
    runs_without_publish: list[str] = field(default_factory=list)
    outcomes_without_run: list[str] = field(default_factory=list)
    statuses_going_back: list[str] = field(default_factory=list)

    @property
    def findings(self) -> dict[str, list[str]]:
        """The kinds that have findings."""
        kinds = {one.name: getattr(self, one.name) for one in fields(self)}
        return {name: found for name, found in kinds.items() if found}

    def assert_clean(self) -> None:
        """Fail if there is any finding."""
        assert not self.findings, "\n".join(
            f"{kind}: {sentence}" for kind, found in self.findings.items() for sentence in found
        )


def judge(
    records: Iterable[Record],
    *,
    disturbances: Collection[Disturbance] = (),
    reporting: Collection[str] = (),
) -> Verdict:
    """Return what the records prove to be broken.

    Args:
        records: everything that was seen, in any order between kinds; of one kind as it happened.
        disturbances: what the test did to publishers.
        reporting: handlers that report each of their runs. Outcomes of others are not expected to
            have a `Ran`.
    """
    lives: dict[str, _Life] = defaultdict(_Life)
    for record in records:
        lives[record.uid].records.append(record)
    verdict = Verdict()
    for uid, life in lives.items():
        who = f"{life.name} ({uid})"
        verdict.lost.extend(_lost(life, who))
        verdict.double_ends.extend(_double_ends(life, who))
        verdict.double_publishes.extend(_double_publishes(life, who, disturbances))
        verdict.runs_without_publish.extend(_runs_without_publish(life, who))
        if life.handler in reporting:
            verdict.outcomes_without_run.extend(_outcomes_without_run(life, who))
        verdict.statuses_going_back.extend(_going_back(life, who))
    return verdict


class _Life:
    """All records of one Task."""

    def __init__(self) -> None:
        self.records: list[Record] = []

    def of(self, kind: type[_R]) -> list[_R]:
        return [one for one in self.records if isinstance(one, kind)]

    @property
    def name(self) -> str:
        return next((one.name for one in self.of(Applied)), "a Task that was never seen")

    @property
    def handler(self) -> str:
        return next((one.handler for one in self.of(Applied)), "")

    @property
    def ends(self) -> list[Status]:
        return [one for one in self.of(Status) if one.phase in FINISHED]


def _lost(life: _Life, who: str) -> Iterator[str]:
    if life.of(Applied) and not life.ends and not life.of(Deleted):
        last = life.of(Status)[-1:]
        yield f"{who} never ended; its last phase is {last[0].phase if last else 'none'}"


def _double_ends(life: _Life, who: str) -> Iterator[str]:
    ends = {(one.phase, one.attempts, one.completion_time): one.phase for one in life.ends}
    if len(ends) > 1:
        yield f"{who} ended more than once: {', '.join(ends.values())}"
    announced = {(one.event_id, one.event) for one in life.of(Completed)}
    if len(announced) > 1:
        ids = ", ".join(f"{event} {number}" for number, event in sorted(announced))
        yield f"{who} was announced with different ends: {ids}"


def _double_publishes(
    life: _Life, who: str, disturbances: Collection[Disturbance]
) -> Iterator[str]:
    attempts: dict[tuple[int, int], list[Published]] = defaultdict(list)
    for one in life.of(Published):
        attempts[one.attempt, one.epoch].append(one)
    for (attempt, epoch), publishes in attempts.items():
        #: From when to when a publish is excused.
        excuses = [
            (one.at, inf)
            for one in life.of(Reported)
            if one.gives_back and (one.attempt, one.epoch) == (attempt, epoch)
        ]
        excuses += [(one.began, one.ended + REPUBLISH_SECONDS) for one in disturbances]
        for repeated in publishes[1:]:
            excuse = next((one for one in excuses if one[0] <= repeated.at <= one[1]), None)
            if excuse is None:
                number = len(publishes)
                yield f"{who}: attempt {attempt}, epoch {epoch} was published {number} times"
                break
            excuses.remove(excuse)


def _runs_without_publish(life: _Life, who: str) -> Iterator[str]:
    published = {one.attempt for one in life.of(Published)}
    for attempt, count in Counter(one.attempt for one in life.of(Ran)).items():
        if attempt not in published:
            yield f"{who}: attempt {attempt} ran {count} times and was never published"


def _outcomes_without_run(life: _Life, who: str) -> Iterator[str]:
    ran = {one.attempt for one in life.of(Ran)}
    for one in life.of(Reported):
        did_run = one.event in _RAN and one.error not in _NOT_RUN
        if did_run and one.attempt not in ran:
            yield f"{who}: {one.event} of attempt {one.attempt}, which never ran"


def _going_back(life: _Life, who: str) -> Iterator[str]:
    for before, after in pairwise(life.of(Status)):
        if before.phase in FINISHED and after.phase not in FINISHED:
            yield f"{who} went from {before.phase} back to {after.phase}"
        for name in ("attempts", "epoch"):
            earlier, later = getattr(before, name), getattr(after, name)
            if later < earlier:
                yield f"{who}: {name} went from {earlier} back to {later}"
