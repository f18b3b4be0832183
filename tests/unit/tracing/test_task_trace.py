"""The way of a Task through the operator stays short; ``python -m tests.tracing`` lists it."""

import asyncio

import pytest

from tests.tracing.recorder import Leg, lines_of
from tests.tracing.task_trace import TO_PUBLISH, TO_STATUS, VALUES, TaskTrace, trace_task

#: Files that a Task passes, at most: all, and those that do more than define values. A change may
#: lower these numbers. One that raises them sends every reader through another file.
#:
#: Each write asks the Lease whether this process still leads. The payload is no part of a Task's
#: state: it is kept in a cache of its own (payloads.py, payload_cache.py), and its depth is looked
#: at when the Task comes (exact_json.py). The timers of 100,000 Tasks share one of the loop
#: (task_timers.py). Whose status is written next is decided apart from writing it (write_turns.py):
#: together they would fill a file to its limit.
MOST_FILES = {TO_PUBLISH: (23, 18), TO_STATUS: (26, 21)}
MOST_FILES_OF_BOTH = (33, 28)
MOST_LINES = 450


@pytest.fixture(scope="module")
def trace() -> TaskTrace:
    return asyncio.run(trace_task())


def count(files: tuple[str, ...]) -> tuple[int, int]:
    return len(files), sum(file not in VALUES for file in files)


def test_traced_task_ends_as_its_outcome_says(trace: TaskTrace) -> None:
    assert (trace.status["phase"], trace.status["attempts"]) == ("Succeeded", 1)
    assert trace.status["result"] == {"greeting": "Hello, Ada!", "attempt": 1}


@pytest.mark.parametrize("place", range(2), ids=list(MOST_FILES))
def test_task_passes_no_more_files_than_before(trace: TaskTrace, place: int) -> None:
    leg = trace.legs[place]
    found, most = count(leg.files), MOST_FILES[leg.name]
    assert found[0] <= most[0], leg.files
    assert found[1] <= most[1], leg.files


def test_task_passes_no_more_files_on_both_ways_than_before(trace: TaskTrace) -> None:
    found = count(trace.files)
    assert found[0] <= MOST_FILES_OF_BOTH[0], trace.files
    assert found[1] <= MOST_FILES_OF_BOTH[1], trace.files


def test_task_passes_no_long_file(trace: TaskTrace) -> None:
    lengths = {file: lines_of(file) for leg in trace.legs for file in leg.files}
    assert {file: lines for file, lines in lengths.items() if lines > MOST_LINES} == {}


def test_trace_includes_effects_callbacks_and_generated_methods(trace: TaskTrace) -> None:
    def functions(leg: Leg) -> set[str]:
        return {name for entered in leg.entered.values() for name in entered}

    to_publish, to_status, to_acknowledgement = map(functions, trace.legs)
    assert {"Informer._watch", "TaskRunner._publish", "Publisher.publish"} <= to_publish
    assert {"Channel.consume.<locals>.deliver", "TaskRunner._write_status"} <= to_status
    assert {"TaskRunner._write_status.<locals>.on_result", "Channel.ack"} <= to_acknowledgement
    assert "controller/tasks/effects.py" in trace.to_publish.files  # dataclasses only


def test_trace_leaves_out_what_comes_before_and_after(trace: TaskTrace) -> None:
    assert trace.to_publish.files[0] == "kubernetes/informer.py"
    assert trace.to_publish.files[-1] == "amqp/publisher.py"
    assert trace.to_status.files[0] == "amqp/channel.py"
    assert trace.to_status.files[-2:] == ("kubernetes/client.py", "kubernetes/lease.py")


def test_trace_leaves_out_what_others_do_meanwhile(trace: TaskTrace) -> None:
    """Under load their work may fall into any leg, and must not count as the Task's way."""
    busy = asyncio.run(trace_task(meanwhile=lambda engine: engine._links.unbind_all_keys()))
    assert [leg.files for leg in busy.legs] == [leg.files for leg in trace.legs]
    for leg in (busy.to_publish, busy.to_status):
        assert "controller/queues/broker_link.py" in leg.beside
