"""What is told on taskqueue.events about one TaskQueue, for a test to wait for."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pika
from pika.adapters.blocking_connection import BlockingChannel, BlockingConnection

from tests.conftest import RabbitMQ
from tests.e2e.api import Body
from tests.e2e.harness import Harness


class Events:
    """The events of one TaskQueue from now on."""

    def __init__(self, channel: BlockingChannel, queue: str) -> None:
        self._channel = channel
        self._queue = queue
        self._seen: list[Body] = []

    def of(self, correlation_id: str, *, seconds: float = 60) -> Body:
        """Return the end of the direct message with this correlation id."""
        return self.wait(
            lambda event: event["data"].get("correlationId") == correlation_id,
            what=f"an end of {correlation_id}",
            seconds=seconds,
        )

    def wait(self, holds: Callable[[Body], bool], *, what: str, seconds: float = 60) -> Body:
        """Return the first event of which ``holds`` holds."""
        deadline = time.monotonic() + seconds
        while True:
            for event in self._seen:
                if holds(event):
                    return event
            assert time.monotonic() < deadline, f"no {what} within {seconds:g} s: {self._seen}"
            method, _, body = self._channel.basic_get(self._queue, auto_ack=True)
            if method is None:
                time.sleep(0.1)
            else:
                self._seen.append(json.loads(body))


def connect(rabbitmq: RabbitMQ, *, virtual_host: str = "/") -> Any:
    """Connect as any program may."""
    credentials = pika.PlainCredentials(rabbitmq.username, rabbitmq.password)
    return BlockingConnection(
        pika.ConnectionParameters(rabbitmq.host, rabbitmq.port, virtual_host, credentials)
    )


@contextmanager
def events_of(harness: Harness, queue: str, *, virtual_host: str = "/") -> Iterator[Events]:
    """Listen to the events of a TaskQueue."""
    connection = connect(harness.rabbitmq, virtual_host=virtual_host)
    try:
        channel = connection.channel()
        name = channel.queue_declare("", exclusive=True).method.queue
        channel.queue_bind(name, "taskqueue.events", f"{harness.namespace}.{queue}.#")
        yield Events(channel, name)
    finally:
        connection.close()
