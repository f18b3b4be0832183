"""A client for what is asked on behalf of many namespaces: they take turns for its connections."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from taskqueue.kubernetes.client import ApiAccess, ApiClient
from taskqueue.kubernetes.namespace_turns import RequestGate, namespace_of


class SharedApiClient(ApiClient):
    """An `ApiClient` whose requests wait for their turn, as `RequestGate` has it.

    The timeout of a request does not include that wait. A watch does not wait.

    Args:
        access: address and credentials.
        max_connections: size of the pool, and requests under way at once.
        may_write: as of `ApiClient`; asked when the turn has come.
    """

    def __init__(
        self, access: ApiAccess, *, max_connections: int = 8, may_write: Callable[[], bool]
    ) -> None:
        super().__init__(access, max_connections=max_connections, may_write=may_write)
        self._gate = RequestGate(max_connections)

    async def send(self, method: str, path: str, **options: Any) -> bytes:
        """Send one request in its turn; arguments and errors as of `ApiClient.send`."""
        async with self._gate.turn(namespace_of(path)):
            return await super().send(method, path, **options)
