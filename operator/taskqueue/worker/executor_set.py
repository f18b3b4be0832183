"""Makes a worker's executors from its command line and settings."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass

from taskqueue.logs import LogFormat
from taskqueue.worker.arguments import WorkerArguments
from taskqueue.worker.executor import Executor
from taskqueue.worker.executors.child_pool import ChildPool, PoolSettings
from taskqueue.worker.executors.fork_server_launcher import ForkServerConfig, ForkServerHandle
from taskqueue.worker.executors.function import FunctionExecutor
from taskqueue.worker.executors.process_spawner import ProcessSpawner
from taskqueue.worker.executors.router import ExecutorRouter
from taskqueue.worker.loading import StartError
from taskqueue.worker.result_settings import KeptOutput
from taskqueue.worker.sdk import registry
from taskqueue.worker.settings import HandlerExecutor, Leftovers, WorkerSettings


@dataclass(frozen=True, slots=True)
class ExecutorSet:
    """Holds a worker's executors and the processes they use.

    Attributes:
        executor: the one the runtime calls.
        handlers: names it serves; ``*`` for any.
        spawner: makes its processes, if it has any.
    """

    executor: Executor
    handlers: tuple[str, ...]
    spawner: ProcessSpawner | None
    _functions: FunctionExecutor

    @property
    def start_failure(self) -> str:
        """Why a start hook failed the last time; "": none did."""
        return self._functions.start_failure

    async def start(self) -> None:
        """Return once the start hooks have succeeded; until then nothing must be run."""
        await self._functions.run_start_hooks()

    async def close(self, seconds: float) -> None:
        """Give attempts that were asked to end ``seconds``, then end all processes."""
        await self.executor.close(seconds)
        if self.spawner is not None:
            self.spawner.close()


def assemble(
    settings: WorkerSettings,
    arguments: WorkerArguments,
    config: ForkServerConfig,
    fork_server: ForkServerHandle | None,
    loop: asyncio.AbstractEventLoop,
) -> ExecutorSet:
    """Make the executors.

    Raises:
        StartError: an option is wrong, or two handlers have one name.
    """
    spawner = (
        None if fork_server is None else ProcessSpawner(fork_server, config.launch_by_exec, loop)
    )
    functions = _functions(settings, config, spawner, loop)
    by_name: dict[str, Executor] = {}
    rest: Executor | None = None
    if arguments.modules:
        _add(by_name, registry, functions)
    if arguments.commands and spawner is not None:
        from taskqueue.worker.executors.command import CommandError, CommandExecutor, ProgramCommand

        try:
            commands = [ProgramCommand.parse(text) for text in arguments.commands]
        except CommandError as error:
            raise StartError(str(error)) from None
        programs = CommandExecutor(
            commands,
            spawner,
            loop,
            kill_grace_seconds=settings.kill_grace_seconds,
            memory_mib=settings.child_memory_mib,
        )
        _add(by_name, (command.name for command in commands), programs)
    if arguments.targets:
        from taskqueue.worker.executors.http import ANY, HttpError, HttpExecutor, HttpTarget

        try:
            targets = [
                HttpTarget.parse(text, anywhere=arguments.http_anywhere)
                for text in arguments.targets
            ]
        except HttpError as error:
            raise StartError(str(error)) from None
        requests = HttpExecutor(targets, loop, kill_grace_seconds=settings.kill_grace_seconds)
        _add(by_name, (target.name for target in targets), requests)
        rest = by_name.pop(ANY, None)
    names = (*by_name, *(["*"] if rest is not None else []))
    if not arguments.commands and not arguments.targets:
        executor: Executor = functions
    else:
        default = None if registry.default is None else registry.default.name
        executor = ExecutorRouter(loop, by_name, rest=rest, default=default)
    return ExecutorSet(_with_store(executor, settings, loop), names, spawner, functions)


def _with_store(
    executor: Executor, settings: WorkerSettings, loop: asyncio.AbstractEventLoop
) -> Executor:
    """Return an executor that keeps results and output, as the settings say."""
    results, store = settings.results, None
    if results.source is not None:
        from taskqueue.results.source import CurrentStore
        from taskqueue.worker.result_writer import ResultWriter

        store = CurrentStore(results.source, retention_seconds=results.retention_seconds)
        executor = ResultWriter(
            executor, store, loop, namespace=settings.namespace, always=results.always
        )
    if results.output is not KeptOutput.NONE:
        from taskqueue.worker.output_keeper import OutputKeeper

        executor = OutputKeeper(
            executor,
            loop,
            store=store,
            namespace=settings.namespace,
            failed_only=results.output is KeptOutput.FAILED,
            redact=registry.redactor,
        )
    return executor


def _functions(
    settings: WorkerSettings,
    config: ForkServerConfig,
    spawner: ProcessSpawner | None,
    loop: asyncio.AbstractEventLoop,
) -> FunctionExecutor:
    pool = None
    if spawner is not None and settings.executor is HandlerExecutor.PROCESS:
        pool = ChildPool(
            spawner,
            loop,
            PoolSettings(
                kill_grace_seconds=settings.kill_grace_seconds,
                memory_mib=settings.child_memory_mib,
                max_tasks=settings.child_max_tasks,
                max_mib=settings.child_max_mib,
                keep_leftovers=settings.child_leftovers is Leftovers.KEEP,
                capture=config.log_format is LogFormat.JSON
                or settings.results.output is not KeptOutput.NONE,
            ),
        )
    return FunctionExecutor(registry, loop, pool)


def _add(by_name: dict[str, Executor], names: Iterable[str], executor: Executor) -> None:
    for name in names:
        if name in by_name:
            raise StartError(f"two handlers are called {name!r}: give one of them another name")
        by_name[name] = executor
