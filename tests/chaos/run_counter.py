"""Counts runs of handlers from the logs of workers, including workers that have ended since."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter, defaultdict
from contextlib import suppress

import requests

from tests.e2e.api import Refused
from tests.e2e.harness import Harness

_POLL_SECONDS = 0.1

#: Between two reads of the log of a container.
_PAUSE_SECONDS = 0.5

#: A log that sends nothing for so many seconds is asked for again.
_SILENCE = 10.0


class RunCounter:
    """Reads the logs of all containers of a TaskQueue's workers, from their start."""

    def __init__(self, harness: Harness, queue: str = "q") -> None:
        self._harness = harness
        self._queue = queue
        self._lock = threading.Lock()
        #: By uid, the log events of runs that started; each has an id of its own.
        self._begun: dict[str, set[str]] = defaultdict(set)
        #: Containers whose log is being read.
        self._known: set[str] = set()
        #: Those of them of which at least a line was read.
        self._followed: set[str] = set()
        self._closed = threading.Event()
        self._threads = [threading.Thread(target=self._watch, daemon=True)]
        self._threads[0].start()

    @property
    def runs(self) -> Counter[str]:
        """How often each Task's handler started, by uid."""
        with self._lock:
            return Counter({uid: len(runs) for uid, runs in self._begun.items()})

    def wait_followed(self, at_least: int = 1) -> None:
        """Return once so many containers run and the logs of all that run are being read.

        Wait for it before a kill: what a container logs is lost with it if nobody reads yet.
        """

        def followed() -> bool:
            running = set(self._running())
            return len(running) >= at_least and running <= self._followed

        self._harness.until(followed, what=f"following all workers, {at_least} at least")

    def close(self) -> None:
        """Stop watching for containers."""
        self._closed.set()

    def _watch(self) -> None:
        while not self._closed.is_set():
            self._find()
            time.sleep(_POLL_SECONDS)

    def _find(self) -> None:
        for container, pod in self._running().items():
            if container not in self._known:
                self._known.add(container)
                follow = threading.Thread(target=self._follow, args=(container, pod), daemon=True)
                self._threads.append(follow)
                follow.start()

    def _running(self) -> dict[str, str]:
        """Return the names of pods by the ids of their running containers."""
        return {
            one["containerID"]: pod["metadata"]["name"]
            for pod in self._harness.all_pods(self._queue)
            for one in pod["status"].get("containerStatuses", ())
            if "running" in one["state"]
        }

    def _follow(self, container: str, pod: str) -> None:
        path = self._harness.core("pods", pod, "log")
        try:
            with suppress(Refused, requests.RequestException):
                for line in self._harness.api.lines(path, silence=_SILENCE, follow="true"):
                    self._followed.add(container)
                    if line.startswith("{") and '"run.began' in line and line.endswith("}"):
                        event = json.loads(line)
                        with self._lock:
                            self._begun[event["uid"]].add(event["event"])
        finally:
            # The kubelet may end a log early, or send nothing more of it, or be gone with its node:
            # if the container still runs, it is read again.
            time.sleep(_PAUSE_SECONDS)
            self._known.discard(container)
