"""Writes the latest status of each object, many objects concurrently.

Contract:

* At most one write of an object is in flight. A newer status waits for it, and replaces one that
  already waits. Each callback is called once, with the result of the write that contains its
  status.
* Urgent statuses (those that end something) go first, except for one write in sixteen: a steady
  stream of them must not starve the others. Among equals the namespaces take turns.
* A write that may succeed later is repeated without limit, with the latest status; one that cannot
  ends as `WriteRefused`. Between two tries the object has a growing pause of its own, and no place
  among the writes.
* A namespace in which one object after the other fails is held up: it has one write at a time,
  with growing pauses, until one is answered. The others do not notice.
* What failed before has a quarter of all writes at once, at most: slow failures leave the others
  room.
* A 429 response pauses all writes for as long as the server asks, up to `LONGEST_PAUSE_SECONDS`.
  When others have been written since the last such pause, one to an object or namespace that failed
  before does not: then it is not the server that is busy.
"""

from __future__ import annotations

import asyncio
import contextlib
import random as _random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from taskqueue.kubernetes.client import (
    JSON_PATCH,
    METADATA,
    ApiClient,
    ApiError,
    ErrorKind,
    version_of,
)
from taskqueue.kubernetes.write_turns import (
    NAMESPACE_FAILURES,
    PendingNamespace,
    PendingStatus,
    WriteTurns,
)
from taskqueue.logs import EventLog

log = EventLog(__name__)

#: Writes in flight at once, each on a connection of the updater's own pool.
CONCURRENCY = 16
#: The first pause after a failed write, in seconds; each further one is twice as long, up to the
#: longest.
_FIRST_PAUSE = 0.1
LONGEST_PAUSES = {
    ErrorKind.UNAVAILABLE: 10.0,  # so that everything is written soon when the server is back
    ErrorKind.THROTTLED: 60.0,
    ErrorKind.TRANSIENT: 60.0,
}
#: How long one 429 response pauses all writes at most.
LONGEST_PAUSE_SECONDS = 10.0
#: What has failed so often in a row is not waited for at the end.
_DRAIN_TRIES = 3


@dataclass(frozen=True, slots=True)
class Written:
    """The status is in the API server.

    Attributes:
        generation: of the object; 0 when the response has none.
        version: of the object: a number that grows with every write; 0 when the response has none.
        metadata: of the object.
    """

    generation: int = 0
    version: int = 0
    metadata: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class WriteRefused:
    """The API server will never accept this status; ``status`` is its HTTP status."""

    status: int
    message: str


WriteResult = Written | WriteRefused
OnResult = Callable[[WriteResult], None]


class StatusUpdater:
    """Writes the latest status of each object; nothing is written unless `run` is running.

    Args:
        client: with a connection for each concurrent write.
        concurrency: writes in flight at once.
        on_failure: called with every failure after which the write is tried again.
        random: for the jitter of pauses; returns numbers in [0, 1).

    Attributes:
        clogged: namespaces in which so many statuses wait because writes fail that there should be
            no more of them.
    """

    def __init__(
        self,
        client: ApiClient,
        *,
        concurrency: int = CONCURRENCY,
        on_failure: Callable[[ApiError], None] = lambda _: None,
        random: Callable[[], float] = _random.random,
    ) -> None:
        self.clogged: set[str] = set()
        self._client = client
        self._concurrency = concurrency
        self._on_failure = on_failure
        self._random = random
        self._pending: dict[str, PendingStatus] = {}
        self._namespaces: dict[str, PendingNamespace] = {}
        self._turns = WriteTurns(most_risky=max(concurrency // 4, 1))
        self._group: asyncio.TaskGroup | None = None
        self._in_flight = 0
        self._failing = 0
        #: Ends the pause of all writes after a 429; None: there is none.
        self._pause: asyncio.TimerHandle | None = None
        self._answered_since_pause = False
        self._ended = asyncio.Event()

    def __len__(self) -> int:
        return len(self._pending)

    @property
    def failing(self) -> int:
        """Objects whose last write failed, and is tried again."""
        return self._failing

    def put(self, path: str, body: bytes, on_result: OnResult, *, urgent: bool = False) -> None:
        """Schedule a write of ``body`` to the status subresource at ``path``.

        Args:
            path: of the status subresource; it identifies the object.
            body: JSON patch that replaces the status.
            on_result: called once, when a write of this status or a later one has ended.
            urgent: write it before statuses that are not urgent.
        """
        pending = self._pending.get(path)
        is_new = pending is None
        if pending is None:
            pending = self._pending[path] = PendingStatus(path, self._namespace_of(path))
            pending.namespace.objects += 1
            self._update_clogged(pending.namespace)
        pending.body = body
        pending.callbacks.append(on_result)
        pending.urgent |= urgent
        if is_new or (urgent and pending.namespace.normal.pop(path, None) is not None):
            self._enqueue(pending)
            self._start_writes()

    async def run(self) -> None:
        """Write until cancelled."""
        async with asyncio.TaskGroup() as self._group:
            try:
                self._start_writes()
                await asyncio.Event().wait()
            finally:
                self._group = None

    async def drain(self, seconds: float) -> None:
        """Wait until nothing is left to write but what fails repeatedly, at most this long.

        What waits for its next try is tried at once.
        """
        for pending in self._pending.values():
            if pending.timer is not None:
                pending.timer.cancel()
                self._on_pause_over(pending)
        for namespace in self._namespaces.values():
            if namespace.timer is not None:
                namespace.timer.cancel()
                self._on_probe_due(namespace)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not self._is_drained():
                    self._ended.clear()
                    await self._ended.wait()

    def _is_drained(self) -> bool:
        return not (self._in_flight or self._turns) and all(
            one.failures >= _DRAIN_TRIES or one.namespace.is_held_up
            for one in self._pending.values()
        )

    # Queues.

    def _namespace_of(self, path: str) -> PendingNamespace:
        name = path.partition("/namespaces/")[2].partition("/")[0]
        namespace = self._namespaces.get(name)
        if namespace is None:
            namespace = self._namespaces[name] = PendingNamespace(name)
        return namespace

    def _update_clogged(self, namespace: PendingNamespace) -> None:
        if namespace.is_clogged:
            self.clogged.add(namespace.name)
        else:
            self.clogged.discard(namespace.name)

    def _enqueue(self, pending: PendingStatus) -> None:
        namespace = pending.namespace
        (namespace.urgent if pending.urgent else namespace.normal)[pending.path] = pending
        self._turns.update(namespace)

    def _on_pause_over(self, pending: PendingStatus) -> None:
        pending.timer = None
        pending.namespace.retries[pending.path] = pending
        self._turns.update(pending.namespace)
        self._start_writes()

    def _on_probe_due(self, namespace: PendingNamespace) -> None:
        namespace.timer = None
        self._turns.update(namespace)
        self._start_writes()

    def _start_writes(self) -> None:
        while (
            self._group is not None
            and self._pause is None
            and self._in_flight < self._concurrency
            and (pending := self._turns.pop()) is not None
        ):
            self._in_flight += 1
            self._group.create_task(self._write(pending), name="status write")

    # Writing.

    async def _write(self, pending: PendingStatus) -> None:
        # Read only now: a newer status may have come since its turn came.
        body, callbacks = pending.body, pending.callbacks
        pending.urgent, pending.callbacks = False, []
        result = await self._send(pending.path, body)
        self._in_flight -= 1
        if isinstance(result, ApiError):
            pending.callbacks[:0] = callbacks
            self._on_failed(pending, result)
        else:
            self._on_answered(pending)
        self._turns.on_ended(pending)
        self._start_writes()
        self._ended.set()
        for callback in () if isinstance(result, ApiError) else callbacks:
            try:
                callback(result)
            except Exception as error:  # the others must be called
                log.error("status.callback_failed", exc_info=error, path=pending.path)

    async def _send(self, path: str, body: bytes) -> WriteResult | ApiError:
        """Send one request; an error is one after which it may be sent again."""
        try:
            # Not the object, which may be one that cannot be read.
            answer = await self._client.request(
                "PATCH", path, body=body, content_type=JSON_PATCH, accept=METADATA, levels=2
            )
            metadata = answer.get("metadata") or {}
            return Written(metadata.get("generation", 0), version_of(metadata), metadata)
        except ApiError as error:
            if error.kind is ErrorKind.FINAL:
                return WriteRefused(error.status, error.message)
            return error
        except Exception as error:  # whatever one object causes, the others are written
            log.error("status.write_crashed", exc_info=error, path=path)
            return ApiError(0, "Crashed", f"PATCH {path}: {error!r}")

    def _on_answered(self, pending: PendingStatus) -> None:
        namespace = pending.namespace
        self._answered_since_pause = True
        self._failing -= pending.failures > 0
        namespace.failing -= pending.failures > 0
        pending.failures = 0
        if namespace.is_held_up:
            log.info("status.namespace_resumed", namespace=namespace.name)
        namespace.failures = 0
        if namespace.probe is pending:
            namespace.probe = None
        if pending.callbacks:
            self._enqueue(pending)
            self._update_clogged(namespace)
            return
        self._turns.update(namespace)
        del self._pending[pending.path]
        namespace.objects -= 1
        self._update_clogged(namespace)
        if not namespace.objects:
            del self._namespaces[namespace.name]

    def _on_failed(self, pending: PendingStatus, error: ApiError) -> None:
        namespace, loop = pending.namespace, asyncio.get_running_loop()
        self._on_failure(error)
        self._failing += pending.failures == 0
        namespace.failing += pending.failures == 0
        pending.failures += 1
        if pending.failures.bit_count() == 1:  # the 1st, 2nd, 4th, 8th in a row: no flood
            failures, text = pending.failures, str(error)
            log.warning("status.write_failed", path=pending.path, error=text, failures=failures)
        pause = self._pause_seconds(pending.failures, error)
        pending.timer = loop.call_later(pause, self._on_pause_over, pending)
        fails_alone = pending.is_risky and self._answered_since_pause
        if error.kind is ErrorKind.THROTTLED and not fails_alone:
            self._pause_all(min(pause, LONGEST_PAUSE_SECONDS))
        if namespace.probe is pending:
            namespace.probe = None
        elif namespace.is_held_up or pending.failures > 1:
            self._update_clogged(namespace)
            return
        namespace.failures += 1
        self._update_clogged(namespace)
        if namespace.is_held_up:
            self._hold_up(namespace, error)

    def _hold_up(self, namespace: PendingNamespace, error: ApiError) -> None:
        probes = namespace.failures - NAMESPACE_FAILURES
        if probes == 0:
            hint = None
            if error.status == 403:
                hint = "let the operator's role patch tasks/status there"
            log.warning(
                "status.namespace_held_up", namespace=namespace.name, error=str(error), hint=hint
            )
        pause = self._pause_seconds(probes + 1, error)
        loop = asyncio.get_running_loop()
        if namespace.timer is not None:  # since it was held up the last time
            namespace.timer.cancel()
        namespace.timer = loop.call_later(pause, self._on_probe_due, namespace)
        self._turns.update(namespace)

    def _pause_seconds(self, failures: int, error: ApiError) -> float:
        """Return how long to wait after so many failures in a row."""
        longest = LONGEST_PAUSES[error.kind]
        bound = min(_FIRST_PAUSE * 2.0 ** min(failures - 1, 20), longest)
        asked = min(error.retry_after or 0.0, longest)
        return max(bound * (0.5 + 0.5 * self._random()), asked)

    def _pause_all(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        if self._pause is None:
            self._answered_since_pause = False
        elif self._pause.when() >= loop.time() + seconds:
            return
        else:
            self._pause.cancel()
        self._pause = loop.call_later(seconds, self._resume)

    def _resume(self) -> None:
        self._pause = None
        self._start_writes()
