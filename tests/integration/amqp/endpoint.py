"""A real RabbitMQ as the tests see it: its address, and virtual hosts and users of their own."""

from __future__ import annotations

import base64
import json
import urllib.request
from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import parse_qs, quote, urlsplit

from taskqueue.amqp.parameters import BrokerParameters


class Rabbitmq(Protocol):
    """What the `rabbitmq` fixture gives."""

    @property
    def host(self) -> str: ...
    @property
    def port(self) -> int: ...
    @property
    def management_port(self) -> int: ...
    @property
    def username(self) -> str: ...
    @property
    def password(self) -> str: ...


@dataclass(frozen=True)
class Endpoint:
    """A RabbitMQ named by hand, in the environment variable TASKQUEUE_TEST_RABBITMQ.

    The form is ``amqp://user:password@host:port?management_port=15672``.
    """

    host: str
    port: int
    management_port: int
    username: str
    password: str = field(repr=False)

    @classmethod
    def from_uri(cls, uri: str) -> Endpoint:
        parts = urlsplit(uri)
        options = parse_qs(parts.query)
        return cls(
            host=parts.hostname or "127.0.0.1",
            port=parts.port or 5672,
            management_port=int(options.get("management_port", ["15672"])[0]),
            username=parts.username or "guest",
            password=parts.password or "guest",
        )


class Management:
    """The management API, as far as tests need it."""

    def __init__(self, rabbitmq: Rabbitmq) -> None:
        self._base = f"http://{rabbitmq.host}:{rabbitmq.management_port}/api"
        self._credentials = f"{rabbitmq.username}:{rabbitmq.password}".encode()

    def request(self, method: str, *path: str, body: dict[str, Any] | None = None) -> Any:
        """Ask, and return the answer's JSON, or None for an empty one."""
        url = "/".join([self._base, *(quote(part, safe="") for part in path)])
        request = urllib.request.Request(  # noqa: S310  # an address of the test's own
            url,
            method=method,
            data=json.dumps(body or {}).encode(),
            headers={
                "Content-Type": "application/json",
                "Authorization": f"Basic {base64.b64encode(self._credentials).decode()}",
            },
        )
        with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
            text = answer.read()
        return json.loads(text) if text else None

    def permit(self, vhost: str, user: str, *, configure: str, write: str, read: str) -> None:
        body = {"configure": configure, "write": write, "read": read}
        self.request("PUT", "permissions", vhost, user, body=body)


@dataclass(frozen=True)
class VirtualHost:
    """A virtual host that belongs to one test."""

    name: str
    parameters: BrokerParameters
    management: Management
