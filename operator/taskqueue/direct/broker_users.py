"""Makes, limits and deletes the broker users of workers, through the management API.

Every step can be repeated: what is there already is replaced by the same. A user's permissions are
exactly those of `taskqueue.contract.worker_users`: what else it has, in whichever virtual host, is
taken away.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from taskqueue.contract.worker_users import permissions, topic_permissions
from taskqueue.direct.management_http import ManagementClient, ManagementError

#: Most users of one page (RabbitMQ's own limit), and most pages.
_PAGE_SIZE = 500
_MAX_PAGES = 20
_READ_NOTHING = "^$"


class BrokerUsers:
    """The users of one broker, as somebody who may administrate them.

    Args:
        client: asks the broker's management API; its endpoint names the virtual host.
    """

    def __init__(self, client: ManagementClient) -> None:
        self._client = client
        self._virtual_host = client.endpoint.broker.virtual_host

    async def put(self, name: str, password: str, *, namespace: str, queue: str) -> None:
        """Create a user of a TaskQueue's workers, or give it this password; limit what it may do.

        Raises:
            ManagementError: try again: until then it may have fewer permissions, never more.
        """
        await self._client.put("users", name, body={"password": password, "tags": ""})
        await self._remove_others(name, topic_permissions(namespace, queue))
        for exchange, pattern in topic_permissions(namespace, queue).items():
            body = {"exchange": exchange, "write": pattern, "read": _READ_NOTHING}
            await self._client.put("topic-permissions", self._virtual_host, name, body=body)
        # Last: without these it can do nothing, with these alone it could use any routing key.
        await self._client.put(
            "permissions", self._virtual_host, name, body=permissions(namespace, queue)
        )

    async def revoke_password(self, name: str) -> None:
        """Let nobody log in as this user any more; its connections stay open.

        Raises:
            ManagementError: try again.
        """
        if await self.exists(name):
            await self._client.put("users", name, body={"password_hash": "", "tags": ""})

    async def delete(self, names: Iterable[str]) -> None:
        """Delete users that may not exist; the broker closes their connections.

        Raises:
            ManagementError: try again.
        """
        for name in names:
            await self._client.delete("users", name)

    async def list_names(self, prefix: str) -> list[str]:
        """Return the names of users that begin so.

        Raises:
            ManagementError: try again.
        """
        names: list[str] = []
        for page in range(1, _MAX_PAGES + 1):
            query = {"page": str(page), "page_size": str(_PAGE_SIZE), "columns": "name"}
            items, pages = _page(await self._client.get("users", query=query))
            names += (str(item.get("name", "")) for item in items)
            if page >= pages:
                break
        return [name for name in names if name.startswith(prefix)]

    async def exists(self, name: str) -> bool:
        """Return whether there is a user of this name.

        Raises:
            ManagementError: try again.
        """
        try:
            await self._client.get("users", name)
        except ManagementError as problem:
            if problem.status == 404:
                return False
            raise
        return True

    async def _remove_others(self, name: str, exchanges: Iterable[str]) -> None:
        """Take all permissions away but those in our virtual host and on these exchanges."""
        for item in _items(await self._client.get("users", name, "permissions")):
            if item.get("vhost") != self._virtual_host:
                await self._client.delete("permissions", str(item.get("vhost")), name)
        wanted = set(exchanges)
        unwanted = {
            str(item.get("vhost"))
            for item in _items(await self._client.get("users", name, "topic-permissions"))
            if item.get("vhost") != self._virtual_host or item.get("exchange") not in wanted
        }
        for virtual_host in unwanted:
            if virtual_host == self._virtual_host:
                # Without topic permissions every routing key is allowed: nothing in between.
                await self._client.delete("permissions", virtual_host, name)
            await self._client.delete("topic-permissions", virtual_host, name)


def _page(answer: Any) -> tuple[list[dict[str, Any]], int]:
    """Return a page of a list, and how many there are; a broker that knows none sends it whole."""
    if isinstance(answer, dict) and isinstance(answer.get("page_count"), int):
        return _items(answer.get("items")), answer["page_count"]
    return _items(answer), 1


def _items(answer: Any) -> list[dict[str, Any]]:
    if not isinstance(answer, list) or not all(isinstance(item, dict) for item in answer):
        raise ManagementError(
            "unexpected answer: it is not a list: check that the address is RabbitMQ's management "
            "API"
        )
    return answer
