"""Counts runs of handlers from the logs of workers, including workers that have ended since."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from contextlib import suppress

import requests

from tests.e2e.api import Refused
from tests.e2e.harness import Harness

_POLL_SECONDS = 0.2


class RunCounter:
    """Reads the logs of all containers of a TaskQueue's workers, from their start."""

    def __init__(self, harness: Harness, queue: str = "q") -> None:
        self._harness = harness
        self._queue = queue
        self._lock = threading.Lock()
        self._begun: Counter[str] = Counter()
        self._known: set[str] = set()
        self._closed = threading.Event()
        self._threads = [threading.Thread(target=self._watch, daemon=True)]
        self._threads[0].start()

    @property
    def runs(self) -> Counter[str]:
        """How often each Task's handler started, by uid."""
        with self._lock:
            return Counter(self._begun)

    @property
    def containers(self) -> int:
        """How many containers there have been."""
        return len(self._known)

    def close(self) -> None:
        """Stop watching for containers."""
        self._closed.set()

    def _watch(self) -> None:
        while not self._closed.is_set():
            with suppress(Refused, requests.RequestException):
                self._find()
            time.sleep(_POLL_SECONDS)

    def _find(self) -> None:
        harness = self._harness
        selector = f"taskqueue.dev/queue={self._queue}"
        for pod in harness.api.get(harness.core("pods"), labelSelector=selector)["items"]:
            for one in pod["status"].get("containerStatuses", ()):
                container = one.get("containerID", "")
                if "running" in one["state"] and container not in self._known:
                    self._known.add(container)
                    follow = threading.Thread(
                        target=self._follow, args=(pod["metadata"]["name"],), daemon=True
                    )
                    self._threads.append(follow)
                    follow.start()

    def _follow(self, pod: str) -> None:
        with suppress(Refused, requests.RequestException):
            for line in self._harness.api.lines(
                self._harness.core("pods", pod, "log"), follow="true"
            ):
                if line.startswith("{") and '"run.began' in line:
                    with self._lock:
                        self._begun[json.loads(line)["uid"]] += 1
