"""Records every version of a namespace's objects with a watch in the background.

A test waits for the version it expects. Afterwards it can check what happened on the way: how often
an object was written, and whether a finished Task ever changed. Only while the API server starts
again may versions be missed: a watch cannot go on from where it was, and begins with a list.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress

import requests

from tests.e2e.api import Api, Body, Refused

#: The code of a watch that asks for versions which the API server does not have any more.
_EXPIRED = 410

#: Between two watches.
_PAUSE_SECONDS = 0.1


class Observations:
    """All versions of the objects of one list, oldest first, from now on."""

    def __init__(self, api: Api, path: str) -> None:
        self._api = api
        self._path = path
        self._changed = threading.Condition()
        self._versions: dict[str, list[Body]] = defaultdict(list)
        self._deleted: set[str] = set()
        self._closed = False
        self._version = api.get(path, limit="1")["metadata"]["resourceVersion"]
        threading.Thread(target=self._watch, name=f"watch {path}", daemon=True).start()

    def versions(self, name: str) -> list[Body]:
        """Return every version of the objects of this name, oldest first."""
        with self._changed:
            return list(self._versions[name])

    def all_versions(self) -> list[Body]:
        """Return every version of every object."""
        with self._changed:
            return [version for versions in self._versions.values() for version in versions]

    def present(self) -> list[Body]:
        """Return the latest version of every object that is not deleted."""
        with self._changed:
            return [
                versions[-1]
                for name, versions in self._versions.items()
                if versions and name not in self._deleted
            ]

    def names(self) -> list[str]:
        """Return the names of all objects ever seen."""
        with self._changed:
            return list(self._versions)

    def wait(
        self,
        name: str,
        until: Callable[[Body], bool],
        *,
        what: str,
        since: int | None = None,
        seconds: float = 60,
    ) -> Body:
        """Return the first version of an object of which ``until`` holds.

        Only versions from the present one on count, or from the one with index ``since``.

        Raises:
            AssertionError: there was none in time; the message has the last status.
        """
        deadline = time.monotonic() + seconds
        with self._changed:
            checked = max(len(self._versions[name]) - 1, 0) if since is None else since
            while True:
                versions = self._versions[name]
                for version in versions[checked:]:
                    if until(version):
                        return version
                checked = len(versions)
                left = deadline - time.monotonic()
                if left <= 0 or not self._changed.wait(left):
                    last = versions[-1].get("status") if versions else "it was never seen"
                    raise AssertionError(f"{name}: not {what} within {seconds:g} s: {last}")

    def wait_deleted(self, name: str, *, seconds: float = 60) -> None:
        """Return when the object is deleted."""
        with self._changed:
            assert self._changed.wait_for(lambda: name in self._deleted, seconds), (
                f"{name} was not deleted within {seconds:g} s"
            )

    def close(self) -> None:
        """Stop watching."""
        self._closed = True

    def _watch(self) -> None:
        while not self._closed:
            with suppress(requests.RequestException, Refused):
                for event in self._api.watch(self._path, self._version):
                    if self._closed:
                        return
                    if event["type"] == "ERROR":
                        assert event["object"]["code"] == _EXPIRED, event
                        self._record_list()
                        break
                    self._record(event["type"], event["object"])
            time.sleep(_PAUSE_SECONDS)

    def _record_list(self) -> None:
        """Record what has changed, as a list shows it, and watch from there."""
        listed = self._api.get(self._path)
        present = {one["metadata"]["name"]: one for one in listed["items"]}
        with self._changed:
            seen = {name: versions[-1] for name, versions in self._versions.items() if versions}
        for name, last in seen.items():
            if name not in present:
                self._record("DELETED", last)
        for name, version in present.items():
            if name not in seen or seen[name]["metadata"] != version["metadata"]:
                self._record("MODIFIED", version)
        self._version = listed["metadata"]["resourceVersion"]

    def _record(self, kind: str, version: Body) -> None:
        assert kind in ("ADDED", "MODIFIED", "DELETED"), version
        name = version["metadata"]["name"]
        self._version = version["metadata"]["resourceVersion"]
        with self._changed:
            if kind == "DELETED":
                self._deleted.add(name)
            else:
                self._deleted.discard(name)
                self._versions[name].append(version)
            self._changed.notify_all()
