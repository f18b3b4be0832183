"""A small client of the API server: a kubectl for every look would cost more than the look."""

from __future__ import annotations

import base64
import json
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import requests
import yaml

Body = dict[str, Any]

#: The API group of the resources.
GROUP = "taskqueue.dev"
VERSION = "v1alpha1"
TASKQUEUE_API = f"/apis/{GROUP}/{VERSION}"


class Refused(Exception):
    """The API server said no."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"{status}: {text}")
        self.status = status
        self.text = text


class Api:
    """Requests to the API server as a kubeconfig's user; usable from any thread."""

    def __init__(self, kubeconfig: Path) -> None:
        config = yaml.safe_load(kubeconfig.read_text())
        current = config["current-context"]
        context = _named(config["contexts"], current)["context"]
        cluster = _named(config["clusters"], context["cluster"])["cluster"]
        user = _named(config["users"], context["user"])["user"]
        #: Its URL, without a slash at the end.
        self.server: str = cluster["server"].rstrip("/")
        self._files = tempfile.TemporaryDirectory()
        self._ca = self._file("ca", cluster["certificate-authority-data"])
        self._certificate = (
            self._file("crt", user["client-certificate-data"]),
            self._file("key", user["client-key-data"]),
        )
        self._of_thread = threading.local()

    def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        content_type: str = "application/json",
        **query: str,
    ) -> Body:
        """Send a request; return the answer.

        Raises:
            Refused: with the API server's words.
        """
        answer = self._session().request(
            method,
            self.server + path,
            params=query,
            data=None if body is None else json.dumps(body),
            headers={"Content-Type": content_type},
            timeout=30,
        )
        if answer.status_code >= 400:
            raise Refused(answer.status_code, answer.text)
        parsed: Body = answer.json()
        return parsed

    def get(self, path: str, **query: str) -> Body:
        """GET an object or a list."""
        return self.request("GET", path, **query)

    def text(self, path: str) -> str:
        """GET what is not JSON."""
        answer = self._session().get(self.server + path, timeout=30)
        if answer.status_code >= 400:
            raise Refused(answer.status_code, answer.text)
        return answer.text

    def headers(self, path: str, *, user: str) -> Mapping[str, str]:
        """GET as another user; return the headers of the answer."""
        answer = self._session().get(
            self.server + path, headers={"Impersonate-User": user}, timeout=30
        )
        if answer.status_code >= 400:
            raise Refused(answer.status_code, answer.text)
        return answer.headers

    def lines(self, path: str, *, silence: float = 660, **query: str) -> Iterator[str]:
        """Yield the lines of a text as they come, until the server ends it or is silent so long."""
        with self._session().get(
            self.server + path, params=query, stream=True, timeout=(10, silence)
        ) as answer:
            if answer.status_code >= 400:
                raise Refused(answer.status_code, answer.text)
            for line in answer.iter_lines(chunk_size=None):
                yield line.decode()

    def patch(self, path: str, body: Body) -> Body:
        """PATCH by JSON merge."""
        return self.request("PATCH", path, body, content_type="application/merge-patch+json")

    def watch(self, path: str, version: str) -> Iterator[Body]:
        """Yield the events after a resource version, until the server ends the watch.

        Raises:
            Refused: with the API server's words.
        """
        with self._session().get(
            self.server + path,
            params={"watch": "1", "resourceVersion": version, "timeoutSeconds": "600"},
            stream=True,
            timeout=(10, 660),
        ) as answer:
            if answer.status_code >= 400:  # while a CRD is being changed, say
                raise Refused(answer.status_code, answer.text)
            for line in answer.iter_lines(chunk_size=None):
                yield json.loads(line)

    def _session(self) -> requests.Session:
        session = getattr(self._of_thread, "session", None)
        if session is None:
            session = self._of_thread.session = requests.Session()
            session.verify = self._ca
            session.cert = self._certificate
            session.trust_env = False
        assert isinstance(session, requests.Session)
        return session

    def _file(self, name: str, encoded: str) -> str:
        path = Path(self._files.name, name)
        path.write_bytes(base64.b64decode(encoded))
        return str(path)


def _named(entries: list[Body], name: str) -> Body:
    return next(entry for entry in entries if entry["name"] == name)
