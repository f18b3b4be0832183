"""Fixtures that several modules share."""

from tests.unit.controller.queues.broker_session_case import broker

__all__ = ["broker"]
