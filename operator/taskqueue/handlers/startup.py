"""The operator as a process: engine first, then kopf, and both stopped in the other order.

kopf takes over SIGTERM when it starts, and when it ends it cancels every task begun after it. So
the engine is started before kopf, the signal handlers are set again once kopf is up, and on a
signal the engine is stopped, with what it still has to write, before kopf is.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Any

import kopf

from taskqueue.cluster.client import ApiClient, load_access
from taskqueue.cluster.token_secret import token_keys
from taskqueue.engine.operator import Engine
from taskqueue.handlers import taskqueues
from taskqueue.handlers.probes import serve_probes
from taskqueue.logs import EventLog

log = EventLog(__name__)

#: Prefix of the one annotation kopf keeps on a TaskQueue.
_ANNOTATION_PREFIX = "taskqueue.dev"
_KOPF_STOP_SECONDS = 5.0


@dataclass(frozen=True)
class OperatorSettings:
    """How the operator runs.

    Attributes:
        namespace: where the operator keeps its own Secret.
        port: of probes and metrics.
        kubeconfig: path, outside a cluster.
    """

    namespace: str = "taskqueue-system"
    port: int = 8080
    kubeconfig: str | None = None

    @classmethod
    def from_environment(cls) -> OperatorSettings:
        """Read POD_NAMESPACE, TASKQUEUE_HTTP_PORT and KUBECONFIG."""
        return cls(
            namespace=os.environ.get("POD_NAMESPACE") or cls.namespace,
            port=int(os.environ.get("TASKQUEUE_HTTP_PORT") or cls.port),
            kubeconfig=os.environ.get("KUBECONFIG") or None,
        )


async def serve(settings: OperatorSettings) -> int:
    """Run the operator until SIGTERM or SIGINT; return the exit code."""
    access = await load_access(settings.kubeconfig)
    client = ApiClient(access)
    try:
        keys = await token_keys(client, settings.namespace)
    finally:
        await client.close()
    engine = Engine(access, keys)
    engine_task = asyncio.create_task(engine.run(), name="engine")
    probes = await serve_probes(settings.port, ready=lambda: engine.ready)

    stop, kopf_stop, kopf_ready = asyncio.Event(), asyncio.Event(), asyncio.Event()
    kopf_task = asyncio.create_task(_run_kopf(engine, kopf_stop, kopf_ready), name="kopf")
    await _first(kopf_ready.wait(), kopf_task)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    log.info("operator.started", namespace=settings.namespace)

    await _first(stop.wait(), engine_task, kopf_task)
    died = [task for task in (engine_task, kopf_task) if task.done() and not stop.is_set()]
    for task in died:
        problem = None if task.cancelled() else task.exception()
        log.error("operator.part_ended", exc_info=problem, part=task.get_name())
    log.info("operator.stopping")
    engine_task.cancel()
    await asyncio.wait({engine_task})
    kopf_stop.set()
    await asyncio.wait({kopf_task}, timeout=_KOPF_STOP_SECONDS)
    await probes.cleanup()
    return 1 if died else 0


async def _run_kopf(engine: Engine, stop: asyncio.Event, ready: asyncio.Event) -> None:
    registry = kopf.OperatorRegistry()
    taskqueues.register(registry, engine)

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
        # Found out by itself it would need a user name, which a container need not have.
        identity=socket.gethostname(),  # type: ignore[arg-type]
        standalone=True,
        clusterwide=True,
        stop_flag=stop,
        ready_flag=ready,
    )


async def _first(*awaitables: Awaitable[Any]) -> None:
    futures = {asyncio.ensure_future(one) for one in awaitables}
    await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)
