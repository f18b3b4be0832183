"""Celery with one task that does nothing; run as a module it publishes so many messages."""

from __future__ import annotations

import os
import sys

from celery import Celery

QUEUE = "bench-celery"

app = Celery("bench", broker=os.environ["BENCH_BROKER_URI"], set_as_current=True)
app.conf.task_acks_late = True
app.conf.task_default_queue = QUEUE


@app.task(name="noop")
def noop() -> None:
    """Do nothing."""


if __name__ == "__main__":
    with app.producer_or_acquire() as producer:
        for _ in range(int(sys.argv[1])):
            noop.apply_async(producer=producer)
