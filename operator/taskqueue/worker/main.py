"""``python -m taskqueue worker``: load the handlers, then work until a signal stops it.

Exit codes: 0 after an orderly stop, 1 when it could not start (one line on standard error says why
and what to do), 2 for wrong arguments, 70 when it was asked to stop and something did not let it,
128 + signal when a second signal cuts the orderly stop short.

A signal ends it in order from the first moment, also while modules are being imported.

The order of the start matters: process 1 of a container leaves the work to a child (see
`taskqueue.worker.init_process`), modules are imported, then the fork server is forked, and only
then come connections and threads, which processes for handlers must not have.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from types import FrameType

from taskqueue import logs
from taskqueue.model.broker_environment import BROKER_VARIABLES
from taskqueue.model.result_environment import RESULT_VARIABLES
from taskqueue.worker import init_process, log_setup, own_process
from taskqueue.worker.arguments import WorkerArguments
from taskqueue.worker.executors.fork_server_launcher import ForkServerConfig, ForkServerHandle
from taskqueue.worker.loading import StartError, load
from taskqueue.worker.sdk import registry
from taskqueue.worker.settings import HandlerExecutor, WorkerSettings
from taskqueue.worker.variables import SettingsError

log = logs.EventLog("taskqueue.worker")

#: How long handlers that were asked to end may take at the worker's end, in seconds. The pod's
#: grace period is the limit: see "Stopping" in docs/workers.md.
CLOSE_SECONDS = 4.0

#: After the grace period, how long the last outcomes and the end of handlers may take together, in
#: seconds: less than the 5 s that a pod's own grace period leaves.
END_SECONDS = 4.8

#: Exit code of a worker that did not end by itself in that time.
EXIT_FORCED = 70


def main(words: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run a worker for the handlers the command line names, and return its exit code."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _end_before_start)
    try:
        arguments = WorkerArguments.parse(words)
        settings = WorkerSettings.from_environment(environment)
        # Before any process is forked: each would have a copy.
        own_process.hide_process()
        own_process.wipe_variables([*BROKER_VARIABLES, *RESULT_VARIABLES])
        if os.getpid() == 1 and (code := init_process.fork_worker()) is not None:
            return code
        log_setup.begin()
        if arguments.modules:
            load(arguments.modules)
        log_setup.install(settings.log_format, level=settings.log_level)
        config = ForkServerConfig(
            modules=arguments.modules,
            log_format=settings.log_format or logs.LogFormat.default(sys.stderr),
            log_level=settings.log_level,
            report_memory=settings.child_max_mib > 0,
            hidden_directories=settings.secret_directories,
        )
        fork_server = None
        if _needs_processes(arguments, settings):
            fork_server = config.launch_by_fork(on_forked=settings.drop_variables)
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


def _end_before_start(number: int, frame: FrameType | None) -> None:
    """End at once, in order: modules are being imported, and nothing was consumed yet."""
    try:
        log.info("worker.stopped", reason=f"{signal.Signals(number).name} before it had started")
    finally:
        os._exit(0)


def _force_end_after(seconds: float) -> None:
    """End this process if it has not ended by then: something that it waits for does not return."""

    def force() -> None:
        try:
            log.error(
                "worker.end_forced",
                reason=f"it has not ended within {seconds:g} s: a stop hook or a handler holds it",
                hint="the broker redelivers what was not acknowledged",
            )
        finally:
            os._exit(EXIT_FORCED)

    timer = threading.Timer(seconds, force)
    timer.daemon = True
    timer.start()


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
    worker = WorkerService(
        settings,
        executors.executor,
        handlers=executors.handlers,
        start=executors.start,
        start_failure=lambda: executors.start_failure,
    )
    signals = 0

    def on_signal(number: int) -> None:
        nonlocal signals
        signals += 1
        if signals > 1:
            os._exit(128 + number)
        _force_end_after(settings.grace_seconds + END_SECONDS)
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
        _force_end_after(CLOSE_SECONDS + 1.0)
        await executors.close(min(settings.kill_grace_seconds, CLOSE_SECONDS))
