"""Speaks for commit 0829e12: run as a program with that commit's ``operator/`` as PYTHONPATH.

    older_side.py write     prints its messages, as `older_messages` has them
    older_side.py read      reads ours: a request in JSON a line, an answer a line

Names are imported as that commit calls them, and only there.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import sys
import time
import uuid
from importlib import import_module
from typing import Any

NOW = 1_700_000_000.25
UID = "0b1c5f0e-1a2b-4c3d-8e9f-0123456789ab"
WORKER = "images-worker-5d9c-x2x7q"


def write() -> dict[str, Any]:
    """Return messages of each kind, made by the functions with which workers and operator do."""
    time.time = lambda: NOW
    uuid.uuid4 = lambda: uuid.UUID(int=0x0829E12)
    for name in ("events", "heartbeats", "worker_messages"):
        module = import_module(f"taskqueue.broker.{name}")
        module.__dict__.update(_PROCESS="0829e12", _numbers=itertools.count(1))
    return {
        "WORK": _work(),
        "EVENTS": _events(),
        "HEARTBEATS": _heartbeats(),
        "COMMANDS": _commands(),
        "DEAD_LETTERS": _dead_letters(),
        "COMPLETIONS": _completions(),
    }


def read(request: dict[str, Any]) -> Any:
    """Return what that commit reads in a message, as JSON.

    Args:
        request: ``kind`` of the message, its ``body`` in UTF-8, and its ``properties``, encoded
            as in a frame, in hexadecimal digits.
    """
    body = request.get("body", "").encode()
    match request["kind"]:
        case "work":
            contract = import_module("taskqueue.broker.contract")
            return _plain(contract.parse_work(_properties(request), body))
        case "dead letter":
            contract = import_module("taskqueue.broker.contract")
            return _plain(contract.claimed_attempt(_properties(request)))
        case "event":
            return _plain(import_module("taskqueue.broker.events").decode(body))
        case "heartbeat":
            return _plain(import_module("taskqueue.broker.heartbeats").decode(body))
        case "command":
            return _plain(import_module("taskqueue.broker.orders").decode(body))
        case "token":
            return _keys().verify(*request["arguments"])
    raise ValueError(request["kind"])


def _plain(value: Any) -> Any:
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return value
    fields = dataclasses.asdict(value)
    if isinstance(fields.get("body"), bytes):
        fields["body"] = fields["body"].decode()
    return {"is": type(value).__name__, **fields}


def _properties(request: dict[str, Any]) -> Any:
    properties = import_module("pika.spec").BasicProperties()
    properties.decode(bytes.fromhex(request["properties"]))
    return properties


def _keys() -> Any:
    token = import_module("taskqueue.domain.token")
    return token.TokenKeys("k1", {"k1": b"a key of thirty-two bytes or more"})


def _message(**changes: Any) -> Any:
    contract = import_module("taskqueue.broker.contract")
    fields = {
        "namespace": "shop",
        "queue": "images",
        "task": "resize-1",
        "uid": UID,
        "handler": "resize",
        "attempt": 2,
        "max_attempts": 3,
        "epoch": 1,
        "token": _keys().sign(UID, 2, 1),
        "max_deliveries": 3,
        "timeout_seconds": 300,
        "body": b'{"url":"https://example.com/a.png","width":640}',
        **changes,
    }
    return contract.WorkMessage(**fields)


def _published(properties: Any, body: bytes) -> dict[str, Any]:
    said = {
        "content_type": properties.content_type,
        "type": properties.type,
        "message_id": properties.message_id,
        "correlation_id": properties.correlation_id,
        "delivery_mode": properties.delivery_mode,
        "timestamp": properties.timestamp,
        "app_id": properties.app_id,
        "headers": properties.headers,
    }
    return {
        "properties": {name: value for name, value in said.items() if value is not None},
        "body": body.decode(),
    }


def _work() -> dict[str, Any]:
    trace = {
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "tracestate": "vendor=1",
    }
    messages = {
        "a Task's": _message(),
        "of a concurrency key": _message(fence=41),
        "traced": _message(trace=trace),
    }
    found = {name: _published(each.properties(), each.body) for name, each in messages.items()}
    direct = import_module("taskqueue.broker.direct_messages")
    for name, handler in (("direct", "resize"), ("direct, of the default handler", None)):
        properties = direct.direct_properties(handler=handler, correlation_id="order-7")
        found[name] = _published(properties, b'{"width":640}')
    return found


def _events() -> dict[str, Any]:
    events = import_module("taskqueue.worker.attempt_events")
    outcome = import_module("taskqueue.worker.outcome")
    executor = import_module("taskqueue.worker.executor")
    sdk = import_module("taskqueue.worker.sdk")
    kinds = import_module("taskqueue.broker.events").EventKind
    orders = import_module("taskqueue.broker.orders").OrderKind
    message = _message()

    class ConnectionRefused(Exception):
        """An application's."""

    results = {
        "succeeded": outcome.succeeded({"width": 640, "none": None}, 1.5),
        "succeeded without a result": outcome.succeeded(None, 0.25),
        "failed by an exception": outcome.raised(ConnectionRefused("no route"), 2.0),
        "failed for good": outcome.raised(sdk.Fail("no such page", type="NotFound"), 0.5),
        "wants a later retry": outcome.raised(sdk.Retry("rate limit", after=30), 0.5),
        "timed out": events.timed_out(300),
        "lost its workers": events.worker_lost(3),
        "of an unknown handler": outcome.unknown_handler("resize", ["crop", "echo"]),
        "with a result that is no JSON": outcome.succeeded({"at": object()}, 0.5, handler="resize"),
        "with a result that is too large": outcome.succeeded("x" * 20_000, 0.5),
    }
    made = {
        name: events.event_of(message, events.kind_of(result), worker=WORKER, result=result)
        for name, result in results.items()
    }
    made["started"] = events.event_of(message, kinds.STARTED, worker=WORKER)
    for name, order in (("cancelled", orders.CANCEL), ("released", orders.RELEASE)):
        made[name] = events.stopped_event(message, order, worker=WORKER, seconds=4.0)
    attempt = executor.Attempt(
        handler=None,
        payload={},
        task="shop/images",
        uid="order-7",
        queue="images",
        attempt=2,
        max_attempts=3,
        timeout_seconds=300,
    )
    for name, result in (
        ("a direct message succeeded", outcome.succeeded({"width": 640}, 1.5)),
        ("a direct message failed", outcome.raised(sdk.Fail("no such page", type="NotFound"), 1.5)),
    ):
        made[name] = events.direct_event(
            attempt, result, namespace="shop", worker=WORKER, message_id="message-7"
        )
    return {
        name: {"key": event.key, "body": json.loads(event.body)} for name, event in made.items()
    }


def _heartbeats() -> dict[str, Any]:
    heartbeats = import_module("taskqueue.broker.heartbeats")
    token = _keys().sign(UID, 2, 1)
    running = (
        heartbeats.RunningAttempt(UID, token, 40, "page 4 of 10"),
        heartbeats.RunningAttempt("another-uid", "k1.0123"),
    )
    usual = heartbeats.Heartbeat(
        namespace="shop",
        queue="images",
        pod=WORKER,
        node="node-1",
        cpus=1.5,
        slots=4,
        handlers=("crop", "resize"),
        running=running,
        state=heartbeats.WorkerState.READY,
        busy=3,
    )
    idle = {"running": (), "busy": 0}
    beats = {
        "busy": usual,
        "idle, of nobody knows where": dataclasses.replace(usual, node="", cpus=0.0, **idle),
        "draining": dataclasses.replace(usual, state=heartbeats.WorkerState.DRAINING),
        "stopped": dataclasses.replace(usual, state=heartbeats.WorkerState.STOPPED, **idle),
    }
    return {
        name: {"key": beat.routing_key, "body": json.loads(heartbeats.encode(beat))}
        for name, beat in beats.items()
    }


def _commands() -> dict[str, Any]:
    orders = import_module("taskqueue.broker.orders")
    kinds, token = orders.OrderKind, _keys().sign(UID, 2, 1)
    given = {
        "cancel": orders.Order(kinds.CANCEL, token=token, uid=UID),
        "release": orders.Order(kinds.RELEASE, token=token, uid=UID),
        "drain": orders.Order(kinds.DRAIN, pod=WORKER, namespace="shop"),
    }
    return {name: json.loads(orders.order_message(order).body) for name, order in given.items()}


def _dead_letters() -> dict[str, Any]:
    direct = import_module("taskqueue.broker.direct_messages")
    messages = import_module("taskqueue.broker.worker_messages")
    contract = import_module("taskqueue.broker.contract")
    work = _message()
    of_a_producer = direct.direct_properties(handler="resize", correlation_id="order-7")
    where = {"namespace": "shop", "queue": "images"}
    failed = messages.dead_letter(of_a_producer, b"{}", reason="NotFound: no page", **where)
    broken = messages.dead_letter(work.properties(), b"[]", reason="no JSON object", **where)
    parked = dataclasses.replace(  # as the operator does with what it cannot read
        broken, headers={**broken.headers, contract.EXCHANGE_HEADER: contract.OUTCOMES_EXCHANGE}
    )
    dead = {"direct": failed, "a worker's": broken, "the operator's": parked}
    return {name: _published(each.properties(), each.body) for name, each in dead.items()}


def _completions() -> dict[str, Any]:
    model = import_module("taskqueue.domain.task")
    task_events = import_module("taskqueue.broker.task_events")
    events = import_module("taskqueue.broker.events")
    task = model.Task(
        namespace="shop",
        name="resize-1",
        uid=UID,
        generation=1,
        created=NOW - 9,
        spec=model.TaskSpec(queue="images", handler="resize"),
    )
    ended = {"attempts": 2, "start_time": NOW - 3, "completion_time": NOW, "worker": WORKER}
    attempt = model.Attempt(2, "Failed", NOW - 3, NOW, WORKER, "NotFound", "no such page")
    statuses = {
        "succeeded": model.TaskStatus(phase=model.Phase.SUCCEEDED, result={"width": 640}, **ended),
        "failed": model.TaskStatus(
            phase=model.Phase.FAILED,
            reason="NonRetryable",
            message="attempt 2 of 3: NotFound: no such page",
            history=(attempt,),
            **ended,
        ),
        "cancelled": model.TaskStatus(
            phase=model.Phase.CANCELLED, reason="CancelRequested", message="by spec.cancel", **ended
        ),
    }
    found = {name: task_events.task_event(task, status) for name, status in statuses.items()}
    for name in ("a direct message succeeded", "a direct message failed"):
        event = events.decode(json.dumps(_events()[name]["body"]).encode())
        found[name] = task_events.direct_event(event, arrived_with=event.routing_key, now=NOW)
    return {
        name: {"key": each.routing_key, "body": json.loads(each.encode())}
        for name, each in found.items()
    }


def main() -> None:
    """Write, or answer until the input ends; what is refused has its reason in the answer."""
    if sys.argv[1] == "write":
        print(json.dumps(write()))
        return
    refusal = import_module("taskqueue.broker.contract").ContractError
    for line in sys.stdin:
        try:
            answer = {"value": read(json.loads(line))}
        except refusal as error:
            answer = {"refused": str(error)}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
