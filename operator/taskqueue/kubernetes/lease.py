"""One operator leads at a time: a Lease, held by renewing it and handed on when leaving.

Contract:

* `LeaderElector.acquire` returns when this process holds the Lease. A Lease of another is taken
  over only after it was seen unchanged for its whole duration, by this process' own monotonic
  clock: clocks of different machines are never compared.
* `LeaderElector.hold` renews, and returns when the Lease is lost. Lost means: another holds it, or
  the last renewal that succeeded *began* longer ago than the renew deadline, which is shorter than
  the duration; so this process has stopped leading before another can start.
* Should the event loop itself hang, a watchdog thread ends the process at that deadline.
* `LeaderElector.release` empties the holder, so that the next one need not wait.

What a late leader could still do is guarded elsewhere: final phases by the API server, outcomes by
tokens.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from taskqueue.kubernetes.client import ApiClient, ApiError
from taskqueue.logs import EventLog
from taskqueue.timestamps import to_rfc3339

log = EventLog(__name__)

#: Exit code of a process whose event loop hung past the renew deadline.
EXIT_HUNG = 70


@dataclass(frozen=True, slots=True)
class LeaseTiming:
    """How long each step may take, in seconds.

    Attributes:
        duration: others wait this long for a holder that went silent.
        renew_deadline: a holder that could not renew for this long stops leading.
        period: between renewals, and between looks at another's Lease.
    """

    duration: int = 12
    renew_deadline: float = 8.0
    period: float = 2.0


class LeaseStore(Protocol):
    """Where the Lease is kept; `ApiError` as an `ApiClient` raises it."""

    async def read(self) -> dict[str, Any] | None:
        """Return the Lease, or None when there is none."""

    async def create(self, spec: Mapping[str, Any]) -> dict[str, Any]:
        """Create it; 409 when somebody else did."""

    async def replace(self, lease: Mapping[str, Any], spec: Mapping[str, Any]) -> dict[str, Any]:
        """Replace what was read; 409 when somebody else changed it since."""


class ApiLeaseStore:
    """A Lease object of the API server.

    Args:
        client: with a request timeout below the renew deadline.
        namespace: of the operator.
        name: of the Lease.
    """

    def __init__(self, client: ApiClient, namespace: str, name: str) -> None:
        self._client = client
        self._collection = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"
        self._path = f"{self._collection}/{name}"
        self._metadata = {"namespace": namespace, "name": name}

    async def read(self) -> dict[str, Any] | None:
        """Return the Lease, or None when there is none."""
        try:
            return await self._client.get(self._path)
        except ApiError as problem:
            if problem.status == 404:
                return None
            raise

    async def create(self, spec: Mapping[str, Any]) -> dict[str, Any]:
        """Create it."""
        return await self._client.request(
            "POST", self._collection, body=_lease(self._metadata, spec)
        )

    async def replace(self, lease: Mapping[str, Any], spec: Mapping[str, Any]) -> dict[str, Any]:
        """Replace it; the resourceVersion read makes a race a conflict."""
        return await self._client.request("PUT", self._path, body=_lease(lease["metadata"], spec))


class LeaderElector:
    """See the module's contract.

    Args:
        store: of the Lease.
        identity: of this process; no other may have it.
        timing: of waiting and renewing.
        clock: wall time in seconds, only for people who read the Lease.
        end_process: what the watchdog calls.
    """

    def __init__(
        self,
        store: LeaseStore,
        identity: str,
        *,
        timing: LeaseTiming | None = None,
        clock: Callable[[], float] = time.time,
        end_process: Callable[[int], object] = os._exit,
    ) -> None:
        self._store = store
        self._identity = identity
        self._timing = timing or LeaseTiming()
        self._clock = clock
        self._end_process = end_process
        self._lease: dict[str, Any] | None = None
        self._deadline = 0.0
        self._holding = threading.Event()

    @property
    def certain(self) -> bool:
        """Whether nobody else can lead yet, by this process's own clock."""
        return self._left() > 0

    async def acquire(self) -> None:
        """Return when this process leads."""
        seen: tuple[Any, ...] | None = None
        since = self._now()
        while True:
            try:
                begun = self._now()
                lease = await self._limited(self._store.read())
                spec = (lease or {}).get("spec") or {}
                record = tuple(spec.get(key) for key in _RECORD)
                if record != seen:
                    seen, since = record, self._now()
                wait = spec.get("leaseDurationSeconds") or self._timing.duration
                if not spec.get("holderIdentity") or self._now() - since >= wait:
                    await self._take(lease, spec)
                    self._renewed(begun)
                    log.info("leader.elected", identity=self._identity)
                    return
                log.debug("leader.waiting", holder=spec.get("holderIdentity"))
            except ApiError as problem:
                if problem.status != 409:
                    log.warning("leader.lease_unreachable", problem=str(problem))
            await asyncio.sleep(self._timing.period / 2)

    async def hold(self) -> None:
        """Renew for as long as this process leads; return when it does not any more."""
        self._holding.set()
        watchdog = threading.Thread(target=self._watch, name="lease watchdog", daemon=True)
        watchdog.start()
        try:
            while True:
                await asyncio.sleep(min(self._timing.period, max(self._left(), 0.0)))
                if self._left() <= 0:
                    log.error("leader.deadline_passed", identity=self._identity)
                    return
                try:
                    begun = self._now()
                    await self._limited(self._renew())
                    self._renewed(begun)
                except ApiError as problem:
                    log.warning("leader.renewal_failed", problem=str(problem))
                    if problem.status == 409 and await self._lost():
                        return
        finally:
            self._holding.clear()

    async def release(self) -> None:
        """Let the next one lead at once; a failure only means that it has to wait."""
        if self._lease is None:
            return
        try:
            await self._limited(self._store.replace(self._lease, self._spec(holder="")))
            log.info("leader.released", identity=self._identity)
        except ApiError as problem:
            log.warning("leader.release_failed", problem=str(problem))
        self._lease = None

    async def _take(self, lease: Mapping[str, Any] | None, spec: Mapping[str, Any]) -> None:
        turns = int(spec.get("leaseTransitions") or 0)
        if lease is None:
            self._lease = await self._limited(self._store.create(self._spec(self._identity)))
        else:
            taken = self._spec(self._identity, transitions=turns + 1)
            self._lease = await self._limited(self._store.replace(lease, taken))

    async def _renew(self) -> None:
        assert self._lease is not None  # noqa: S101  (acquire comes before hold)
        self._lease = await self._store.replace(self._lease, self._spec(self._identity))

    async def _lost(self) -> bool:
        """After a conflict: tell whether another holds the Lease, and read it anew if not."""
        try:
            lease = await self._limited(self._store.read())
        except ApiError:
            return False  # the deadline decides
        holder = ((lease or {}).get("spec") or {}).get("holderIdentity")
        if holder != self._identity:
            log.error("leader.lost", identity=self._identity, holder=holder)
            self._lease = None
            return True
        self._lease = lease
        return False

    def _spec(self, holder: str, *, transitions: int | None = None) -> dict[str, Any]:
        before: Mapping[str, Any] = (self._lease or {}).get("spec") or {}
        now = to_rfc3339(self._clock()).replace("Z", "000Z")  # a MicroTime
        return {
            "holderIdentity": holder,
            "leaseDurationSeconds": self._timing.duration if holder else 1,
            "acquireTime": before.get("acquireTime", now) if transitions is None else now,
            "renewTime": now,
            "leaseTransitions": (
                before.get("leaseTransitions", 0) if transitions is None else transitions
            ),
        }

    async def _limited(self, request: Any) -> Any:
        """Give up a request in time for the deadline to be kept."""
        try:
            async with asyncio.timeout(self._timing.renew_deadline / 2):
                return await request
        except TimeoutError as late:
            raise ApiError(0, "Timeout", "the API server did not answer in time") from late

    def _renewed(self, begun: float) -> None:
        # Counted from before the request: others count from when the server handled it.
        self._deadline = begun + self._timing.renew_deadline

    def _left(self) -> float:
        return self._deadline - self._now()

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()

    def _watch(self) -> None:
        """End the process if the loop does not even notice that the deadline has passed.

        The margin is what a loop that turns needs to notice by itself; it ends before another
        process may take over.
        """
        margin = (self._timing.duration - self._timing.renew_deadline) / 2
        last, last_change = self._deadline, time.monotonic()
        while self._holding.is_set():
            time.sleep(0.2)
            if self._deadline != last:
                last, last_change = self._deadline, time.monotonic()
            elif time.monotonic() - last_change > self._timing.renew_deadline + margin:
                log.error("leader.loop_hung", identity=self._identity)
                self._end_process(EXIT_HUNG)
                return


#: What tells one renewal from another.
_RECORD = ("holderIdentity", "renewTime", "leaseTransitions")


def _lease(metadata: Mapping[str, Any], spec: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": dict(metadata),
        "spec": dict(spec),
    }
