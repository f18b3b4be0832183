"""Imported by a worker under test: its heartbeats are half a second apart."""

from __future__ import annotations

from taskqueue.worker import heartbeat_sender

vars(heartbeat_sender)["HEARTBEAT_SECONDS"] = 0.5
