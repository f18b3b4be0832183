"""The users of a broker in memory, behind the interface of a `ManagementClient`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

from taskqueue.amqp.parameters import BrokerParameters, ManagementEndpoint
from taskqueue.direct.management_http import ManagementClient, ManagementError

BROKER = BrokerParameters(host="rabbit", port=5672, username="op", password="p", virtual_host="v")
ENDPOINT = ManagementEndpoint(url="http://rabbit:15672", username="admin", broker=BROKER)


class FakeManagement:
    """What a broker has; `before` may raise, as a request that is refused or lost.

    Attributes:
        users: password by name; "": nobody can log in.
        permissions: by virtual host and user.
        topics: write patterns by virtual host and user, then by exchange.
        asked: the requests, as method and path.
    """

    def __init__(self) -> None:
        self.users: dict[str, str] = {"op": "p"}
        self.permissions: dict[tuple[str, str], dict[str, str]] = {}
        self.topics: dict[tuple[str, str], dict[str, str]] = {}
        self.asked: list[str] = []
        self.before: Callable[[str], None] = lambda request: None
        self.after: Callable[[], None] = lambda: None
        self.open = 0

    def connect(self, endpoint: ManagementEndpoint = ENDPOINT) -> ManagementClient:
        self.open += 1
        return cast(ManagementClient, _Client(self, endpoint))

    def logs_in(self, name: str, password: str) -> bool:
        return bool(password) and self.users.get(name) == password

    def delete_user(self, name: str) -> None:
        del self.users[name]
        for kept in (self.permissions, self.topics):
            for key in [key for key in kept if key[1] == name]:
                del kept[key]


class _Client:
    def __init__(self, broker: FakeManagement, endpoint: ManagementEndpoint) -> None:
        self._broker = broker
        self.endpoint = endpoint

    async def close(self) -> None:
        self._broker.open -= 1

    def _begin(self, method: str, path: tuple[str, ...]) -> None:
        request = " ".join([method, *path])
        self._broker.asked.append(request)
        self._broker.before(request)

    async def get(self, *path: str, query: Mapping[str, str] | None = None) -> Any:
        self._begin("GET", path)
        broker = self._broker
        match path:
            case ("users",):
                return [{"name": name} for name in broker.users]
            case ("users", name) if name in broker.users:
                return {"name": name}
            case ("users", name, "permissions"):
                return [
                    {"user": name, "vhost": v} for v, user in broker.permissions if user == name
                ]
            case ("users", name, "topic-permissions"):
                return [
                    {"user": name, "vhost": v, "exchange": exchange}
                    for (v, user), exchanges in broker.topics.items()
                    for exchange in exchanges
                    if user == name
                ]
        raise ManagementError("answered 404", 404)

    async def put(self, *path: str, body: Mapping[str, Any]) -> None:
        self._begin("PUT", path)
        broker = self._broker
        match path:
            case ("users", name):
                assert body["tags"] == ""
                broker.users[name] = body.get("password", "")
            case ("permissions", virtual_host, name):
                broker.permissions[virtual_host, name] = dict(body)
            case ("topic-permissions", virtual_host, name):
                patterns = broker.topics.setdefault((virtual_host, name), {})
                patterns[body["exchange"]] = body["write"]
            case _:
                raise AssertionError(path)
        broker.after()

    async def delete(self, *path: str) -> None:
        self._begin("DELETE", path)
        broker = self._broker
        match path:
            case ("users", name) if name in broker.users:
                broker.delete_user(name)
            case ("permissions", virtual_host, name):
                broker.permissions.pop((virtual_host, name), None)
            case ("topic-permissions", virtual_host, name):
                broker.topics.pop((virtual_host, name), None)
        broker.after()
