"""Starts fork servers: the first by a fork once the modules are imported, later ones by an exec.

The first must be started before the worker has threads or connections. One that died cannot be
replaced by a fork of a worker that has them by then: a new interpreter imports the modules again.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NoReturn

import orjson

from taskqueue import logs
from taskqueue.exact_json import decode_own
from taskqueue.worker import log_setup, own_process
from taskqueue.worker.executors.fork_server import ForkServer
from taskqueue.worker.loading import load
from taskqueue.worker.sdk import HandlerRegistry, registry

log = logs.EventLog("taskqueue.worker")


@dataclass(frozen=True, slots=True)
class ForkServerHandle:
    """A started fork server: the connection to it, and its process id."""

    control: socket.socket
    pid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ForkServerConfig:
    """Starts a fork server for these modules.

    Attributes:
        modules: hold the handlers.
        log_format: of the worker.
        log_level: of the worker.
        report_memory: children report with each outcome how much memory they hold.
        hidden_directories: whose files the processes shall not read.
    """

    modules: Sequence[str]
    log_format: logs.LogFormat
    log_level: str
    report_memory: bool = False
    hidden_directories: Sequence[str] = ()

    def launch_by_fork(
        self,
        handlers: HandlerRegistry = registry,
        *,
        on_forked: Callable[[], None] = lambda: None,
    ) -> ForkServerHandle:
        """Fork this process, which has imported the modules and configured logging.

        Args:
            handlers: of the modules.
            on_forked: called in the new process, before it serves.
        """
        threads = [thread.name for thread in threading.enumerate()[1:]]
        if threads:
            log.warning(
                "forkserver.threads_lost",
                reason=f"importing the modules has started threads: {', '.join(threads)}",
                hint="the processes that run handlers do not have them: start them in an @on_start "
                "hook, or mark the handlers with @task(thread=True)",
            )
        ours, theirs = _pair()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()  # or the child writes its buffer a second time
        pid = os.fork()
        if pid == 0:
            try:
                ours.close()
                on_forked()
                ForkServer(
                    theirs,
                    handlers,
                    report_memory=self.report_memory,
                    hidden_directories=self.hidden_directories,
                ).serve()
            finally:
                os._exit(1)
        theirs.close()
        return ForkServerHandle(ours, pid)

    def launch_by_exec(self) -> ForkServerHandle:
        """Start a new interpreter, which imports the modules.

        Raises:
            OSError: no process can be made.
        """
        ours, theirs = _pair()
        text = orjson.dumps(
            {
                "modules": list(self.modules),
                "log_format": self.log_format.value,
                "log_level": self.log_level,
                "report_memory": self.report_memory,
                "hidden_directories": list(self.hidden_directories),
            }
        ).decode()
        try:
            os.set_inheritable(theirs.fileno(), True)
            pid = os.posix_spawn(
                sys.executable,
                [sys.executable, "-m", __name__, str(theirs.fileno()), text],
                os.environ,
            )
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
        return ForkServerHandle(ours, pid)


def main(arguments: Sequence[str]) -> NoReturn:
    """Run a fork server that was started by `ForkServerConfig.launch_by_exec`."""
    own_process.hide_process()
    values = decode_own(arguments[1])
    control = socket.socket(fileno=int(arguments[0]))
    control.set_inheritable(False)
    log_setup.begin()
    if values["modules"]:
        load(values["modules"])
    log_setup.install(logs.LogFormat(values["log_format"]), level=values["log_level"])
    ForkServer(
        control,
        registry,
        report_memory=values["report_memory"],
        hidden_directories=values["hidden_directories"],
    ).serve()


def _pair() -> tuple[socket.socket, socket.socket]:
    # Packets keep each request with its file descriptors.
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


if __name__ == "__main__":
    main(sys.argv[1:])
