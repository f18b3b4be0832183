"""The properties of an AMQP message, for code that must not import pika."""

from __future__ import annotations

from pika.spec import BasicProperties

__all__ = ["BasicProperties"]
