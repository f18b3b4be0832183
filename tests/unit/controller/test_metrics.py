"""The figures that other autoscalers read: a number, or nothing at all."""

from __future__ import annotations

from prometheus_client import REGISTRY

from taskqueue.controller.metrics import remove_queue_metrics, report_backlog

KEY = ("shop", "figures")
NAMES = ("taskqueue_backlog", "taskqueue_ready", "taskqueue_running")


def told() -> list[float | None]:
    labels = dict(zip(("namespace", "queue"), KEY, strict=True))
    return [REGISTRY.get_sample_value(name, labels) for name in NAMES]


def test_what_is_unknown_is_absent_and_neither_zero_nor_not_a_number() -> None:
    report_backlog(KEY, backlog=5, ready=0, running=3)
    assert told() == [5, 0, 3]
    report_backlog(KEY, backlog=4, ready=None, running=None)
    assert told() == [4, None, None]
    report_backlog(KEY, backlog=None, ready=None, running=None)
    assert told() == [None, None, None]
    report_backlog(KEY, backlog=0, ready=0, running=0)
    assert told() == [0, 0, 0]


def test_a_queue_that_is_gone_has_no_figures() -> None:
    report_backlog(KEY, backlog=5, ready=2, running=3)
    remove_queue_metrics(KEY)
    assert told() == [None, None, None]
    remove_queue_metrics(KEY)
