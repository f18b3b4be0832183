"""``python -m taskqueue worker``: load the handlers, then work until a signal stops it.

Exit codes: 0 after an orderly stop, 1 when it could not start (one line on standard error says why
and what to do), 2 for wrong arguments, 128 + signal when a second signal cuts the orderly stop
short.

The order of the start matters: modules are imported, then the fork server is forked, and only then
come connections and threads, which processes for handlers must not have.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence

from taskqueue import logs
from taskqueue.worker.arguments import WorkerArguments
from taskqueue.worker.executors.fork_server_launcher import ForkServerConfig, ForkServerHandle
from taskqueue.worker.loading import StartError, load
from taskqueue.worker.sdk import registry
from taskqueue.worker.settings import HandlerExecutor, SettingsError, WorkerSettings

log = logs.EventLog("taskqueue.worker")

#: How long handlers that were asked to end may take at the worker's end, in seconds. The pod's
#: grace period is the limit: see "Stopping" in docs/workers.md.
CLOSE_SECONDS = 4.0


def main(words: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run a worker for the handlers the command line names, and return its exit code."""
    try:
        arguments = WorkerArguments.parse(words)
        settings = WorkerSettings.from_environment(environment)
        if arguments.modules:
            load(arguments.modules)
        logs.configure(settings.log_format, level=settings.log_level)
        config = ForkServerConfig(
            modules=arguments.modules,
            log_format=settings.log_format or logs.LogFormat.default(sys.stderr),
            log_level=settings.log_level,
            report_memory=settings.child_max_mib > 0,
        )
        fork_server = config.launch_by_fork() if _needs_processes(arguments, settings) else None
        clean = _run(settings, arguments, config, fork_server)
    except (SettingsError, StartError) as error:
        print(f"taskqueue worker: {error}", file=sys.stderr)
        return 1
    log.info("worker.stopped")
    if not clean:
        # The thread of a handler that does not return, or a thread it started, would keep the
        # interpreter from ending. Its outcome has been published.
        logging.shutdown()
        sys.stdout.flush()
        os._exit(0)
    return 0


def _needs_processes(arguments: WorkerArguments, settings: WorkerSettings) -> bool:
    if arguments.commands:
        if sys.platform != "linux":
            raise StartError("--command needs Linux")
        return True
    return settings.executor is HandlerExecutor.PROCESS and any(
        not (each.is_async or each.thread) for each in registry.values()
    )


def _run(
    settings: WorkerSettings,
    arguments: WorkerArguments,
    config: ForkServerConfig,
    fork_server: ForkServerHandle | None,
) -> bool:
    """Work until stopped; return whether nothing was left running.

    Raises:
        StartError: the broker's settings cannot be used.
    """
    from taskqueue.amqp.parameters import BrokerConfigurationError

    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            return runner.run(_work(settings, arguments, config, fork_server))
    except BrokerConfigurationError as error:
        raise StartError(f"the broker's settings: {error}") from error


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


async def _work(
    settings: WorkerSettings,
    arguments: WorkerArguments,
    config: ForkServerConfig,
    fork_server: ForkServerHandle | None,
) -> bool:
    from taskqueue.worker.executor_set import assemble
    from taskqueue.worker.worker import WorkerService

    loop = asyncio.get_running_loop()
    executors = assemble(settings, arguments, config, fork_server, loop)
    worker = WorkerService(settings, executors.executor, handlers=executors.handlers)
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
        "worker.started",
        namespace=settings.namespace,
        queue=settings.queue,
        pod=settings.pod,
        slots=settings.slots,
        handlers=sorted(executors.handlers),
    )
    try:
        return await worker.run()
    finally:
        await executors.close(min(settings.kill_grace_seconds, CLOSE_SECONDS))
