"""The properties of an AMQP message, as pika has them: for code that knows messages, not pika."""

from __future__ import annotations

from pika.spec import BasicProperties

__all__ = ["BasicProperties"]
