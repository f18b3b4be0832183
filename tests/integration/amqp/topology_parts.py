"""The parts of a topology as somebody sees and deletes them by hand."""

from __future__ import annotations

import json

from taskqueue.contract.topology import (
    Binding,
    Exchange,
    ExchangeBinding,
    Part,
    Queue,
    operator_topology,
    task_queue_topology,
)
from tests.integration.amqp.endpoint import VirtualHost


def all_parts(namespace: str, queue: str) -> tuple[Part, ...]:
    """Return all that the default installation declares for one TaskQueue."""
    return (*operator_topology(), *task_queue_topology(namespace, queue))


def name_part(part: Part) -> str:
    """Return a short name, for a test's id."""
    match part:
        case Binding(queue, exchange, key):
            return f"binding {exchange} {key} {queue}"
        case ExchangeBinding(destination, source, key):
            return f"binding {source} {key} {destination}"
    return str(part)


def delete_part(vhost: VirtualHost, part: Part) -> None:
    """Delete one part; the broker deletes the bindings of an exchange or queue with it."""
    request = vhost.management.request
    match part:
        case Exchange(name):
            request("DELETE", "exchanges", vhost.name, name)
        case Queue(name):
            request("DELETE", "queues", vhost.name, name)
        case Binding(queue, exchange, key):
            _unbind(vhost, (exchange, "q", queue), key)
        case ExchangeBinding(destination, source, key):
            _unbind(vhost, (source, "e", destination), key)


def _unbind(vhost: VirtualHost, between: tuple[str, str, str], key: str) -> None:
    path = ("bindings", vhost.name, "e", *between)
    found = vhost.management.request("GET", *path)
    (named,) = [each["properties_key"] for each in found if each["routing_key"] == key]
    vhost.management.request("DELETE", *path, named)


def definitions(vhost: VirtualHost) -> set[str]:
    """Return all exchanges, queues and bindings of a virtual host, with their arguments."""
    found = vhost.management.request("GET", "definitions", vhost.name)
    return {
        json.dumps([kind, each], sort_keys=True)
        for kind in ("exchanges", "queues", "bindings")
        for each in found[kind]
    }
