"""An API server for status writes alone, without HTTP: it answers as a test says, and checks."""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from dataclasses import dataclass, field
from typing import Any

from taskqueue.kubernetes.client import ApiError
from taskqueue.kubernetes.status_updater import CONCURRENCY


@dataclass(frozen=True)
class Answer:
    """An answer to a PATCH, after ``seconds``; a status of -1: what no client should raise."""

    status: int = 200
    seconds: float = 0.01
    retry_after: float | None = None
    message: str = "as asked"

    @property
    def accepts(self) -> bool:
        return self.status == 200


def path_of(namespace: str, name: str | int) -> str:
    return f"/apis/taskqueue.dev/v1alpha1/namespaces/{namespace}/tasks/{name}/status"


@dataclass
class FakeStatusApi:
    """Takes the place of an `ApiClient`; bodies are numbers."""

    #: The next answers by path, then that of `always`, else success.
    answers: dict[str, deque[Answer]] = field(default_factory=lambda: defaultdict(deque))
    always: dict[str, Answer] = field(default_factory=dict)
    #: The last number accepted, by path.
    written: dict[str, int] = field(default_factory=dict)
    #: Every request: when it began, and for what.
    requests: list[tuple[float, str]] = field(default_factory=list)
    in_flight: set[str] = field(default_factory=set)
    #: Paths whose last write failed, and may be tried again.
    failing: set[str] = field(default_factory=set)
    most_in_flight: int = 0
    most_failing_in_flight: int = 0

    async def request(
        self, method: str, path: str, *, body: bytes, content_type: str, accept: str, levels: int
    ) -> dict[str, Any]:
        assert (method, content_type) == ("PATCH", "application/json-patch+json")
        assert path not in self.in_flight, "two writes of an object at once"
        self.requests.append((asyncio.get_running_loop().time(), path))
        self.in_flight.add(path)
        self.most_in_flight = max(self.most_in_flight, len(self.in_flight))
        failing = len(self.in_flight & self.failing)
        self.most_failing_in_flight = max(self.most_failing_in_flight, failing)
        assert len(self.in_flight) <= CONCURRENCY
        queued = self.answers[path]
        answer = queued.popleft() if queued else self.always.get(path, Answer())
        try:
            await asyncio.sleep(answer.seconds)
        finally:
            self.in_flight.remove(path)
        if answer.accepts:
            self.failing.discard(path)
            self.written[path] = int(body)
            return {"metadata": {"generation": 1, "resourceVersion": body.decode()}}
        if answer.status == -1:
            self.failing.add(path)
            raise RuntimeError("a fault of the client")
        error = ApiError(answer.status, "Test", answer.message, retry_after=answer.retry_after)
        if error.transient:
            self.failing.add(path)
        else:
            self.failing.discard(path)
        raise error
