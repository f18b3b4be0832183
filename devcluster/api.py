"""The few requests to a new cluster's API server that bring it to life.

kubectl would do, but starting it some dozens of times while the node starts on two cores costs
more than the node does.
"""

import json
import ssl
import urllib.request
from pathlib import Path
from typing import Any

#: Seconds that a request may take.
_TIMEOUT_S = 10.0


class ApiServer:
    """An API server, spoken to as its administrator."""

    def __init__(self, server: str, pki: Path) -> None:
        self._server = server
        trust = ssl.create_default_context(cafile=pki / "ca.crt")
        trust.load_cert_chain(pki / "admin.crt", pki / "admin.key")
        # A proxy of the environment has no business between this machine and itself.
        self._opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=trust)
        )

    def get(self, path: str) -> dict[str, Any]:
        """Return an object.

        Raises:
            OSError: the server does not answer, or not with the object.
        """
        answer: dict[str, Any] = json.loads(self._request(path))
        return answer

    def get_text(self, path: str) -> str:
        """Return what is at a path that is no object.

        Raises:
            OSError: as for `get`.
        """
        return self._request(path).decode()

    def create(self, path: str, content: dict[str, Any]) -> None:
        """Create an object in the collection at the path; one that exists is left as it is.

        Raises:
            OSError: as for `get`.
        """
        try:
            self._request(path, json.dumps(content).encode())
        except urllib.request.HTTPError as error:
            if error.code != 409:
                raise

    def patch(self, path: str, content: dict[str, Any]) -> None:
        """Change an object by a JSON merge patch.

        Raises:
            OSError: as for `get`.
        """
        self._request(path, json.dumps(content).encode(), "PATCH", "application/merge-patch+json")

    def _request(
        self,
        path: str,
        body: bytes | None = None,
        method: str | None = None,
        content_type: str = "application/json",
    ) -> bytes:
        headers = {"Content-Type": content_type}
        request = urllib.request.Request(self._server + path, body, headers, method=method)  # noqa: S310
        with self._opener.open(request, timeout=_TIMEOUT_S) as answer:
            content: bytes = answer.read()
            return content
