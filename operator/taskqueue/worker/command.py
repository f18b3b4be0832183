"""``python -m taskqueue worker MODULE…``: import the handlers, then work until told to stop.

Exit codes: 0 after an orderly stop, 1 when it could not start (one line on standard error says
who, what and what to do), 128 + signal when a second signal cuts the orderly stop short.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence

from taskqueue import logs
from taskqueue.worker.executors.launch import Launched, Recipe
from taskqueue.worker.loading import StartError, load
from taskqueue.worker.sdk import registry
from taskqueue.worker.settings import HandlerExecutor, SettingsError, WorkerSettings

log = logs.EventLog("taskqueue.worker")

#: How long handlers that were asked to end may take at the worker's end, in seconds. The kubelet's
#: own patience is the limit: see "Stopping" in docs/workers.md.
CLOSE_SECONDS = 4.0


def main(modules: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run a worker for the handlers of these modules and return its exit code."""
    try:
        settings = WorkerSettings.from_environment(environment)
        load(modules)
    except (SettingsError, StartError) as problem:
        print(f"taskqueue worker: {problem}", file=sys.stderr)
        return 1
    logs.configure(settings.log_format, level=settings.log_level)
    recipe, launched = _fork_server(settings, modules)
    # What follows needs connections and threads, which no process for handlers shall have.
    from taskqueue.broker.connection import BrokerConfigurationError

    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            clean = runner.run(_work(settings, recipe, launched))
    except BrokerConfigurationError as problem:
        print(f"taskqueue worker: the broker's settings: {problem}", file=sys.stderr)
        return 1
    except StartError as problem:
        print(f"taskqueue worker: {problem}", file=sys.stderr)
        return 1
    log.info("worker.stopped")
    if not clean:
        # A handler that does not return would hold up the interpreter's own end: its thread, or
        # one it made. What there was to say about it has been said.
        logging.shutdown()
        sys.stdout.flush()
        os._exit(0)
    return 0


def _fork_server(
    settings: WorkerSettings, modules: Sequence[str]
) -> tuple[Recipe, Launched | None]:
    """Start the fork server, if there is anything to run in processes."""
    recipe = Recipe(
        modules=modules,
        log_format=settings.log_format or logs.LogFormat.default(sys.stderr),
        log_level=settings.log_level,
        tell_memory=settings.child_max_mib > 0,
    )
    in_processes = settings.executor is HandlerExecutor.PROCESS and any(
        not (each.is_async or each.thread) for each in registry.values()
    )
    return recipe, recipe.by_fork() if in_processes else None


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


async def _work(settings: WorkerSettings, recipe: Recipe, launched: Launched | None) -> bool:
    from taskqueue.worker.executors.function import FunctionExecutor
    from taskqueue.worker.worker import Worker

    loop = asyncio.get_running_loop()
    pool = None
    if launched is not None:
        from taskqueue.worker.executors.pool import ChildPool, PoolSettings
        from taskqueue.worker.executors.spawner import Spawner

        pool = ChildPool(
            Spawner(launched, recipe.by_exec, loop),
            loop,
            PoolSettings(
                kill_grace_seconds=settings.kill_grace_seconds,
                memory_mib=settings.child_memory_mib,
                max_tasks=settings.child_max_tasks,
                max_mib=settings.child_max_mib,
                capture=recipe.log_format is logs.LogFormat.JSON,
            ),
        )
    executor = FunctionExecutor(registry, loop, pool)
    try:
        executor.start_hooks()
    except Exception as problem:
        raise StartError(
            f"an @on_start hook failed: {type(problem).__name__}: {problem}; repair it"
        ) from problem
    worker = Worker(settings, executor, handlers=registry)
    signals = 0

    def on_signal(number: int) -> None:
        nonlocal signals
        signals += 1
        if signals > 1:
            os._exit(128 + number)
        worker.stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)
    log.info(
        "worker.starting",
        namespace=settings.namespace,
        queue=settings.queue,
        pod=settings.pod,
        slots=settings.slots,
        handlers=sorted(registry),
    )
    try:
        return await worker.run()
    finally:
        await executor.close(min(settings.kill_grace_seconds, CLOSE_SECONDS))
