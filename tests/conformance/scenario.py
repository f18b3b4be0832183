"""One scenario: its own TaskQueue, the worker under test behind a proxy, and named checks."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pika.spec import BasicProperties

from taskqueue.amqp.parameters import BrokerParameters
from taskqueue.contract.command import WorkerCommand
from taskqueue.contract.heartbeat import Heartbeat
from taskqueue.contract.names import DIRECT_EXCHANGE, work_queue
from taskqueue.contract.outcome import AttemptEvent, EventKind
from taskqueue.contract.work import WorkMessage
from taskqueue.model.command import CommandKind
from taskqueue.model.worker import WorkerState
from tests.conformance.broker_env import NAMESPACE, POLL_SECONDS, BrokerEnv
from tests.conformance.points import Ledger, Point, Violation, expect
from tests.conformance.proxy import Proxy, open_proxy

#: The default time limit of a check, in seconds; far more than it needs.
SECONDS = 20.0

#: The same after a failure: what follows will likely fail for the same reason.
_SECONDS_AFTER_FAILURE = 5.0

#: Attempts of a direct message, as configured for the workers.
DIRECT_DELIVERIES = 2


@dataclass(frozen=True)
class Trace:
    """The file to which a handler appends its beginnings and ends."""

    path: Path

    def _process_ids(self, event: str) -> list[int]:
        if not self.path.exists():
            return []
        lines = (line.split() for line in self.path.read_text().splitlines())
        return [int(parts[1]) for parts in lines if parts[0] == event]

    @property
    def begun(self) -> list[int]:
        """Process ids of the runs that have begun."""
        return self._process_ids("begin")

    @property
    def ended(self) -> list[int]:
        """Process ids of the runs that have ended."""
        return self._process_ids("end")

    @property
    def most_at_once(self) -> int:
        """The most runs at once."""
        most = now = 0
        for line in self.path.read_text().splitlines() if self.path.exists() else ():
            now += 1 if line.startswith("begin") else -1
            most = max(most, now)
        return most

    async def until(self, *, begun: int = 0, ended: int = 0) -> None:
        """Wait for this many beginnings and ends."""
        while len(self.begun) < begun or len(self.ended) < ended:  # noqa: ASYNC110 - a file
            await asyncio.sleep(POLL_SECONDS)


@dataclass(eq=False)
class Worker:
    """A process of the worker under test."""

    process: asyncio.subprocess.Process
    log: Path

    @property
    def has_exited(self) -> bool:
        """Whether it has ended."""
        return self.process.returncode is not None

    def terminate(self) -> None:
        """Ask it to stop, as Kubernetes does."""
        self.process.send_signal(signal.SIGTERM)

    async def kill(self) -> None:
        """Kill it and what it started, as the node does."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        await self.process.wait()

    async def exit_code(self) -> int:
        """Wait for its end."""
        return await self.process.wait()


def is_alive(pid: int) -> bool:
    """Return whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@dataclass
class Scenario:
    """A running scenario: what its function works with."""

    name: str
    broker_env: BrokerEnv
    ledger: Ledger
    proxy: Proxy
    command: Sequence[str]
    broker: BrokerParameters
    folder: Path
    point: Point
    workers: list[Worker] = field(default_factory=list)

    @property
    def queue(self) -> str:
        """The broker's name of the work queue."""
        return work_queue(NAMESPACE, self.name)

    # Checks.

    def check(
        self, text: str, *, point: Point | None = None, seconds: float = SECONDS
    ) -> AbstractAsyncContextManager[None]:
        """Record whether the body passes."""
        if self.ledger.failed_in(self.name):
            seconds = min(seconds, _SECONDS_AFTER_FAILURE)
        return self.ledger.check(self.name, point or self.point, text, seconds=seconds)

    # The worker.

    async def start(self, *, slots: int = 2, **environment: str) -> Worker:
        """Start a worker."""
        log = self.folder / f"{self.name}-{len(self.workers)}.log"
        with log.open("wb") as output:
            process = await asyncio.create_subprocess_exec(
                *self.command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                env={**os.environ, **self._environment(slots), **environment},
            )
        self.workers.append(Worker(process, log))
        return self.workers[-1]

    async def ready(self, *, slots: int = 2, **environment: str) -> Worker:
        """Start a worker and wait until it consumes.

        Raises:
            Violation: it does not consume in time, or ends.
        """
        before = self.proxy.consumed
        worker = await self.start(slots=slots, **environment)
        ended = asyncio.ensure_future(worker.exit_code())
        consumes = asyncio.ensure_future(self.proxy.until(lambda: self.proxy.consumed > before))
        try:
            async with asyncio.timeout(SECONDS):
                await asyncio.wait({ended, consumes}, return_when=asyncio.FIRST_COMPLETED)
        except TimeoutError:
            raise Violation(f"the worker does not consume {self.queue}") from None
        finally:
            ended.cancel()
            consumes.cancel()
        expect(not worker.has_exited, f"the worker ended: {worker.log.read_text()[-300:]}")
        return worker

    def _environment(self, slots: int) -> Mapping[str, str]:
        return {
            "TASKQUEUE_NAMESPACE": NAMESPACE,
            "TASKQUEUE_QUEUE": self.name,
            "TASKQUEUE_BROKER_HOST": self.broker.host,
            "TASKQUEUE_BROKER_PORT": str(self.broker.port),
            "TASKQUEUE_BROKER_USERNAME": self.broker.username,
            "TASKQUEUE_BROKER_PASSWORD": self.broker.password,
            "TASKQUEUE_BROKER_VHOST": self.broker.virtual_host,
            "TASKQUEUE_CONCURRENCY": str(slots),
            "TASKQUEUE_GRACE_SECONDS": "60",
            "TASKQUEUE_HEALTH_PORT": "0",
            "TASKQUEUE_ATTEMPT_TIMEOUT_SECONDS": "60",
            "TASKQUEUE_MAX_DELIVERIES": str(DIRECT_DELIVERIES),
            "POD_NAME": self.pod,
            "NODE_NAME": "conformance",
        }

    @property
    def pod(self) -> str:
        """The pod name of its workers."""
        return f"{self.name}-pod"

    def trace(self, name: str = "run") -> Trace:
        """Return a trace to name in a payload."""
        return Trace(self.folder / f"{self.name}-{name}.trace")

    # The operator's part.

    async def publish(
        self,
        handler: str,
        trace: Trace | None = None,
        /,
        payload: Mapping[str, Any] | None = None,
        **changes: Any,
    ) -> str:
        """Publish an attempt of a Task and return its token."""
        token = str(changes.pop("token", f"k1.{uuid.uuid4().hex}"))
        headers = changes.pop("headers", {})
        message = WorkMessage(
            **{
                "namespace": NAMESPACE,
                "queue": self.name,
                "task": f"task-{token[-6:]}",
                "uid": str(uuid.uuid4()),
                "handler": handler,
                "attempt": 1,
                "max_attempts": 3,
                "epoch": 0,
                "token": token,
                "max_deliveries": 3,
                "timeout_seconds": 60,
                "body": _body(trace, payload),
                **changes,
            }
        )
        properties = message.properties()
        properties.headers.update(headers)
        for name in [name for name, value in properties.headers.items() if value is None]:
            del properties.headers[name]
        await self.broker_env.send(self.name, properties, message.body)
        return token

    async def publish_direct(
        self,
        handler: str | None,
        trace: Trace | None = None,
        /,
        payload: Mapping[str, Any] | None = None,
        *,
        body: bytes | None = None,
        headers: Mapping[str, Any] | None = None,
        exchange: str = DIRECT_EXCHANGE,
    ) -> str:
        """Publish a direct message and return its correlation id."""
        correlation_id = uuid.uuid4().hex
        properties = BasicProperties(
            type=handler,
            correlation_id=correlation_id,
            message_id=f"m-{correlation_id}",
            delivery_mode=2,
            headers=None if headers is None else dict(headers),
        )
        sent = _body(trace, payload) if body is None else body
        await self.broker_env.send(self.name, properties, sent, exchange=exchange)
        return correlation_id

    async def send_command(self, kind: str, *tokens: str) -> None:
        """Send a command about these tokens."""
        await self.broker_env.send_commands(
            *(WorkerCommand(CommandKind(kind), token=token, uid="u") for token in tokens)
        )

    async def drain(self) -> None:
        """Send the command to drain to the workers of this scenario's pod."""
        await self.broker_env.send_commands(
            WorkerCommand(CommandKind.DRAIN, pod=self.pod, namespace=NAMESPACE)
        )

    async def wait_for_state(self, state: WorkerState, *, number: int = 1) -> Heartbeat:
        """Wait for ``number`` heartbeats with a state; return the last of them."""
        return await self.broker_env.heartbeats.wait(
            self.name,
            lambda heartbeat: heartbeat.pod == self.pod and heartbeat.state is state,
            number=number,
        )

    async def end(self, key: str, *, number: int = 1) -> AttemptEvent:
        """Wait for the end of a token or a direct message."""
        return await self.broker_env.inbox.end(key, number=number)

    async def ends_with(self, key: str, kind: EventKind, error: str | None = None) -> AttemptEvent:
        """Wait for the end of a token, and expect it to be of a kind."""
        event = await self.end(key)
        reported = event.kind.value + (f" ({event.error.type})" if event.error else "")
        expected = kind.value + (f" ({error})" if error else "")
        fits = event.kind is kind and (error is None or error == getattr(event.error, "type", ""))
        expect(fits, f"the outcome is {reported}, not {expected}")
        return event

    async def wait_settled(self) -> None:
        """Wait until the queue is empty and the worker has settled everything."""
        await self.proxy.until(lambda: not self.proxy.unsettled)
        await self.broker_env.wait_for_ready(self.queue, 0)

    async def assert_works(self) -> None:
        """Expect the worker to run a message to its end."""
        token = await self.publish("echo")
        await self.ends_with(token, EventKind.SUCCEEDED)


@asynccontextmanager
async def open_scenario(
    broker_env: BrokerEnv,
    *,
    name: str,
    point: Point,
    ledger: Ledger,
    command: Sequence[str],
    folder: Path,
    declared: bool,
) -> AsyncIterator[Scenario]:
    """Set up a scenario, and remove it with its workers at the end."""
    if declared:
        await broker_env.add_queue(name)
    user = await broker_env.add_user(name)
    queue = work_queue(NAMESPACE, name)
    try:
        async with open_proxy(user, queue) as (proxy, broker):
            scenario = Scenario(
                name=name,
                broker_env=broker_env,
                ledger=ledger,
                proxy=proxy,
                command=command,
                broker=broker,
                folder=folder,
                point=point,
            )
            try:
                yield scenario
            finally:
                for worker in scenario.workers:
                    await worker.kill()
    finally:
        await broker_env.remove_user(user.username)


def _body(trace: Trace | None, payload: Mapping[str, Any] | None) -> bytes:
    traced = {} if trace is None else {"trace": str(trace.path)}
    return json.dumps({**traced, **(payload or {})}).encode()
