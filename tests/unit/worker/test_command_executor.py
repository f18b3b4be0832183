"""Programs as handlers: what goes in, what comes out, how they end."""

from __future__ import annotations

import asyncio
import os
import shlex
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from taskqueue.logs import LogFormat
from taskqueue.results.reference import StoredResult
from taskqueue.worker.executor import AttemptResult, Execution
from taskqueue.worker.executors.command import CommandError, CommandExecutor, ProgramCommand
from taskqueue.worker.executors.fork_server_launcher import ForkServerConfig
from taskqueue.worker.sdk import HandlerRegistry
from tests.unit.worker.children import PATIENCE, alive, appears, attempt, gone, spawner
from tests.unit.worker.hostile_ends import BODIES, assert_published

SAMPLE = Path(__file__).parents[3] / "examples/executors/command/count-words.sh"


class Shell:
    """An executor with one handler, and the results it gave."""

    def __init__(self, line: str, **how: Any) -> None:
        loop = asyncio.get_running_loop()
        recipe = ForkServerConfig(modules=[], log_format=LogFormat.JSON, log_level="INFO")
        self.spawner = spawner(recipe, HandlerRegistry(), loop)
        self.executor = CommandExecutor(
            [ProgramCommand.parse(f"f={line}")], self.spawner, loop, **how
        )
        self.results: asyncio.Queue[AttemptResult] = asyncio.Queue()

    def start(self, payload: dict[str, Any] | None = None, **changes: Any) -> Execution:
        return self.executor.start(attempt(payload=payload, **changes), self.results.put_nowait)

    async def run(self, payload: dict[str, Any] | None = None, **changes: Any) -> AttemptResult:
        self.start(payload, **changes)
        return await asyncio.wait_for(self.results.get(), PATIENCE)

    async def error(self) -> tuple[str, str, bool]:
        error = (await asyncio.wait_for(self.results.get(), PATIENCE)).error
        assert error is not None
        return error.type, error.message, error.retryable


@asynccontextmanager
async def shell(line: str, **how: Any) -> AsyncIterator[Shell]:
    made = Shell(line, **how)
    server = made.spawner.pid
    try:
        yield made
    finally:
        await made.executor.close()
        made.spawner.close()
        await asyncio.to_thread(os.waitpid, made.spawner.pid or server, 0)


def python(code: str, *arguments: str) -> str:
    return shlex.join([sys.executable, "-c", code, *arguments])


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where attempts have their files."""
    (tmp_path / "attempts").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "attempts"))
    return tmp_path


ECHO = """
import json, os, sys
names = ["TASK", "UID", "ATTEMPT", "MAX_ATTEMPTS", "FENCE", "SCHEDULED_TIME"]
names += ["TIMEOUT_SECONDS"]
about = {name: os.environ["TASKQUEUE_" + name] for name in names}
print(json.dumps({"payload": json.load(sys.stdin), "about": about}))
"""


async def test_payload_and_attempt_go_in_and_the_last_object_on_stdout_comes_out(
    folder: Path,
) -> None:
    async with shell(python("print('{not json'); print('done')" + ECHO)) as made:
        large = await made.run({"text": "x" * 200_000}, fence=7)
        assert large.unstored is not None
        assert len(large.unstored.body) > 200_000
        noon = datetime(2026, 1, 2, 12, tzinfo=UTC)
        result = await made.run({"text": "ä"}, fence=7, scheduled_time=noon)
    assert result.result == {
        "payload": {"text": "ä"},
        "about": {
            "TASK": "shop/a",
            "UID": "u",
            "ATTEMPT": "1",
            "MAX_ATTEMPTS": "3",
            "FENCE": "7",
            "SCHEDULED_TIME": "2026-01-02T12:00:00+00:00",
            "TIMEOUT_SECONDS": "30",
        },
    }
    assert list((folder / "attempts").iterdir()) == []


async def test_a_program_has_the_workers_environment_but_for_the_broker(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TASKQUEUE_BROKER_PASSWORD", "secret")
    monkeypatch.setenv("TASKQUEUE_BROKER_URI", "amqp://user:secret@host")
    monkeypatch.setenv("OF_THE_TEMPLATE", "here")
    code = "import json, os; print(json.dumps({'env': dict(os.environ)}))"
    async with shell(python(code)) as made:
        result = await made.run({})
    assert result.result is not None
    assert result.result["env"]["OF_THE_TEMPLATE"] == "here"
    assert "secret" not in str(result.result)


async def test_the_result_file_goes_before_stdout(folder: Path) -> None:
    code = "import os; print('{}'); open(os.environ['TASKQUEUE_RESULT_FILE'], 'w').write('%s')"
    async with shell(python(code % '{"a": 1}')) as made:
        assert (await made.run()).result == {"a": 1}
    async with shell(python(code % "[1]")) as made:
        made.start()
        assert (await made.error())[0::2] == ("InvalidResult", False)
    async with shell(python(code % ('{"a": "' + "x" * 20_000 + '"}'))) as made:
        assert (await made.run()).unstored == StoredResult(
            b'{"a":"%s"}' % (b"x" * 20_000), "application/json"
        )


@pytest.mark.parametrize(
    ("how", "kind"),
    [
        ("mkfifo", "InvalidResult"),
        ("mkdir", "InvalidResult"),
        ("echo null >", "InvalidResult"),
        ("truncate -s 2G", "ResultTooLarge"),
    ],
)
async def test_a_result_file_that_is_none(folder: Path, how: str, kind: str) -> None:
    async with shell(f"sh -c '{how} $TASKQUEUE_RESULT_FILE'") as made:
        made.start()
        assert (await made.error())[0::2] == (kind, False)


@pytest.mark.parametrize(
    ("last", "kind"),
    [
        ('{"loss": NaN}', "InvalidResult"),
        ('{"items": [{"loss": 18446744073709551615}]}', "InvalidResult"),
        ('{"loss": 1e999}', "InvalidResult"),
        ('{"text": "\\xff"}', "InvalidResult"),
        ("{'loss': 1}", "InvalidResult"),
        ('{"open": ', "InvalidResult"),
        ('{"a":' + "[" * 300 + "]" * 300 + "}", "InvalidResult"),
        ('{"text": "%s"}' % ("x" * 20_000), None),
        ('{"text": "%s"}' % ("x" * 2_200_000), "ResultTooLarge"),
        ("[1]", None),
        ("done", None),
        ('3 {"loss": 1}', None),
    ],
    ids=lambda value: str(value)[:20],
)
async def test_the_result_is_the_last_line_or_none_never_another_one(
    folder: Path, last: str, kind: str | None
) -> None:
    (folder / "last").write_text(last)
    lines = f'echo \'{{"event": "start"}}\'; printf "$(cat {folder}/last)"; echo; echo " "'
    async with shell(f"sh -c {shlex.quote(lines)}") as made:
        result = await made.run()
    assert result.result is None
    assert (None if result.error is None else result.error.type) == kind


async def test_the_last_object_on_stdout_may_be_indented(folder: Path) -> None:
    async with shell('printf \'{"a": 1}\\n  {"a": 2}\\r\\n\\n\'') as made:
        assert (await made.run()).result == {"a": 2}


async def test_output_without_end_ends_with_the_program(folder: Path) -> None:
    chatter = f"{sys.executable} -c 'while 1: print(0)'"
    async with shell(f"sh -c {shlex.quote(f'setsid {chatter} & sleep 0.1')}") as made:
        result = await made.run()
    assert (result.error, result.result) == (None, None)


async def test_what_left_its_group_ends_with_its_program_and_no_other(folder: Path) -> None:
    daemon = "import os, sys, time; print(os.getpid(), flush=True); os.fork(); time.sleep(1000)"
    line = shlex.join([sys.executable, "-c", daemon])
    # It is an orphan, in a session of its own, with a child of its own.
    script = f"(setsid {line} >{folder}/pid-$TASKQUEUE_UID &); "
    script += f"until test -e {folder}/$TASKQUEUE_UID; do sleep 0.01; done"
    async with shell(f"sh -c {shlex.quote(script)}") as made:
        made.start(uid="first")
        first = int(await appears(folder / "pid-first"))
        made.start(uid="second")
        second = int(await appears(folder / "pid-second"))
        (folder / "second").touch()
        assert (await asyncio.wait_for(made.results.get(), PATIENCE)).error is None
        assert not alive(second)
        assert alive(first)
        (folder / "first").touch()
        assert (await asyncio.wait_for(made.results.get(), PATIENCE)).error is None
        assert not alive(first)


async def test_the_payload_in_a_file(folder: Path) -> None:
    code = "import sys; assert not sys.stdin.read(); print(open(sys.argv[1]).read())"
    async with shell(python(code, "{payload}")) as made:
        assert (await made.run({"a": [1]})).result == {"a": [1]}


@pytest.mark.parametrize(
    ("code", "retryable"), [(1, True), (64, False), (65, False), (75, True), (255, True)]
)
async def test_exit_codes(folder: Path, code: int, retryable: bool) -> None:
    line = python(f"import sys; print('one', file=sys.stderr); sys.exit({code})")
    async with shell(line) as made:
        made.start()
        assert await made.error() == ("ExitCode", f"exit code {code}: one", retryable)
    async with shell(f"sh -c 'exit {code}'") as made:
        made.start()
        assert (await made.error())[1] == f"exit code {code}"


async def test_a_program_that_crashes(folder: Path) -> None:
    async with shell(python("import os; os.abort()")) as made:
        made.start()
        assert await made.error() == ("ChildDied", "the command was ended by SIGABRT", True)


async def test_a_program_gets_the_signals_of_a_fresh_process(folder: Path) -> None:
    code = (
        "import signal, json; print(json.dumps({'pipe': int(signal.getsignal(signal.SIGPIPE)), "
        "'blocked': len(signal.pthread_sigmask(signal.SIG_BLOCK, [])), "
        "'term': int(signal.getsignal(signal.SIGTERM))}))"
    )
    # Python ignores SIGPIPE for itself: asked is a shell, which does not.
    async with shell("sh -c 'trap; kill -PIPE $$; echo no'") as made:
        made.start()
        assert (await made.error())[1] == "the command was ended by SIGPIPE"
    async with shell(python(code)) as made:
        result = (await made.run()).result
        assert result is not None
        assert (result["term"], result["blocked"]) == (0, 0)


FAMILY = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN if sys.argv[2] == "deaf" else signal.SIG_DFL)
child = os.fork()
open(sys.argv[1] + "/" + str(os.getpid()), "w").write("x")
while True:
    time.sleep(1)
"""


@pytest.mark.parametrize("how", ["deaf", "polite"])
async def test_a_cancel_ends_the_whole_group(folder: Path, how: str) -> None:
    (folder / "pids").mkdir()
    line = python(FAMILY, str(folder / "pids"), how)
    async with shell(line, kill_grace_seconds=0.2) as made:
        execution = made.start()
        async with asyncio.timeout(PATIENCE):
            while len(os.listdir(folder / "pids")) < 2:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        execution.cancel()
        assert (await made.error())[0] == "Cancelled"
        assert not any(alive(int(pid)) for pid in os.listdir(folder / "pids"))
        assert execution.kill()


async def test_a_cancel_before_it_is_there(folder: Path) -> None:
    async with shell("sleep 1000") as made:
        made.start().cancel()
        assert (await made.error())[0] == "Cancelled"
        assert made.start().kill()
        assert (await made.error())[0] == "Cancelled"


async def test_a_memory_limit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("taskqueue.worker.executors.exit_status.MEMORY_SECONDS", 0.02)
    async with shell(python("kept = 'x' * 10**8\nwhile 1: pass"), memory_mib=50) as made:
        made.start()
        kind, message, _ = await made.error()
        assert kind == "MemoryLimit"
        assert "the limit is 50 MiB" in message


async def test_its_output_is_logged(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    async with shell("sh -c 'echo one; echo two >&2'") as made:
        await made.run(task="shop/a")
    told = {
        (record.fields["stream"], record.fields["text"], record.fields["task"])  # type: ignore[attr-defined]
        for record in caplog.records
        if record.getMessage() == "handler.output"
    }
    assert told == {("stdout", "one", "a"), ("stderr", "two", "a")}


async def test_no_place_for_its_files(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(folder / "nowhere"))
    async with shell("true") as made:
        made.start()
        kind, message, retryable = await made.error()
    assert (kind, retryable) == ("ChildDied", True)
    assert "mount an emptyDir at" in message


async def test_a_fork_server_that_dies_loses_the_attempt_not_the_task(folder: Path) -> None:
    async with shell(
        python(
            "import os,time,sys; open(sys.argv[1],'w').write(str(os.getpid()))\ntime.sleep(1000)",
            str(folder / "pid"),
        )
    ) as made:
        made.start()
        pid = int(await appears(folder / "pid"))
        os.kill(made.spawner.pid, 9)
        result = await asyncio.wait_for(made.results.get(), PATIENCE)
        assert result.lost
        await gone(pid)
        (folder / "pid").unlink()
        made.start().cancel()  # by the one started anew, which has no module to import
        assert (await made.error())[0] == "Cancelled"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("resize", "names no handler"),
        ("=true", "names no handler"),
        ("resize=", "names no program"),
        ("resize='x", "No closing quotation"),
        ("resize=no-such-program-at-all x", "there is no program 'no-such-program-at-all'"),
    ],
)
def test_wrong_options(text: str, words: str) -> None:
    with pytest.raises(CommandError) as told:
        ProgramCommand.parse(text)
    assert words in str(told.value)
    assert "--command" in str(told.value)


def test_an_option_is_split_as_a_shell_would() -> None:
    command = ProgramCommand.parse("a=sh -c 'echo \"$1\"' x=y")
    assert (command.name, command.argv) == ("a", ("sh", "-c", 'echo "$1"', "x=y"))


# The sample.


async def test_the_sample(folder: Path) -> None:
    async with shell(f"sh {SAMPLE} {{payload}}") as made:
        assert (await made.run({"text": "one two three"})).result == {"words": 3}
        made.start({"other": 1})
        assert await made.error() == ("ExitCode", 'exit code 65: the payload has no "text"', False)
        made.start({"text": "not yet"})
        assert await made.error() == ("ExitCode", "exit code 75: attempt 1 of 3: not yet", True)
        assert (await made.run({"text": "not yet"}, attempt=2)).result == {"words": 2}


async def test_the_sample_is_cancelled(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")

    def said() -> str:  # lines that come together are one record
        fields = [getattr(record, "fields", {}) for record in caplog.records]
        return "\n".join(each.get("text", "") for each in fields)

    async with shell(f"sh {SAMPLE} {{payload}}") as made:
        execution = made.start({"text": "wait for me"})
        async with asyncio.timeout(PATIENCE):
            while "waiting, to be cancelled" not in said():  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        execution.cancel()
        assert (await made.error())[0] == "Cancelled"
    assert "cleaned up" in said()


async def test_whatever_a_program_writes_is_an_outcome(tmp_path: Path) -> None:
    line = 'cat "$1/$TASKQUEUE_UID"; cat "$1/$TASKQUEUE_UID" >"$TASKQUEUE_RESULT_FILE"; exit "$2"'
    for name, body in BODIES.items():
        (tmp_path / name).write_bytes(body)
    for code in ("0", "3"):
        async with shell(shlex.join(["sh", "-c", line, "sh", str(tmp_path), code])) as made:
            for name in BODIES:
                assert_published(await made.run(uid=name))
