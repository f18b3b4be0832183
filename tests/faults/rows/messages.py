"""Section A: one message stops nobody's link."""

from __future__ import annotations

import struct

from taskqueue.contract.names import (
    HEARTBEATS_EXCHANGE,
    HEARTBEATS_QUEUE,
    INBOX_QUEUE,
    OUTCOMES_EXCHANGE,
)
from tests.faults.rows import row
from tests.faults.rows.site import PATIENCE, Site
from tests.fuzz import field_tables as tables

_PARKED = "parked with its body, acknowledged; others do not notice"
_MILLISECONDS = b"T" + struct.pack(">Q", 1_764_000_000_000)


def _headers(*entries: tuple[bytes, bytes]) -> bytes:
    return tables.encoded_properties({tables.HEADERS: tables.table(list(entries))})


def _text(name: str, value: bytes) -> bytes:
    return tables.encoded_properties({tables.SHORT_STRINGS[name]: tables.short(value)})


def _outcome(site: Site, properties: bytes, body: bytes, key: bytes | None = None) -> str:
    """Publish an outcome nobody can read, and look whether work goes on."""
    site.queue()
    site.works("before")
    site.publish(OUTCOMES_EXCHANGE, key or f"{site.key}.task.succeeded".encode(), properties, body)
    seen = [site.works(), site.connected(), site.all_acknowledged(INBOX_QUEUE)]
    return "; ".join([site.parked(body), *seen] if key is None else seen)


@row("A1", "a header of type timestamp in milliseconds, to taskqueue.outcomes", _PARKED)
def _milliseconds(site: Site) -> str:
    return _outcome(site, _headers((b"at", _MILLISECONDS)), b"\x00\xffraw")


@row("A2", "the same published as work, between good Tasks", _PARKED)
def _milliseconds_as_work(site: Site) -> str:
    site.queue(slots=4)
    names = site.harness.batch("neighbour", 8, "nap", payload={"seconds": 0.2})
    site.publish("taskqueue.work", site.key, _headers((b"at", _MILLISECONDS)), b"\x00\xffwork")
    ends = site.harness.all_finished(names, seconds=PATIENCE)
    assert {end["phase"] for end in ends} == {"Succeeded"}, "neighbours failed"
    assert {end["attempts"] for end in ends} == {1}, "neighbours were tried again"
    return "; ".join([site.parked(b"\x00\xffwork"), "8 neighbours succeed", site.works()])


@row("A3", "tables nested 500 deep in a header, to taskqueue.outcomes", _PARKED)
def _nested(site: Site) -> str:
    return _outcome(site, _headers((b"deep", tables.nested(500, b"F"))), b"deep")


@row("A4", "a header whose name is not UTF-8, to taskqueue.outcomes", _PARKED)
def _name(site: Site) -> str:
    return _outcome(site, _headers((b"caf\xe9", b"V")), b"name")


@row("A5", "a message id that is not UTF-8, as work", _PARKED)
def _message_id(site: Site) -> str:
    site.queue()
    site.publish("taskqueue.work", site.key, _text("message_id", b"\xff\xfe"), b"{}")
    return "; ".join([site.works(), site.connected(), site.parked(b"{}")])


@row("A6", "a correlation id that is not UTF-8, as work", _PARKED)
def _correlation_id(site: Site) -> str:
    site.queue()
    site.publish("taskqueue.work", site.key, _text("correlation_id", b"\xff\xfe"), b"{}")
    return "; ".join([site.works(), site.connected(), site.parked(b"{}")])


@row(
    "A7", "a routing key that is not UTF-8, to taskqueue.outcomes", "the inbox keeps no slot for it"
)
def _routing_key(site: Site) -> str:
    return _outcome(site, b"\x00\x00", b"key", f"{site.key}.caf".encode() + b"\xe9")


@row("A8", "130,900 bytes of headers and a body that is no JSON, to taskqueue.outcomes", _PARKED)
def _large_headers(site: Site) -> str:
    value = tables.long_string(b"S", b"x" * 130_900)
    return _outcome(site, _headers((b"large", value)), b"no JSON")


@row("A9", "131,000 bytes of headers, as work whose handler fails for good", _PARKED)
def _large_headers_as_work(site: Site) -> str:
    site.queue()
    value = tables.long_string(b"S", b"x" * 130_990)
    values = {
        tables.HEADERS: tables.table([(b"large", value)]),
        tables.SHORT_STRINGS["type"]: tables.short(b"refuse"),
    }
    site.publish("taskqueue.work", site.key, tables.encoded_properties(values), b"[]")
    return "; ".join([site.works(), site.parked(b"[]")])


@row(
    "A10",
    "100 outcomes that are no JSON with a routing key of 255 bytes",
    "the inbox holds none of them",
)
def _slots(site: Site) -> str:
    site.queue()
    site.publish_many(
        OUTCOMES_EXCHANGE, f"{site.key}.".ljust(255, "k"), b"\x00\x00", [b"no JSON"] * 100
    )
    return "; ".join([site.works(), site.all_acknowledged(INBOX_QUEUE)])


@row(
    "A11",
    "a work message with a token whose header tq-namespace has 300 characters",
    "parked; the worker's slot is free",
)
def _long_namespace(site: Site) -> str:
    site.queue()
    whole = {
        b"tq-version": b"I\x00\x00\x00\x01",
        b"tq-namespace": tables.long_string(b"S", b"n" * 300),
        b"tq-queue": tables.long_string(b"S", b"q"),
        b"tq-task": tables.long_string(b"S", b"t"),
        b"tq-token": tables.long_string(b"S", b"k.1"),
        **{
            name: b"I\x00\x00\x00\x01"
            for name in (b"tq-attempt", b"tq-max-attempts", b"tq-epoch", b"tq-max-deliveries")
        },
        b"tq-timeout-seconds": b"I\x00\x00\x00\x1e",
    }
    values = {
        tables.HEADERS: tables.table(list(whole.items())),
        tables.SHORT_STRINGS["type"]: tables.short(b"echo"),
        tables.SHORT_STRINGS["correlation_id"]: tables.short(b"uid-1"),
    }
    site.publish("taskqueue.work", site.key, tables.encoded_properties(values), b"{}")
    return "; ".join([site.works(), site.parked(b"{}")])


@row(
    "A12",
    "3 events of 15 MB of empty lists to taskqueue.outcomes",
    "the operator is not restarted; a Task succeeds",
    alone=True,
)
def _large_events(site: Site) -> str:
    site.queue()
    before = site.restarts()
    body = b'{"data": [' + b"[]," * 5_000_000 + b"[]]}"
    key = f"{site.key}.task.succeeded"
    site.publish_many(OUTCOMES_EXCHANGE, key, b"\x00\x00", [body] * 3)
    seen = site.works()
    restarts = site.restarts() - before
    assert not restarts, f"the operator's container was killed {restarts} times"
    return f"{seen}; no restart"


@row(
    "A13",
    "heartbeats with 2,000 handlers of 253 characters from 1,500 pods that nobody started",
    "the operator is not restarted; a Task succeeds",
    alone=True,
)
def _heartbeats(site: Site) -> str:
    site.queue()
    before = site.restarts()
    handlers = ",".join(f'"{number:0253}"' for number in range(2000))
    for first in range(0, 1500, _HEARTBEATS_AT_ONCE):
        bodies = [
            _heartbeat(site.namespace, f"pod-{number}", handlers)
            for number in range(first, first + _HEARTBEATS_AT_ONCE)
        ]
        key = f"{site.key}.worker.heartbeat"
        site.publish_many(HEARTBEATS_EXCHANGE, key, b"\x00\x00", bodies)
        site.wait_drained(HEARTBEATS_QUEUE)
    seen = site.works()
    restarts = site.restarts() - before
    assert not restarts, f"the operator's container was killed {restarts} times"
    return f"{seen}; no restart"


#: 50 MB: the broker must hold them until the operator has read them.
_HEARTBEATS_AT_ONCE = 100


def _heartbeat(namespace: str, pod: str, handlers: str) -> bytes:
    return (
        f'{{"specversion":"1.0","id":"{pod}","type":"dev.taskqueue.worker.heartbeat.v1",'
        f'"source":"/workers/{pod}","subject":"{namespace}/q","taskqueue":"q","data":{{'
        f'"pod":"{pod}","node":"n","cpus":1,"slots":1,"state":"ready","running":[],'
        f'"handlers":[{handlers}]}}}}'
    ).encode()
