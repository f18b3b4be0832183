"""Leader election by a Lease: one operator leads at a time.

Contract:

* `LeaderElector.acquire` returns when this process holds the Lease. The Lease of another holder is
  acquired only after it has been unchanged for its whole duration, by this process's own monotonic
  clock: clocks of different machines are never compared.
* `LeaderElector.renew_until_lost` renews, and returns when the Lease is lost: another process holds
  it, or the last successful renewal *began* longer ago than the renew deadline. The deadline is
  shorter than the duration, so this process stops leading before another can start.
* If the event loop hangs, a watchdog thread logs where, and ends the process after that deadline.
* The Lease says up to which resource version its holder has dealt with everything: that of a
  renewal some seconds ago. The next leader reads there what happened while nobody led.
* `LeaderElector.release` clears the holder, so that the next leader need not wait.

The actions of a late leader are refused elsewhere: a final phase by the API server, outcomes by
their tokens.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from taskqueue.kubernetes.client import ApiClient, ApiError
from taskqueue.logs import EventLog
from taskqueue.timestamps import to_rfc3339

log = EventLog(__name__)

#: Between two looks of the watchdog.
_WATCHDOG_SECONDS = 0.2
#: Annotation with the resource version up to which the holder has dealt with everything.
DONE_VERSION = "taskqueue.dev/done-version"
#: That is the version of so many renewals ago.
SETTLED_RENEWALS = 10
#: How many calls of an event loop that hangs are logged.
_LOGGED_CALLS = 12
#: Exit code of a process whose event loop hung past the renew deadline.
EXIT_HUNG = 70


@dataclass(frozen=True, slots=True)
class LeaseTiming:
    """Times of leader election, in seconds.

    Attributes:
        duration: how long others wait for a holder that does not renew.
        renew_deadline: a holder that could not renew for this long stops leading.
        period: between renewals; another holder's Lease is read twice in it.
    """

    duration: int = 6
    renew_deadline: float = 5.0
    period: float = 1.0

    def __post_init__(self) -> None:
        """Refuse times that are not safe.

        Raises:
            ValueError: two could lead, or a holder would stop because of one late request.
        """
        if self.renew_deadline + 2 * _WATCHDOG_SECONDS >= self.duration:
            raise ValueError(f"{self}: the renew deadline is too close to the duration")
        if self.period + 2 * self.request_seconds > self.renew_deadline:
            raise ValueError(f"{self}: a request that hangs leaves no time for another")

    @property
    def request_seconds(self) -> float:
        """How long a request may take: one that hangs leaves time for another."""
        return 0.375 * self.renew_deadline


class LeaseLock:
    """Reads and writes one Lease object; a race between writers is a conflict (409).

    Args:
        client: with a request timeout below the renew deadline.
        namespace: of the Lease.
        name: of the Lease.
    """

    def __init__(self, client: ApiClient, namespace: str, name: str) -> None:
        self._client = client
        self._collection = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"
        self._path = f"{self._collection}/{name}"
        self._metadata = {"namespace": namespace, "name": name}

    async def read(self) -> dict[str, Any] | None:
        """Return the Lease, or None if it does not exist.

        Raises:
            ApiError: refused or unreachable.
        """
        try:
            return await self._client.get(self._path)
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    async def create(self, spec: Mapping[str, Any]) -> dict[str, Any]:
        """Create the Lease.

        Raises:
            ApiError: refused or unreachable; 409 if it exists.
        """
        return await self._client.request(
            "POST", self._collection, body=_lease(self._metadata, spec)
        )

    async def replace(self, lease: Mapping[str, Any], spec: Mapping[str, Any]) -> dict[str, Any]:
        """Replace the Lease that was read.

        Raises:
            ApiError: refused or unreachable; 409 if it has changed since, by its resourceVersion.
        """
        return await self._client.request("PUT", self._path, body=_lease(lease["metadata"], spec))


class LeaderElector:
    """Acquires, renews and releases the Lease of one process.

    Args:
        lock: reads and writes the Lease.
        identity: of this process; unique.
        timing: of waiting and renewing.
        clock: wall time in seconds since the epoch, for the people who read the Lease.
        end_process: called by the watchdog with the exit code.

    Attributes:
        is_settled: returns whether this process has dealt with everything that is not younger than
            `SETTLED_RENEWALS` renewals; set by whoever leads.
        done_version: up to which resource version everything was dealt with when this process began
            to lead; "": not known.
    """

    def __init__(
        self,
        lock: LeaseLock,
        identity: str,
        *,
        timing: LeaseTiming | None = None,
        clock: Callable[[], float] = time.time,
        end_process: Callable[[int], object] = os._exit,
    ) -> None:
        self._lock = lock
        self._identity = identity
        self._timing = timing or LeaseTiming()
        self._clock = clock
        self._end_process = end_process
        self.is_settled: Callable[[], bool] = lambda: True
        self.done_version = ""
        self._lease: dict[str, Any] | None = None
        #: Resource versions of the last renewals; the first is what the Lease says.
        self._versions: deque[str] = deque(maxlen=SETTLED_RENEWALS)
        self._deadline = self._watchdog_deadline = 0.0
        self._holding = threading.Event()

    @property
    def is_leader(self) -> bool:
        """Whether this process leads: no other can hold the Lease yet."""
        return self._seconds_left() > 0

    async def acquire(self) -> None:
        """Wait until this process holds the Lease."""
        seen: tuple[Any, ...] | None = None
        since = self._now()
        while True:
            try:
                begun = self._now()
                lease = await self._with_timeout(self._lock.read())
                spec = (lease or {}).get("spec") or {}
                record = tuple(spec.get(key) for key in _RENEWAL_FIELDS)
                if record != seen:
                    seen, since = record, self._now()
                wait = spec.get("leaseDurationSeconds") or self._timing.duration
                if not spec.get("holderIdentity") or self._now() - since >= wait:
                    await self._acquire(lease, spec)
                    self._extend_deadline(begun)
                    log.info("leader.elected", identity=self._identity)
                    return
                log.debug("leader.waiting", holder=spec.get("holderIdentity"))
            except ApiError as error:
                if error.status != 409:
                    log.warning("leader.acquire_failed", error=str(error))
            await asyncio.sleep(self._timing.period / 2)

    async def renew_until_lost(self) -> None:
        """Renew the Lease; return when this process no longer leads."""
        self._holding.set()
        watchdog = threading.Thread(
            target=self._end_hung_process,
            args=[threading.get_ident()],
            name="lease watchdog",
            daemon=True,
        )
        watchdog.start()
        try:
            while True:
                await asyncio.sleep(min(self._timing.period, max(self._seconds_left(), 0.0)))
                if self._seconds_left() <= 0:
                    log.error("leader.deadline_passed", identity=self._identity)
                    return
                try:
                    begun = self._now()
                    await self._with_timeout(self._renew())
                    self._extend_deadline(begun)
                except ApiError as error:
                    log.warning("leader.renewal_failed", error=str(error))
                    if error.status == 409 and await self._resolve_conflict():
                        return
        finally:
            self._holding.clear()

    async def release(self) -> None:
        """Let another process lead at once; if this fails, it has to wait for the duration."""
        self._deadline = 0.0
        if self._lease is None:
            return
        try:
            released = self._lock.replace(self._marked(self._lease), self._spec(holder=""))
            await self._with_timeout(released)
            log.info("leader.released", identity=self._identity)
        except ApiError as error:
            log.warning("leader.release_failed", error=str(error))
        self._lease = None

    async def _acquire(self, lease: Mapping[str, Any] | None, spec: Mapping[str, Any]) -> None:
        transitions = int(spec.get("leaseTransitions") or 0)
        if lease is None:
            self._lease = await self._with_timeout(self._lock.create(self._spec(self._identity)))
            return
        metadata = lease["metadata"]
        annotations = metadata.get("annotations") or {}
        done = str(annotations.get(DONE_VERSION) or metadata.get("resourceVersion", ""))
        acquired = self._spec(self._identity, transitions=transitions + 1)
        self._versions.clear()
        self._versions.append(done)
        self._lease = await self._with_timeout(self._lock.replace(self._marked(lease), acquired))
        self.done_version = done

    async def _renew(self) -> None:
        assert self._lease is not None  # noqa: S101  (acquire comes before hold)
        spec = self._spec(self._identity)
        self._lease = await self._lock.replace(self._marked(self._lease), spec)
        if self.is_settled():
            self._versions.append(str(self._lease["metadata"].get("resourceVersion", "")))

    def _marked(self, lease: Mapping[str, Any]) -> dict[str, Any]:
        """Return a Lease that says up to where this process has dealt with everything."""
        done = self._versions[0] if self._versions else ""
        annotations = {**(lease["metadata"].get("annotations") or {}), DONE_VERSION: done}
        return {**lease, "metadata": {**lease["metadata"], "annotations": annotations}}

    async def _resolve_conflict(self) -> bool:
        """Read the Lease again after a conflict; return whether another process holds it."""
        try:
            lease = await self._with_timeout(self._lock.read())
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

    async def _with_timeout(self, request: Any) -> Any:
        """Abandon a request early enough to try once more before the deadline."""
        try:
            async with asyncio.timeout(self._timing.request_seconds):
                return await request
        except TimeoutError as late:
            raise ApiError(0, "Timeout", "the API server did not answer in time") from late

    def _extend_deadline(self, begun: float) -> None:
        # From before the request: others count from when the API server handled it.
        self._deadline = begun + self._timing.renew_deadline
        # The watchdog cannot ask a loop that hangs for the time.
        self._watchdog_deadline = time.monotonic() + self._seconds_left()

    def _seconds_left(self) -> float:
        return self._deadline - self._now()

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()

    def _end_hung_process(self, loop_thread: int) -> None:
        """End the process if the event loop hangs past the deadline.

        The margin is what a loop that runs needs to notice by itself; it ends before another
        process can acquire the Lease.
        """
        margin = (self._timing.duration - self._timing.renew_deadline) / 2
        while self._holding.is_set():
            time.sleep(_WATCHDOG_SECONDS)
            if time.monotonic() > self._watchdog_deadline + margin:
                log.error(
                    "leader.loop_hung",
                    identity=self._identity,
                    late_seconds=round(time.monotonic() - self._watchdog_deadline, 1),
                    where=_innermost_calls(loop_thread),
                )
                self._end_process(EXIT_HUNG)
                return


def _innermost_calls(thread: int) -> list[str]:
    """Return where a thread is, the innermost call first, as ``function (file:line)``."""
    frame = sys._current_frames().get(thread)
    calls = traceback.extract_stack(frame, limit=_LOGGED_CALLS) if frame else []
    return [f"{call.name} ({call.filename}:{call.lineno})" for call in reversed(calls)]


#: Fields that change with each renewal.
_RENEWAL_FIELDS = ("holderIdentity", "renewTime", "leaseTransitions")


def _lease(metadata: Mapping[str, Any], spec: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": dict(metadata),
        "spec": dict(spec),
    }
