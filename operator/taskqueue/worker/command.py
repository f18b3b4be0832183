"""``python -m taskqueue worker MODULE…``: import the handlers, then work until told to stop.

Exit codes: 0 after an orderly stop, 1 when it could not start (one line on standard error says
who, what and what to do), 128 + signal when a second signal cuts the orderly stop short.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence

from taskqueue import logs
from taskqueue.worker.sdk import registry
from taskqueue.worker.settings import SettingsError, WorkerSettings

log = logs.EventLog("taskqueue.worker")


class StartError(Exception):
    """The worker cannot start; the text says what and what to do."""


def main(modules: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run a worker for the handlers of these modules and return its exit code."""
    try:
        settings = WorkerSettings.from_environment(environment)
        load(modules)
    except (SettingsError, StartError) as problem:
        print(f"taskqueue worker: {problem}", file=sys.stderr)
        return 1
    logs.configure(settings.log_format, level=settings.log_level)
    from taskqueue.broker.connection import BrokerConfigurationError

    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            clean = runner.run(_work(settings))
    except BrokerConfigurationError as problem:
        print(f"taskqueue worker: the broker's settings: {problem}", file=sys.stderr)
        return 1
    log.info("worker.stopped")
    if not clean:
        # A handler that does not return would hold up the interpreter's own end: its thread, or
        # one it made. What there was to say about it has been said.
        logging.shutdown()
        sys.stdout.flush()
        os._exit(0)
    return 0


def load(modules: Sequence[str]) -> None:
    """Import the modules; the folder we run in counts as on PYTHONPATH.

    Raises:
        StartError: one cannot be imported, together they register no handler, or a handler's
            payload cannot be checked.
    """
    if not modules:
        raise StartError("no module given: python -m taskqueue worker MODULE…")
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    for name in modules:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as problem:
            if problem.name is None or not f"{name}.".startswith(f"{problem.name}."):
                raise _broken(name, problem) from problem
            raise StartError(
                f"there is no module {name!r}: give the name as in an import statement, and put "
                "its folder on PYTHONPATH or run in it"
            ) from problem
        except Exception as problem:
            raise _broken(name, problem) from problem
    if not registry:
        raise StartError(
            f"no handler is registered by {', '.join(modules)}: mark functions with @task "
            "(from taskqueue import task)"
        )
    try:
        registry.prepare()
    except TypeError as problem:
        raise StartError(str(problem)) from problem


def _broken(name: str, problem: Exception) -> StartError:
    lines = traceback.format_exception(problem)
    return StartError(
        f"module {name!r} fails when it is imported: {type(problem).__name__}: {problem}; "
        f"repair it:\n{''.join(lines)}"
    )


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


async def _work(settings: WorkerSettings) -> bool:
    from taskqueue.worker.executors.function import FunctionExecutor
    from taskqueue.worker.worker import Worker

    loop = asyncio.get_running_loop()
    executor = FunctionExecutor(registry, loop)
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
        executor.close()
