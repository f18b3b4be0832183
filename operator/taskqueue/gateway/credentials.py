"""Whose credential a request to the API server has: the caller's, and never the gateway's own.

* A request with a bearer token is made with that token, and with nothing else: the connections for
  it have no client certificate, which the API server would take for the caller.
* A request without one is refused, except on a desk: there it is made with the kubeconfig, and the
  gateway listens on the loopback interface only.
* All callers share the connections. The API server authenticates each request by its header.
"""

from __future__ import annotations

import copy
import ssl
from dataclasses import dataclass, replace

from taskqueue.client.access import ApiConnection
from taskqueue.gateway.problems import Problem
from taskqueue.kubernetes.client import ApiAccess, ApiClient

#: Connections to the API server for requests; each watch has one more.
_CONNECTIONS = 64

#: Longer ones are nobody's.
_TOKEN_LENGTH = 16 * 1024


@dataclass(frozen=True, slots=True)
class TokenAccess(ApiAccess):
    """The API server, with the token of a caller."""

    token: str

    async def headers(self) -> dict[str, str]:
        """Return the caller's authorization header."""
        return {"Authorization": f"Bearer {self.token}"}


class Credentials:
    """Makes connections to the API server.

    Args:
        access: how the gateway itself reaches it.
        desk: whether callers without a token act as the gateway does.
    """

    def __init__(self, access: ApiAccess, *, desk: bool) -> None:
        self._access = access
        self._desk = desk
        bare = replace(access, ssl_context=_without_certificate(access))
        self._requests = ApiClient(bare, max_connections=_CONNECTIONS)
        self._watches = ApiClient(bare, max_connections=0)
        self._own = ApiConnection(
            requests=ApiClient(access, max_connections=_CONNECTIONS),
            watches=ApiClient(access, max_connections=0),
            namespace="",
        )

    @property
    def own(self) -> ApiConnection:
        """The gateway's own: for Secrets that an installer lets it read, after a review."""
        return self._own

    def connection(self, authorization: str | None) -> ApiConnection:
        """Return a connection with the credential of a request; it need not be closed.

        Raises:
            Problem: 401, there is none.
        """
        if authorization is None and self._desk:
            return self._own
        scheme, _, token = (authorization or "").strip().partition(" ")
        token = token.strip()
        if scheme.lower() != "bearer" or not _is_token(token):
            raise Problem(
                401,
                "Unauthorized",
                "the request has no token: send the header Authorization: Bearer TOKEN, with the "
                "token of a ServiceAccount (kubectl create token NAME)",
                {"WWW-Authenticate": "Bearer"},
            )
        access = TokenAccess(self._access.configuration, None, token)
        return ApiConnection(
            requests=_with_access(self._requests, access),
            watches=_with_access(self._watches, access),
            namespace="",
        )

    async def close(self) -> None:
        """Close all connections."""
        await self._requests.close()
        await self._watches.close()
        await self._own.close()


def _with_access(client: ApiClient, access: ApiAccess) -> ApiClient:
    """Return a client with other credentials and the same connections, which it does not close."""
    other = copy.copy(client)
    other._access = access
    return other


def _is_token(text: str) -> bool:
    return 0 < len(text) <= _TOKEN_LENGTH and all("!" <= character <= "~" for character in text)


def _without_certificate(access: ApiAccess) -> ssl.SSLContext | None:
    """Return a context that proves nobody's identity: a certificate would count before a token."""
    if access.ssl_context is None:
        return None
    configuration = access.configuration
    context = ssl.create_default_context(cafile=configuration.ssl_ca_cert)
    if not configuration.verify_ssl:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
