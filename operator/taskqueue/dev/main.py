"""Runs `taskqueue dev`: one session after the other, each in an interpreter of its own."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys

from taskqueue import logs
from taskqueue.dev.manifests import files_of
from taskqueue.dev.session import (
    DevOptions,
    Session,
    needs_processes,
    read_state,
    restart,
    wait_for_change,
)
from taskqueue.dev.source_watch import SourceWatch
from taskqueue.dev.terminal import Terminal
from taskqueue.worker import log_setup
from taskqueue.worker.executors.fork_server_launcher import ForkServerConfig
from taskqueue.worker.loading import StartError, load
from taskqueue.worker.settings import WorkerSettings

#: What logs about every Task: the terminal has a line of its own about each.
_QUIET = ("taskqueue.worker", "taskqueue.controller", "taskqueue.kubernetes")


def main(options: DevOptions, settings: WorkerSettings, *, colour: bool, verbose: bool) -> int:
    """Serve the modules' handlers until interrupted, and return the exit code."""
    terminal = Terminal(sys.stdout, colour=colour)
    objects = read_state()
    log_setup.begin()
    watch = SourceWatch(options.modules, files_of(options.files))
    try:
        load(options.modules)
    except StartError as error:
        terminal.error(f"taskqueue dev: {error}")
        if not options.watch:
            return 1
        terminal.note("waits for a change of a file; Ctrl-C ends it")
        wait_for_change(watch)
        restart(objects)
    log_format = settings.log_format or logs.LogFormat.TEXT
    log_setup.install(log_format)
    for name in () if verbose else _QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
    if not verbose:
        logging.getLogger("taskqueue.worker").addFilter(_only_traceback)
    config = ForkServerConfig(modules=options.modules, log_format=log_format, log_level="INFO")
    fork_server = config.launch_by_fork() if needs_processes(settings) else None

    async def run() -> list[dict[str, object]] | None:
        session = Session(options, settings, terminal, watch, config, fork_server)
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, session.stop)
        changed = await session.run(objects)
        return list(session.api.dump()) if changed else None

    try:
        left = asyncio.run(run())
    except OSError as error:
        terminal.error(f"taskqueue dev: port {options.port}: {error.strerror}: give another --port")
        return 1
    if left is not None:
        restart(left)
    return 0


def _only_traceback(record: logging.LogRecord) -> bool:
    """Leave of the log of a failed attempt what the terminal does not say: the traceback."""
    if record.getMessage() == "task.failed":
        fields = getattr(record, logs.FIELDS, {})
        setattr(record, logs.FIELDS, {name: fields.get(name) for name in ("task", "attempt")})
        return bool(record.exc_info)
    return True


def worker_settings(*, slots: int | None, threads: bool) -> WorkerSettings:
    """Return the settings of the workers; variables of the environment count as for a worker.

    Args:
        slots: attempts at once; None: as the worker decides.
        threads: sync handlers run in threads, where a debugger finds them.

    Raises:
        SettingsError: a variable is wrong.
    """
    given = {name: text for name, text in os.environ.items() if name.startswith("TASKQUEUE_")}
    given |= {"TASKQUEUE_NAMESPACE": "default", "TASKQUEUE_QUEUE": "dev", "POD_NAME": "dev"}
    given["TASKQUEUE_BROKER_URI"] = "amqp://nobody:nothing@localhost"
    if slots is not None:
        given["TASKQUEUE_CONCURRENCY"] = str(slots)
    if threads:
        given["TASKQUEUE_EXECUTOR"] = "thread"
    return WorkerSettings.from_environment(given)
