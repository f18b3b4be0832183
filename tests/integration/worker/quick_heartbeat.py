"""Imported by a worker under test: its connections agree on a heartbeat of one second."""

from __future__ import annotations

from taskqueue.amqp.connection import connect

assert connect.__kwdefaults__ is not None
connect.__kwdefaults__["heartbeat_seconds"] = 1
