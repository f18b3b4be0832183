"""What a verdict finds in records, and what it lets pass."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.verdict import (
    REPUBLISH_SECONDS,
    Applied,
    Completed,
    Deleted,
    Disturbance,
    Published,
    Ran,
    Record,
    Reported,
    Status,
    judge,
)

UID = "u"
WHO = "resize (u)"


def applied() -> Applied:
    return Applied(at=0, uid=UID, name="resize", handler="watched")


def status(phase: str, at: float = 3, attempts: int = 1, ended: str = "") -> Status:
    return Status(at=at, uid=UID, phase=phase, attempts=attempts, completion_time=ended)


def published(at: float = 1, attempt: int = 1, epoch: int = 0) -> Published:
    return Published(at=at, uid=UID, attempt=attempt, epoch=epoch)


def ran(attempt: int = 1) -> Ran:
    return Ran(at=2, uid=UID, attempt=attempt)


def reported(
    event: str = "task.succeeded", at: float = 2, attempt: int = 1, error_type: str = ""
) -> Reported:
    return Reported(at=at, uid=UID, event=event, attempt=attempt, error_type=error_type)


def completed(number: int = 1, event: str = "task.succeeded") -> Completed:
    return Completed(at=4, uid=UID, event_id=f"u.{number}", event=event)


def whole_life() -> list[Record]:
    return [
        applied(),
        status("", at=0, attempts=0),
        published(),
        ran(),
        reported("task.started"),
        status("Running", attempts=0),
        reported(),
        status("Succeeded", ended="noon"),
        completed(),
    ]


def findings(*records: Record, disturbances: tuple[Disturbance, ...] = ()) -> dict[str, list[str]]:
    return judge(records, disturbances=disturbances, reporting=["watched"]).findings


def test_a_life_as_promised_has_no_findings() -> None:
    judge(whole_life(), reporting=["watched"]).assert_clean()


def test_a_retried_life_has_no_findings() -> None:
    retried = [
        applied(),
        published(),
        ran(),
        reported("task.failed", error_type="OSError"),
        status("Retrying"),
        published(attempt=2),
        ran(attempt=2),
        reported(attempt=2),
        status("Succeeded", attempts=2, ended="noon"),
    ]
    assert findings(*retried) == {}


def test_a_task_that_never_ended_is_lost() -> None:
    found = findings(applied(), published(), ran(), status("Running"))
    assert found == {"lost": [f"{WHO} never ended; its last phase is Running"]}


def test_a_task_that_was_deleted_before_its_end_is_not_lost() -> None:
    assert findings(applied(), status("Running"), Deleted(at=4, uid=UID)) == {}


@pytest.mark.parametrize(
    "second",
    [
        status("Failed", ended="noon"),
        status("Succeeded", ended="later"),
        status("Succeeded", attempts=2, ended="noon"),
    ],
    ids=["phase", "time", "attempts"],
)
def test_a_second_status_that_ends_is_a_double_end(second: Status) -> None:
    found = findings(*whole_life(), second)
    assert list(found) == ["double_ends"]
    assert found["double_ends"] == [f"{WHO} ended more than once: Succeeded, {second.phase}"]


def test_an_end_written_again_for_its_ttl_is_no_double_end() -> None:
    assert findings(*whole_life(), status("Succeeded", ended="noon")) == {}


def test_a_repeated_announcement_is_no_double_end_but_a_different_one_is() -> None:
    assert findings(*whole_life(), completed()) == {}
    for other in (completed(2), completed(event="task.failed")):
        assert list(findings(*whole_life(), other)) == ["double_ends"]


def test_an_attempt_published_twice_is_a_double_publish() -> None:
    found = findings(*whole_life(), published(at=2))
    expected = f"{WHO}: attempt 1, epoch 0 was published 2 times"
    assert found == {"double_publishes": [expected]}


def test_another_epoch_of_an_attempt_is_no_double_publish() -> None:
    assert findings(*whole_life(), published(at=2, epoch=1)) == {}


@pytest.mark.parametrize(
    "given_back",
    [
        reported("task.released", at=2),
        reported("task.failed", at=2, error_type="UnknownHandler"),
        reported("task.failed", at=2, error_type="taskqueue.UnknownHandler"),
    ],
    ids=["released", "unknown handler", "reserved name"],
)
def test_an_attempt_given_back_is_published_once_more(given_back: Reported) -> None:
    assert findings(*whole_life(), given_back, published(at=2.5)) == {}
    twice = [given_back, published(at=2.5), published(at=2.6)]
    assert list(findings(*whole_life(), *twice)) == ["double_publishes"]


def test_a_disturbance_excuses_one_publish_of_each_attempt() -> None:
    kill = Disturbance(reason="kill", began=1.5, ended=1.6)
    excused = [*whole_life(), published(at=30)]
    assert findings(*excused, disturbances=(kill,)) == {}
    third = findings(*excused, published(at=31), disturbances=(kill,))
    assert list(third) == ["double_publishes"]
    assert findings(*excused, published(at=31), disturbances=(kill, kill)) == {}


@pytest.mark.parametrize("at", [1.4, 1.6 + REPUBLISH_SECONDS + 1], ids=["before", "long after"])
def test_a_disturbance_excuses_nothing_at_another_time(at: float) -> None:
    kill = Disturbance(reason="kill", began=1.5, ended=1.6)
    found = findings(*whole_life(), published(at=at), disturbances=(kill,))
    assert list(found) == ["double_publishes"]


def test_a_run_without_a_publish_is_found() -> None:
    found = findings(*whole_life(), ran(attempt=2), ran(attempt=2))
    expected = f"{WHO}: attempt 2 ran 2 times and was never published"
    assert found == {"runs_without_publish": [expected]}


def test_an_outcome_without_a_run_is_found() -> None:
    records = [one for one in whole_life() if not isinstance(one, Ran)]
    expected = f"{WHO}: task.succeeded of attempt 1, which never ran"
    assert findings(*records) == {"outcomes_without_run": [expected]}
    assert judge(records).findings == {}, "its handler reports no runs"


@pytest.mark.parametrize(
    "report",
    [
        reported("task.failed", error_type="WorkerLost"),
        reported("task.failed", error_type="taskqueue.UnknownHandler"),
        reported("task.cancelled"),
    ],
    ids=["lost", "unknown", "cancelled"],
)
def test_an_outcome_that_needs_no_run_is_not_found(report: Reported) -> None:
    assert findings(applied(), report, status("Failed", ended="noon")) == {}


def test_a_status_that_goes_back_is_found() -> None:
    found = findings(*whole_life(), status("Running", attempts=0))
    assert found == {
        "statuses_going_back": [
            f"{WHO} went from Succeeded back to Running",
            f"{WHO}: attempts went from 1 back to 0",
        ]
    }


def test_findings_of_one_task_say_nothing_of_another() -> None:
    other = Published(at=1, uid="other", attempt=1)
    found = findings(*whole_life(), other, other)
    expected = "a Task that was never seen (other): attempt 1, epoch 0 was published 2 times"
    assert found == {"double_publishes": [expected]}


def test_a_verdict_with_findings_fails_with_all_of_them() -> None:
    verdict = judge([applied(), published(), published()])
    with pytest.raises(AssertionError, match=r"(?s)lost: .*double_publishes: "):
        verdict.assert_clean()


def test_the_watcher_imports_nothing_of_the_operator() -> None:
    program = (
        "import sys, tests.faults.watcher\n"
        "print([name for name in sys.modules if name.partition('.')[0] == 'taskqueue'])"
    )
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == ("[]\n", "")
