"""The worker's command line, and what executors are made from it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from taskqueue.logs import LogFormat
from taskqueue.worker import executor_set, main
from taskqueue.worker.arguments import WorkerArguments
from taskqueue.worker.executor import AttemptRequest, AttemptResult
from taskqueue.worker.executor_set import ExecutorSet, assemble
from taskqueue.worker.executors.command import CommandExecutor
from taskqueue.worker.executors.fork_server_launcher import ForkServerConfig
from taskqueue.worker.executors.function import FunctionExecutor, NothingRan
from taskqueue.worker.executors.http import HttpExecutor
from taskqueue.worker.executors.router import ExecutorRouter
from taskqueue.worker.loading import StartError
from taskqueue.worker.sdk import HandlerRegistry
from taskqueue.worker.settings import HandlerExecutor
from taskqueue.worker.settings_table import rows
from tests.unit.worker.children import attempt
from tests.unit.worker.fakes import settings

SERVICE = "http://127.0.0.1:8000/run"


def test_all_kinds_go_together() -> None:
    words = ["--command", "a=true", "shop", "--http", f"b={SERVICE}", "--command=c=ls", "more"]
    assert WorkerArguments.parse([*words, "--http-anywhere"]) == WorkerArguments(
        modules=("shop", "more"),
        commands=("a=true", "c=ls"),
        targets=(f"b={SERVICE}",),
        http_anywhere=True,
    )


def test_nothing_to_serve(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main([], {}) == 1
    assert "nothing to serve: give a module" in capsys.readouterr().err


def test_the_help_names_every_option_and_every_variable(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as ended:
        main.main(["--help"], {})
    assert ended.value.code == 0
    text = capsys.readouterr().out
    for word in ("MODULE", "--command", "--http ", "--http-anywhere", *(row[0] for row in rows())):
        assert word in text


def test_an_option_that_does_not_exist(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main.main(["shop", "--comand", "x"], {})
    assert ended.value.code == 2
    assert "usage: python -m taskqueue worker" in capsys.readouterr().err


def assembled(
    monkeypatch: pytest.MonkeyPatch, arguments: WorkerArguments, *functions: Any, **changes: Any
) -> ExecutorSet:
    """Assemble a worker for these functions, as if a module had them; nothing is forked."""
    registry = HandlerRegistry()
    for function in functions:
        registry.register(function)
    monkeypatch.setattr(executor_set, "registry", registry)
    config = ForkServerConfig(
        modules=arguments.modules, log_format=LogFormat.JSON, log_level="INFO"
    )
    loop = asyncio.get_running_loop()
    fork_server: Any = object() if arguments.commands else None
    monkeypatch.setattr(executor_set, "ProcessSpawner", lambda *_: object())
    changes = {"executor": HandlerExecutor.THREAD, **changes}
    return assemble(settings(**changes), arguments, config, fork_server, loop)


def resize(payload: dict[str, Any]) -> None:
    """A handler."""


async def test_functions_alone_need_no_router(monkeypatch: pytest.MonkeyPatch) -> None:
    made = assembled(monkeypatch, WorkerArguments(modules=("shop",)), resize)
    assert isinstance(made.executor, FunctionExecutor)
    assert made.handlers == ("resize",)


async def test_each_handler_goes_to_its_executor(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[tuple[type, str | None]] = []

    def start(self: Any, attempt: AttemptRequest, done: Any) -> NothingRan:
        started.append((type(self), attempt.handler))
        return NothingRan()

    for kind in (FunctionExecutor, CommandExecutor, HttpExecutor):
        monkeypatch.setattr(kind, "start", start)
    arguments = WorkerArguments(modules=("shop",), commands=("ls=ls",), targets=(f"*={SERVICE}",))
    made = assembled(monkeypatch, arguments, resize)
    assert made.handlers == ("resize", "ls", "*")
    for name in ("resize", "ls", "pack", None):
        made.executor.start(attempt(name), lambda result: None)
    assert started == [
        (FunctionExecutor, "resize"),
        (CommandExecutor, "ls"),
        (HttpExecutor, "pack"),
        (FunctionExecutor, "resize"),
    ]


async def test_a_single_command_takes_messages_that_name_none() -> None:
    asked: list[str | None] = []

    class One:
        def start(self, attempt: AttemptRequest, done: Any) -> NothingRan:
            asked.append(attempt.handler)
            return NothingRan()

        async def close(self, seconds: float = 0.0) -> None: ...

    loop = asyncio.get_running_loop()
    ExecutorRouter(loop, {"ls": One()}).start(attempt(None), lambda result: None)
    assert asked == ["ls"]
    for router in (
        ExecutorRouter(loop, {"ls": One(), "ps": One()}),
        ExecutorRouter(loop, {"ls": One()}, rest=One()),
        ExecutorRouter(loop, {}, rest=One()),
    ):
        results: asyncio.Queue[AttemptResult] = asyncio.Queue()
        router.start(attempt(None), results.put_nowait)
        error = (await results.get()).error
        assert error is not None
        assert error.type == "UnknownHandler"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            WorkerArguments(modules=("shop",), commands=("resize=ls",)),
            "two handlers are called 'resize'",
        ),
        (WorkerArguments(commands=("ls=ls", "ls=ls")), "two handlers are called 'ls'"),
        (WorkerArguments(commands=("ls",)), "names no handler"),
        (WorkerArguments(targets=("a=http://example.com",)), "--http-anywhere"),
        (WorkerArguments(targets=(f"*={SERVICE}", f"*={SERVICE}")), "two handlers are called '*'"),
    ],
)
async def test_what_cannot_be(
    monkeypatch: pytest.MonkeyPatch, arguments: WorkerArguments, words: str
) -> None:
    with pytest.raises(StartError) as raised:
        assembled(monkeypatch, arguments, resize)
    assert words in str(raised.value)


async def test_a_start_hook_that_fails_holds_up_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise ValueError("no database")

    registry = HandlerRegistry()
    registry.register(resize)
    registry.start_hooks.append(fail)
    monkeypatch.setattr(executor_set, "registry", registry)
    config = ForkServerConfig(modules=["shop"], log_format=LogFormat.JSON, log_level="INFO")
    loop = asyncio.get_running_loop()
    made = assemble(settings(), WorkerArguments(modules=("shop",)), config, None, loop)
    starting = asyncio.ensure_future(made.start())
    while not made.start_failure:  # noqa: ASYNC110
        await asyncio.sleep(0.001)
    assert made.start_failure == "ValueError: no database"
    assert not starting.done()
    starting.cancel()
