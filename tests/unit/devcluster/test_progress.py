import io
import threading

import pytest

from devcluster import progress
from devcluster.progress import Steps


def test_each_step_says_when_it_starts_and_when_it_ends() -> None:
    out = io.StringIO()
    Steps(out=out, clock=lambda: 61.0).run("bases", lambda: None)
    assert out.getvalue() == "[  0:00] bases ...\n[  0:00] bases: done in 0.0 s\n"


def test_steps_run_side_by_side() -> None:
    meeting = threading.Barrier(2, timeout=10)
    Steps(out=io.StringIO()).run_all({"one": meeting.wait, "two": meeting.wait})


def test_a_long_step_shows_that_it_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "HEARTBEAT_S", 0.01)
    out = io.StringIO()
    reported = threading.Event()
    write = out.write

    def watch(text: str) -> int:
        if "still running: slow" in text:
            reported.set()
        return write(text)

    monkeypatch.setattr(out, "write", watch)
    Steps(out=out).run("slow", lambda: reported.wait(10))
    assert reported.is_set()


def test_a_failure_is_raised_after_the_others_have_ended() -> None:
    out = io.StringIO()
    failed = threading.Event()
    ended = []

    def fail() -> None:
        failed.set()
        raise ValueError("no space")

    def go_on() -> None:
        failed.wait(10)
        ended.append(True)

    with pytest.raises(ValueError, match="no space"):
        Steps(out=out).run_all({"fails": fail, "goes on": go_on})
    assert ended == [True]
    assert "fails: FAILED" in out.getvalue()


def test_steps_of_a_step_are_reported_of_as_well() -> None:
    out = io.StringIO()
    steps = Steps(out=out)
    steps.run("outer", lambda: steps.run_all({"inner": lambda: None}))
    assert "inner: done" in out.getvalue()
    assert "outer: done" in out.getvalue()
