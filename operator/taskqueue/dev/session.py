"""One run of `taskqueue dev`, from the import of the modules to the next change of a file.

A change ends the session: what runs is given back, the objects are written to a file, and a new
interpreter goes on with them, as another operator and another worker would. A module that cannot
be imported is reported, and waited for.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import orjson
from aiohttp import web

from taskqueue.api.common import API_VERSION, TASK_PLURAL, TASKQUEUE_PLURAL
from taskqueue.dev.http_api import HOST, make_app
from taskqueue.dev.local_operator import LocalOperator
from taskqueue.dev.local_workers import LocalWorkers
from taskqueue.dev.manifests import ManifestError, apply, files_of, read_file
from taskqueue.dev.memory_api import Change, MemoryApi
from taskqueue.dev.source_watch import SourceWatch
from taskqueue.dev.terminal import Terminal
from taskqueue.exact_json import decode_own
from taskqueue.kubernetes.client import ApiError
from taskqueue.limits import DEV_PORT
from taskqueue.worker.arguments import WorkerArguments
from taskqueue.worker.executor_set import ExecutorSet, assemble
from taskqueue.worker.executors.fork_server_launcher import ForkServerConfig, ForkServerHandle
from taskqueue.worker.sdk import registry
from taskqueue.worker.settings import WorkerSettings

#: Between two looks at the files, in seconds.
_LOOK_SECONDS = 0.3

#: How long attempts that were asked to end may take, in seconds.
_END_SECONDS = 2.0

#: Names the file with the objects of the session before.
STATE_VARIABLE = "TASKQUEUE_DEV_STATE"


@dataclass(frozen=True, slots=True, kw_only=True)
class DevOptions:
    """What `taskqueue dev` was told.

    Attributes:
        modules: names of the modules with handlers.
        files: manifests to apply, or folders with such.
        port: of the HTTP API; 0: any.
        strict_queues: a TaskQueue that no manifest has is not made.
        watch: whether a change of a file is followed.
    """

    modules: Sequence[str]
    files: Sequence[Path] = ()
    port: int = 0
    strict_queues: bool = False
    watch: bool = True


class Session:
    """The operator's and the worker's halves, and what people reach them by.

    Args:
        options: of the command.
        settings: of the workers.
        terminal: says what happens.
        watch: of the files, since before the modules were imported.
        config: how handlers' processes are made.
        fork_server: makes them; None: no handler needs one.
    """

    def __init__(
        self,
        options: DevOptions,
        settings: WorkerSettings,
        terminal: Terminal,
        watch: SourceWatch,
        config: ForkServerConfig,
        fork_server: ForkServerHandle | None,
    ) -> None:
        self.api = MemoryApi()
        self.url = ""
        self._options = options
        self._terminal = terminal
        self._watch = watch
        loop = asyncio.get_running_loop()
        self._stopped = asyncio.Event()
        self.executors: ExecutorSet = assemble(
            settings, WorkerArguments(modules=tuple(options.modules)), config, fork_server, loop
        )
        self.operator = LocalOperator(
            self.api,
            on_queue=lambda queue: self._workers.serve(queue),
            on_dead_letter=lambda key, _: terminal.error(f"dead letter of {key}"),
        )
        self._workers = LocalWorkers(
            settings, self.executors.executor, self.executors.handlers, self.operator.broker
        )

    def stop(self) -> None:
        """End `run`."""
        self._stopped.set()

    async def run(self, objects: Sequence[dict[str, object]] = ()) -> bool:
        """Serve until stopped, or until a file has changed; return whether the latter.

        Args:
            objects: of the session before.

        Raises:
            OSError: the port is taken.
        """
        loop = asyncio.get_running_loop()
        manifests = files_of(self._options.files)
        await self.executors.start()
        runner = web.AppRunner(
            make_app(self.api, self.operator.queue_status),
            access_log=None,
            handler_cancellation=True,  # a watch would not notice that nobody listens any more
            shutdown_timeout=0.1,
        )
        await runner.setup()
        site = web.TCPSite(runner, HOST, self._options.port)
        await site.start()
        self.url = f"http://{HOST}:{runner.addresses[0][1]}"
        self.api.restore(objects)
        if not self._options.strict_queues:
            self.api.listeners.append(self._add_queue)
        self.api.listeners.append(self._terminal.on_change)
        serving = [loop.create_task(self.operator.run()), loop.create_task(self._workers.run())]
        self._describe()
        for path in manifests:
            self.apply_file(path)
        try:
            return await self._wait()
        finally:
            self._workers.release_all()
            await self._settle()
            await self.operator.close()
            for task in serving:
                task.cancel()
            await asyncio.gather(*serving, return_exceptions=True)
            await runner.cleanup()
            await self.executors.close(_END_SECONDS)

    def apply_file(self, path: Path) -> None:
        """Apply the manifests of a file; what is refused is said, the others are applied."""
        try:
            for body in read_file(path):
                try:
                    done = apply(self.api, body)
                except (ApiError, ValueError, TypeError, AttributeError) as error:
                    self._terminal.error(f"{path}: {error}")
                else:
                    if not done.endswith("created"):  # that is seen of a Task anyway
                        self._terminal.note(f"{path}: {done}")
        except ManifestError as error:
            self._terminal.error(str(error))

    async def _wait(self) -> bool:
        while not self._stopped.is_set():
            try:
                async with asyncio.timeout(_LOOK_SECONDS):
                    await self._stopped.wait()
            except TimeoutError:
                changed = self._watch.changed() if self._options.watch else set()
                manifests = files_of(self._options.files)
                for path in manifests:
                    if path in changed:
                        self.apply_file(path)
                if sources := sorted(changed - set(manifests)):
                    self._terminal.note(f"{sources[0]} has changed")
                    return True
        return False

    async def _settle(self) -> None:
        """Wait until what was given back has ended, for a moment; then kill it."""
        for wait_seconds in (_END_SECONDS, 0.5):
            try:
                async with asyncio.timeout(wait_seconds):
                    while self._workers.busy:  # noqa: ASYNC110 - it ends in moments
                        await asyncio.sleep(0.02)
                return
            except TimeoutError:
                self._workers.kill_all()

    def _describe(self) -> None:
        names = ", ".join(sorted(self.executors.handlers))
        self._terminal.title(f"taskqueue dev: {names}")
        self._terminal.note(f"  at        {self.url}")
        where = "" if self.url.endswith(f":{DEV_PORT}") else f"TASKQUEUE_DEV={self.url} "
        first = min(self.executors.handlers, default="HANDLER")
        self._terminal.note(f"  submit    {where}taskqueue submit --dev work {first} '{{}}' --wait")
        if self._options.watch:
            self._terminal.note(f"  watches   {', '.join(map(_short, self._watch.sources))}")
        self._terminal.note("  end       Ctrl-C")

    def _add_queue(self, change: Change) -> None:
        """Make the TaskQueue of a Task that has none."""
        event, plural, one = change
        if (event, plural) != ("ADDED", TASK_PLURAL):
            return
        namespace, queue = one["metadata"]["namespace"], one["spec"]["queue"]
        try:
            self.api.get(TASKQUEUE_PLURAL, namespace, queue)
        except ApiError:
            self.api.create(
                TASKQUEUE_PLURAL,
                namespace,
                {
                    "apiVersion": API_VERSION,
                    "kind": "TaskQueue",
                    "metadata": {"name": queue},
                    "spec": {"broker": {"connectionSecret": {"name": "none"}}},
                },
            )
            self._terminal.note(f"TaskQueue {queue} made with defaults: no manifest has it")


def read_state() -> list[dict[str, object]]:
    """Return the objects of the session before, and remove their file; none: this is the first."""
    name = os.environ.pop(STATE_VARIABLE, "")
    if not name:
        return []
    path = Path(name)
    objects: list[dict[str, object]] = decode_own(path.read_bytes())
    path.unlink()
    return objects


def restart(objects: Sequence[dict[str, object]]) -> None:
    """Go on with these objects in a new interpreter; does not return."""
    descriptor, name = tempfile.mkstemp(prefix="taskqueue-dev-", suffix=".json")
    with os.fdopen(descriptor, "wb") as file:
        file.write(orjson.dumps(list(objects)))
    os.environ[STATE_VARIABLE] = name
    sys.stdout.flush()
    sys.stderr.flush()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    os.execv(sys.executable, [sys.executable, "-m", "taskqueue", *sys.argv[1:]])  # noqa: S606


def wait_for_change(watch: SourceWatch) -> None:
    """Return when a file has changed."""
    import time

    while not watch.changed():
        time.sleep(_LOOK_SECONDS)


def needs_processes(settings: WorkerSettings) -> bool:
    """Return whether a handler runs in a process of its own."""
    from taskqueue.worker.settings import HandlerExecutor

    return settings.executor is HandlerExecutor.PROCESS and any(
        not (each.is_async or each.thread) for each in registry.values()
    )


def _short(path: Path) -> str:
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
