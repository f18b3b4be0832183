"""Prints how the Tasks of one TaskQueue end: a listener on the exchange taskqueue.events.

It needs nothing of the operator's code, only pika, and is written to be copied. What it shows:

* its own queue, bound to the exchange for one TaskQueue, that keeps events while nobody reads;
* an event is acknowledged when it has been dealt with, so none is lost to a crash;
* an event may come twice, and is then known by its ``source`` and ``id``;
* a broker that goes away is waited for.

    AMQP_URI=amqp://user:password@host:5672/ python subscriber.py shop/images
"""

import argparse
import json
import os
import signal
import sys
import time
from collections import OrderedDict
from typing import Any

import pika
import pika.exceptions

EXCHANGE = "taskqueue.events"

#: What the broker does for a listener that is away: it keeps 100,000 events, drops the oldest
#: beyond, and drops the queue after a day. `drop-head`, not `reject-publish`: a full queue that
#: rejects costs every listener time, and this one the newest events.
QUEUE_ARGUMENTS = {
    "x-queue-type": "quorum",
    "x-max-length": 100_000,
    "x-overflow": "drop-head",
    "x-expires": 24 * 60 * 60 * 1000,
}
#: How many events are known again. Repeats come soon: after a restart of operator or broker.
REMEMBERED = 10_000


class Seen:
    """The last events dealt with."""

    def __init__(self) -> None:
        self._keys: OrderedDict[tuple[str, str], None] = OrderedDict()

    def is_new(self, event: dict[str, Any]) -> bool:
        key = (event["source"], event["id"])
        if key in self._keys:
            return False
        self._keys[key] = None
        if len(self._keys) > REMEMBERED:
            self._keys.popitem(last=False)
        return True


def line(event: dict[str, Any]) -> str:
    """Return what a person wants to know of an event."""
    data = event["data"]
    who = event["subject"]
    if "correlationId" in data:  # no Task: a message somebody published without the operator
        who += f" (direct message, correlation id {data['correlationId'] or 'none'})"
    attempts = f"{data['attempts']} attempt{'' if data['attempts'] == 1 else 's'}"
    text = f"{event['time']} {who} {data['phase']} after {attempts}"
    if "error" in data:
        return f"{text}: {data['error']['type']}: {data['error']['message']}"
    if "result" in data:
        return f"{text}: {json.dumps(data['result'])}"
    return text


def listen(uri: str, task_queue: str, queue: str, seen: Seen) -> None:
    """Connect, bind and print until the connection is lost."""
    connection = pika.BlockingConnection(pika.URLParameters(uri))
    try:
        channel = connection.channel()
        channel.queue_declare(queue, durable=True, arguments=QUEUE_ARGUMENTS)
        # `#` stands for task.succeeded, task.failed and task.cancelled.
        key = f"{task_queue.replace('/', '.')}.#"
        channel.queue_bind(queue, EXCHANGE, key)
        channel.basic_qos(prefetch_count=100)
        print(f"listening to {EXCHANGE}, key {key}", file=sys.stderr, flush=True)
        for method, _, body in channel.consume(queue):
            event = json.loads(body)
            if seen.is_new(event):
                print(line(event), flush=True)
            channel.basic_ack(method.delivery_tag)
    finally:
        if connection.is_open:
            connection.close()


def main() -> None:
    parser = argparse.ArgumentParser(description="Print how the Tasks of a TaskQueue end.")
    parser.add_argument("task_queue", metavar="NAMESPACE/QUEUE")
    parser.add_argument(
        "--queue", help="name of the queue to read; default subscriber.NAMESPACE.QUEUE"
    )
    options = parser.parse_args()
    uri = os.environ.get("AMQP_URI")
    if not uri:
        parser.error("set AMQP_URI, such as amqp://user:password@host:5672/")
    queue = options.queue or f"subscriber.{options.task_queue.replace('/', '.')}"

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    seen, pause = Seen(), 1
    while True:
        began = time.monotonic()
        try:
            listen(uri, options.task_queue, queue, seen)
        except KeyboardInterrupt:
            return
        except pika.exceptions.AMQPError as error:
            # Away, restarting, or the exchange is not there before the operator has come up.
            if time.monotonic() - began > 60:
                pause = 1
            print(f"{error!r}; retrying in {pause} s", file=sys.stderr, flush=True)
            time.sleep(pause)
            pause = min(2 * pause, 30)


if __name__ == "__main__":
    main()
