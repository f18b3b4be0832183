"""The operator process: Lease, engine, kopf, probes; and an orderly stop.

kopf takes over SIGTERM when it starts, and cancels every task that was started after it when it
ends. So the engine starts before kopf, the signal handlers are set again once kopf is up, and on a
signal the engine stops, with its remaining writes, before kopf does.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import uuid
from collections.abc import Awaitable, Coroutine
from dataclasses import dataclass, field
from random import Random
from typing import Any, TypeVar

import kopf

from taskqueue import __version__
from taskqueue.api.common import DNS_LABEL_PATTERN
from taskqueue.contract.names import operator_name
from taskqueue.controller import handlers
from taskqueue.controller.batches.service import BatchService
from taskqueue.controller.completions.webhook_networks import WebhookNetworks
from taskqueue.controller.engine import Engine
from taskqueue.controller.probes import serve_probes
from taskqueue.controller.queues.conditions.settings import ConditionSettings
from taskqueue.controller.schedules.service import ScheduleService
from taskqueue.controller.tasks.task_feed import TaskFeed
from taskqueue.defaults import DEFAULT_INSTALLATION
from taskqueue.kubernetes.batch_codec import BATCHES_PATH
from taskqueue.kubernetes.client import ApiClient, load_access
from taskqueue.kubernetes.deployments import DEPLOYMENTS_PATH
from taskqueue.kubernetes.lease import LeaderElector, LeaseLock, LeaseTiming
from taskqueue.kubernetes.schedule_codec import SCHEDULES_PATH
from taskqueue.kubernetes.task_codec import TASKS_PATH
from taskqueue.kubernetes.taskqueue_codec import QUEUES_PATH
from taskqueue.kubernetes.token_secret import load_token_keys
from taskqueue.kubernetes.watch_scope import EVERYWHERE, WatchScope, permitted
from taskqueue.limits import LABEL_LENGTH
from taskqueue.logs import EventLog

log = EventLog(__name__)

T = TypeVar("T")

#: What the operator lists: namespaces where it may not are left out.
_LISTED = (QUEUES_PATH, TASKS_PATH, BATCHES_PATH, SCHEDULES_PATH, DEPLOYMENTS_PATH)
#: Prefix of the one annotation that kopf writes to a TaskQueue.
_ANNOTATION_PREFIX = "taskqueue.dev"
_KOPF_STOP_SECONDS = 5.0


@dataclass(frozen=True)
class OperatorSettings:
    """How the operator runs.

    Attributes:
        namespace: where the operator runs, with its Lease and its own Secret.
        port: of probes and metrics.
        kubeconfig: path, outside a cluster.
        installation: a DNS label; distinguishes it from other operators that use the same virtual
            host. It is in the names of the inbox, of the Lease and of the Secret with the token
            keys.
        scope: the namespaces that are served.
        conditions: what holds for those of all TaskQueues; None: the defaults.
        networks: that webhooks may be sent to.
        identity: in the Lease; unique for each process.
    """

    namespace: str = "taskqueue-system"
    port: int = 8080
    kubeconfig: str | None = None
    installation: str = DEFAULT_INSTALLATION
    scope: WatchScope = EVERYWHERE
    conditions: ConditionSettings | None = None
    networks: WebhookNetworks = WebhookNetworks()  # noqa: RUF009  (frozen)
    identity: str = field(default_factory=lambda: f"{socket.gethostname()}_{uuid.uuid4().hex[:8]}")

    @classmethod
    def from_environment(cls) -> OperatorSettings:
        """Read POD_NAMESPACE, KUBECONFIG and the variables of docs/install.md.

        Raises:
            ValueError: one of them is not valid.
        """
        installation = os.environ.get("TASKQUEUE_INSTALLATION") or cls.installation
        if not re.fullmatch(DNS_LABEL_PATTERN, installation) or len(installation) > LABEL_LENGTH:
            raise ValueError(
                f"TASKQUEUE_INSTALLATION: {installation!r} is not a DNS label: use at most "
                f"{LABEL_LENGTH} lower-case letters, digits and hyphens, such as team-a"
            )
        namespace = os.environ.get("POD_NAMESPACE") or cls.namespace
        return cls(
            namespace=namespace,
            port=int(os.environ.get("TASKQUEUE_HTTP_PORT") or cls.port),
            kubeconfig=os.environ.get("KUBECONFIG") or None,
            installation=installation,
            scope=_read_scope(os.environ.get("TASKQUEUE_WATCH_NAMESPACES") or ""),
            conditions=ConditionSettings.from_environment(os.environ, operator_namespace=namespace),
            networks=_read_networks(os.environ.get("TASKQUEUE_WEBHOOK_NETWORKS") or ""),
        )


def _read_networks(text: str) -> WebhookNetworks:
    try:
        return WebhookNetworks.parse(text)
    except ValueError as error:
        raise ValueError(f"TASKQUEUE_WEBHOOK_NETWORKS: {error}") from None


def _read_scope(text: str) -> WatchScope:
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    for name in names:
        if not re.fullmatch(DNS_LABEL_PATTERN, name) or len(name) > LABEL_LENGTH:
            raise ValueError(
                f"TASKQUEUE_WATCH_NAMESPACES: {name!r} is not the name of a namespace: give names, "
                "separated by commas, or leave it empty for all namespaces"
            )
    return WatchScope(names)


async def serve(settings: OperatorSettings) -> int:
    """Run the operator until SIGTERM or SIGINT; return the exit code.

    It waits for the Lease first: a second operator is a standby. It keeps up with the Tasks, and is
    ready when it has listed them, so that it can take over at once.
    """
    stop = asyncio.Event()
    _stop_on_signals(stop)
    access = await load_access(settings.kubeconfig)
    timing = LeaseTiming()
    client = ApiClient(access, timeout_seconds=timing.request_seconds)
    lock = LeaseLock(client, settings.namespace, operator_name(settings.installation))
    leadership = LeaderElector(lock, settings.identity, timing=timing)
    feed: TaskFeed | None = None
    engine: Engine | None = None

    def is_ready() -> bool:
        return engine.ready if engine is not None else feed is not None and feed.is_listed

    probes = await serve_probes(settings.port, ready=is_ready)
    try:
        scope = await _first_result(permitted(client, settings.scope, _LISTED), stop)
        if scope is None:
            return 0
        feed = TaskFeed(access, random=Random(), scope=scope)  # noqa: S311  (delays, not secrets)
        if not await _stand_by(leadership, feed, stop):
            return 0
        schedules = ScheduleService(
            access,
            instance=settings.identity,
            leads=lambda: leadership.is_leader,
            scope=scope,
        )
        engine = Engine(
            access,
            await load_token_keys(client, settings.namespace, settings.installation),
            feed=feed,
            scope=scope,
            namespace=settings.namespace,
            installation=settings.installation,
            instance=settings.identity,
            conditions=settings.conditions,
            leads=lambda: leadership.is_leader,
            is_kept=schedules.is_unrecorded,
            since=leadership.done_version,
            networks=settings.networks,
        )
        leadership.is_settled = lambda: engine is not None and engine.is_settled
        batches = BatchService(
            access,
            engine.tasks,
            instance=settings.identity,
            leads=lambda: leadership.is_leader,
            scope=scope,
        )
        feed.before_synced = batches.lead
        return await _lead(engine, (batches, schedules), leadership, stop, scope)
    finally:
        await leadership.release()
        await probes.cleanup()
        if feed is not None:
            await feed.close()
        await client.close()


async def _stand_by(leadership: LeaderElector, feed: TaskFeed, stop: asyncio.Event) -> bool:
    """Keep up with the Tasks until this operator leads; return False if it is stopped before."""
    acquiring = asyncio.create_task(leadership.acquire(), name="acquire")
    following = asyncio.create_task(feed.run(), name="feed of Tasks")
    parts = (acquiring, following)
    await _first(*parts, stop.wait())
    ended = [part for part in parts if part.done()]
    for part in parts:
        part.cancel()
    await asyncio.wait(parts)
    for part in ended:
        part.result()
    return not stop.is_set()


async def _lead(
    engine: Engine,
    services: tuple[BatchService, ScheduleService],
    leadership: LeaderElector,
    stop: asyncio.Event,
    scope: WatchScope,
) -> int:
    """Run the parts until ``stop``, or until the Lease is lost or one of them fails."""
    holding = asyncio.create_task(leadership.renew_until_lost(), name="lease")
    engine_task = asyncio.create_task(engine.run(), name="engine")
    tasks = [asyncio.create_task(one.run(), name=type(one).__name__) for one in services]
    kopf_stop, kopf_ready = asyncio.Event(), asyncio.Event()
    kopf_task = asyncio.create_task(_run_kopf(engine, scope, kopf_stop, kopf_ready), name="kopf")
    await _first(kopf_ready.wait(), holding, engine_task, kopf_task)
    _stop_on_signals(stop)
    log.info("operator.started", version=__version__)

    parts = (holding, engine_task, *tasks, kopf_task)
    await _first(stop.wait(), *parts)
    ended = [part for part in parts if part.done() and not stop.is_set()]
    for part in ended:
        problem = None if part.cancelled() else part.exception()
        log.error("operator.part_ended", exc_info=problem, part=part.get_name())
    log.info("operator.stopping")
    if holding.done():
        for serving in (engine, *services):
            serving.skip_unwritten()  # another may lead already
    for task in (*tasks, engine_task):
        task.cancel()
    await asyncio.wait({*tasks, engine_task})
    kopf_stop.set()
    await asyncio.wait({kopf_task}, timeout=_KOPF_STOP_SECONDS)
    holding.cancel()
    await asyncio.wait({holding})
    return 1 if ended else 0


def _stop_on_signals(stop: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)


async def _run_kopf(
    engine: Engine, scope: WatchScope, stop: asyncio.Event, ready: asyncio.Event
) -> None:
    registry = kopf.OperatorRegistry()
    handlers.register(registry, engine)

    @kopf.on.login(registry=registry)
    def login(**kwargs: Any) -> kopf.ConnectionInfo | None:
        return kopf.login_with_service_account(**kwargs) or kopf.login_with_kubeconfig(**kwargs)

    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    settings.scanning.disabled = True
    settings.persistence.finalizer = f"{_ANNOTATION_PREFIX}/kopf"
    settings.persistence.diffbase_storage = kopf.AnnotationsDiffBaseStorage(
        prefix=_ANNOTATION_PREFIX
    )
    settings.persistence.progress_storage = kopf.AnnotationsProgressStorage(
        prefix=_ANNOTATION_PREFIX
    )
    settings.watching.server_timeout = 290
    await kopf.operator(
        registry=registry,
        settings=settings,
        # By default kopf needs a user name, which a container may not have.
        identity=socket.gethostname(),  # type: ignore[arg-type]
        standalone=True,
        clusterwide=not scope.namespaces,
        namespaces=scope.namespaces,
        stop_flag=stop,
        ready_flag=ready,
    )


async def _first_result(work: Coroutine[Any, Any, T], stop: asyncio.Event) -> T | None:
    """Return what comes of some work, or None if the operator is stopped before."""
    task = asyncio.create_task(work)
    await _first(task, stop.wait())
    if task.done():
        return task.result()
    task.cancel()
    return None


async def _first(*awaitables: Awaitable[Any]) -> None:
    futures = {asyncio.ensure_future(one) for one in awaitables}
    await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)
    for future in futures.difference(awaitables):
        future.cancel()
