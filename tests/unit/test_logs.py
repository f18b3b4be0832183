"""Log lines as the cluster's collector and a terminal see them."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest

from taskqueue.logs import EventLog, LogFormat, configure


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield io.StringIO()
    root.handlers[:] = handlers
    root.setLevel(level)


def test_a_json_line_starts_with_the_event_and_carries_the_fields(stream: io.StringIO) -> None:
    configure(LogFormat.JSON, stream=stream)
    EventLog("taskqueue.test").info("task.failed", namespace="shop", task="a", attempt=2, note=None)
    text = stream.getvalue()
    line = json.loads(text)
    assert text.startswith('{"event": "task.failed"')
    assert line["level"] == "info"
    assert (line["namespace"], line["task"], line["attempt"]) == ("shop", "a", 2)
    assert "note" not in line


def test_a_field_never_hides_the_event(stream: io.StringIO) -> None:
    configure(LogFormat.JSON, stream=stream)
    EventLog("taskqueue.test").info("task.failed", level="high", time="never")
    line = json.loads(stream.getvalue())
    assert line["level"] == "info"
    assert line["time"].endswith("Z")


def test_an_exception_stays_on_one_json_line(stream: io.StringIO) -> None:
    configure(LogFormat.JSON, stream=stream)
    try:
        raise ValueError("no such size")
    except ValueError as problem:
        EventLog("taskqueue.test").warning("task.failed", exc_info=problem)
    assert stream.getvalue().count("\n") == 1
    assert "no such size" in json.loads(stream.getvalue())["exception"]


def test_text_quotes_only_what_needs_it(stream: io.StringIO) -> None:
    configure(LogFormat.TEXT, stream=stream)
    EventLog("taskqueue.test").info("task.failed", task="a", message="two words", empty="")
    assert stream.getvalue().endswith('task.failed task=a message="two words" empty=""\n')


def test_debug_events_cost_nothing_when_off(stream: io.StringIO) -> None:
    configure(LogFormat.TEXT, stream=stream)
    EventLog("taskqueue.test").debug("task.started")
    assert stream.getvalue() == ""
