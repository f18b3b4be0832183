"""The gauges that other autoscalers read: a number, or no sample."""

from __future__ import annotations

from prometheus_client import REGISTRY

from taskqueue.controller.metrics import remove_queue_metrics, report_messages

KEY = ("shop", "metrics")
NAMES = (
    "taskqueue_backlog",
    "taskqueue_ready",
    "taskqueue_running",
    "taskqueue_dead_letters",
)


def samples() -> list[float | None]:
    labels = dict(zip(("namespace", "queue"), KEY, strict=True))
    return [REGISTRY.get_sample_value(name, labels) for name in NAMES]


def test_gauges_have_no_sample_while_the_value_is_unknown() -> None:
    report_messages(KEY, backlog=5, ready=0, running=3, dead_letters=7)
    assert samples() == [5, 0, 3, 7]
    report_messages(KEY, backlog=4, ready=None, running=None, dead_letters=None)
    assert samples() == [4, None, None, None]
    report_messages(KEY, backlog=None, ready=None, running=None, dead_letters=None)
    assert samples() == [None] * 4
    report_messages(KEY, backlog=0, ready=0, running=0, dead_letters=0)
    assert samples() == [0, 0, 0, 0]


def test_gauges_are_removed_with_the_queue() -> None:
    report_messages(KEY, backlog=5, ready=2, running=3, dead_letters=7)
    remove_queue_metrics(KEY)
    assert samples() == [None] * 4
    remove_queue_metrics(KEY)
