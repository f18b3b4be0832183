"""Runs a program for each attempt of a handler: ``--command 'NAME=program argument…'``.

The payload is JSON on standard input, or in a file whose path takes the place of ``{payload}`` in
the arguments. TASKQUEUE_ variables describe the attempt. The result is the JSON object in the file
TASKQUEUE_RESULT_FILE, else that in the last line of standard output if it begins with ``{``, else
none; never another line. The exit code says how the attempt ended: 0 success, 64 and 65 (EX_USAGE,
EX_DATAERR) a failure that is not retried, anything else a failure that is retried.

The last checkpoint is in the file TASKQUEUE_CHECKPOINT_FILE, and a JSON object that the program
writes there is saved.

The program leads a process group of its own: SIGTERM goes to it, SIGKILL to the group, and what is
left of the group when it ends is killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import shutil
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import orjson

from taskqueue.limits import TEXT_RESULT_BYTES
from taskqueue.logs import EventLog
from taskqueue.worker.checkpoints import TextCheckpoint
from taskqueue.worker.deadlines import Deadlines
from taskqueue.worker.executor import AttemptRequest, AttemptResult, Execution
from taskqueue.worker.executors.attempt_files import CheckpointFile, read_file
from taskqueue.worker.executors.exit_status import (
    MemoryWatch,
    describe_exit,
    is_retryable,
    over_limit,
)
from taskqueue.worker.executors.function import NothingRan
from taskqueue.worker.executors.memory import OomKills
from taskqueue.worker.executors.output import LINE_BYTES, OutputPipe, merge_lines
from taskqueue.worker.executors.process_spawner import ProcessExit, ProcessSpawner, SpawnedProcess
from taskqueue.worker.outcome import encodable, failure, parsed_result, too_large, unknown_handler
from taskqueue.worker.sdk import Progress

log = EventLog("taskqueue.worker")

#: In an argument: the path of a file with the payload.
PAYLOAD = "{payload}"


#: A line of standard output that may be the result is kept up to this length.
_LINE_BYTES = TEXT_RESULT_BYTES


class CommandError(ValueError):
    """An option of the command line is wrong; the text says what to do."""


@dataclass(frozen=True, slots=True)
class ProgramCommand:
    """A handler that is a program."""

    name: str
    argv: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> ProgramCommand:
        """Read ``NAME=program argument…``, with quotes as in a shell, which does not run.

        Raises:
            CommandError: it is not that, or there is no such program.
        """
        name, separator, line = text.partition("=")
        how = "give --command 'NAME=program argument…'"
        if not separator or not name.strip():
            raise CommandError(f"--command {text!r} names no handler: {how}")
        try:
            line.encode()  # JSON carries it
            argv = shlex.split(line)
        except ValueError as problem:
            raise CommandError(f"--command {text!r}: {problem}: {how}") from None
        if not argv:
            raise CommandError(f"--command {text!r} names no program: {how}")
        if shutil.which(argv[0]) is None:
            raise CommandError(
                f"--command {text!r}: there is no program {argv[0]!r} that can be run: give its "
                "path, or put its folder on PATH"
            )
        return cls(name.strip(), tuple(argv))


class CommandExecution:
    """Runs a program for one attempt.

    Raises:
        OSError: its files cannot be created.
    """

    killable = True
    progress: Progress | None = None

    def __init__(
        self,
        executor: CommandExecutor,
        command: ProgramCommand,
        attempt: AttemptRequest,
        done: Callable[[AttemptResult], None],
    ) -> None:
        self._executor = executor
        self._attempt = attempt
        self._done = done
        self._began = executor.loop.time()
        self._cancelled = False
        self._over_mib: float | None = None
        self._last_error = ""
        self._process: SpawnedProcess | None = None
        self._folder = Path(tempfile.mkdtemp(prefix="attempt-"))
        self._checkpoint = CheckpointFile(
            self._folder / "checkpoint.json", TextCheckpoint(attempt), executor.loop
        )
        self._pipes: list[OutputPipe] = []
        try:
            self._begin(command)
        except BaseException:
            self._clean_up()
            raise

    @property
    def pid(self) -> int:
        """Its process id; 0: it does not exist yet, or is about to end."""
        return 0 if self._process is None or self._over_mib else self._process.pid

    @property
    def limit_mib(self) -> int:
        """The most memory it may hold, in MiB; 0: no limit."""
        return self._executor.memory_mib

    def cancel(self) -> None:
        """Send SIGTERM, and SIGKILL to the process group when the grace is over."""
        if not self._cancelled and self._process is not None:
            self._cancelled = True
            self._checkpoint.save_changes()  # before its end is published
            self._process.terminate()
            self._executor.kill_after_grace(self)

    def kill(self) -> bool:
        """Kill the process group now."""
        if self._process is not None:
            self._cancelled = True
            self._process.kill()
        return True

    def on_limit_exceeded(self, held_mib: float) -> None:
        """Kill the process group, which holds more memory than it may."""
        if self._process is not None:
            self._over_mib = held_mib
            self._process.kill()

    def _begin(self, command: ProgramCommand) -> None:
        payload = self._folder / "payload.json"
        payload.write_bytes(orjson.dumps(self._attempt.payload))
        self._checkpoint.open()
        by_file = any(PAYLOAD in each for each in command.argv)
        stdin = os.open(os.devnull if by_file else payload, os.O_RDONLY | os.O_CLOEXEC)
        loop = self._executor.loop
        try:
            self._pipes.append(OutputPipe(loop, self._on_stdout, line_bytes=_LINE_BYTES))
            self._pipes.append(OutputPipe(loop, self._on_stderr))
        except OSError:
            os.close(stdin)
            raise
        self._process = self._executor.spawner.command(
            [each.replace(PAYLOAD, str(payload)) for each in command.argv],
            self._environment(),
            [stdin, *(pipe.writing for pipe in self._pipes)],
            self._on_exit,
        )

    def _environment(self) -> dict[str, str]:
        attempt, scheduled = self._attempt, self._attempt.scheduled_time
        values = {
            "TASKQUEUE_TASK": attempt.task,
            "TASKQUEUE_UID": attempt.uid,
            "TASKQUEUE_ATTEMPT": str(attempt.attempt),
            "TASKQUEUE_MAX_ATTEMPTS": str(attempt.max_attempts),
            "TASKQUEUE_FENCE": "" if attempt.fence is None else str(attempt.fence),
            "TASKQUEUE_INDEX": "" if attempt.index is None else str(attempt.index),
            "TASKQUEUE_SCHEDULED_TIME": scheduled.isoformat() if scheduled else "",
            "TASKQUEUE_TIMEOUT_SECONDS": f"{attempt.timeout_seconds:g}",
            "TASKQUEUE_RESULT_FILE": str(self._result_file),
            "TASKQUEUE_CHECKPOINT_FILE": str(self._checkpoint.path),
        }
        # A correlation id is any text; an environment variable cannot be.
        return {name: encodable(text.replace("\0", "")) for name, text in values.items()}

    @property
    def _result_file(self) -> Path:
        return self._folder / "result.json"

    def _on_stdout(self, lines: list[str]) -> None:
        self._log("stdout", lines)

    def _on_stderr(self, lines: list[str]) -> None:
        self._last_error = next(filter(None, map(str.strip, reversed(lines))), self._last_error)
        self._log("stderr", lines)

    def _log(self, stream: str, lines: list[str]) -> None:
        keep = self._attempt.on_output
        for text in merge_lines(lines):
            if keep is not None:
                keep(text)
            log.info(
                "handler.output", text=text[:LINE_BYTES], stream=stream, **self._attempt.log_fields
            )

    def _on_exit(self, status: ProcessExit) -> None:
        self._process = None
        for pipe in self._pipes:
            pipe.close()
        self._checkpoint.save_changes()
        result = self._exit_result(status)
        self._clean_up()
        self._executor.remove_execution(self)
        self._done(result)

    def _clean_up(self) -> None:
        for pipe in self._pipes:
            pipe.close()
        self._checkpoint.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _exit_result(self, status: ProcessExit) -> AttemptResult:
        seconds = self._executor.loop.time() - self._began
        if status.lost:
            return AttemptResult(seconds=seconds, lost="the fork server died, and its commands")
        if self._over_mib is not None:
            return over_limit(self._over_mib, self.limit_mib, seconds)
        if self._cancelled:
            return failure("Cancelled", "it was cancelled", seconds)
        if status.code < 0 or status.error:
            how = describe_exit(status, self._executor.kills)
            return failure("ChildDied", f"the command {how}", seconds)
        if status.code:
            detail = f": {self._last_error}" if self._last_error else ""
            return failure(
                "ExitCode",
                f"exit code {status.code}{detail}",
                seconds,
                retryable=is_retryable(status.code),
            )
        return self._success(seconds)

    def _success(self, seconds: float) -> AttemptResult:
        handler = self._attempt.handler or ""
        where = "in the file TASKQUEUE_RESULT_FILE"
        try:
            text = read_file(self._result_file, TEXT_RESULT_BYTES)
        except OSError as error:
            reason = f"handler {handler!r}: the result {where} cannot be read: {error}"
            return failure("InvalidResult", reason, seconds, retryable=False)
        if not text:
            where = "in the last line of standard output"
            line = self._pipes[0].last_line.strip()
            text = line if line.startswith(b"{") else b""
        if not text:
            return AttemptResult(seconds=seconds)
        if len(text) > TEXT_RESULT_BYTES:
            return too_large(seconds)
        return parsed_result(text, seconds, handler=handler, where=where)


class CommandExecutor:
    """Runs programs as handlers; a `taskqueue.worker.executor.Executor`.

    Args:
        commands: the handlers.
        spawner: makes the processes.
        loop: everything here is called on it.
        kill_grace_seconds: between SIGTERM and SIGKILL.
        memory_mib: a program that holds more is killed; 0: no limit.
    """

    def __init__(
        self,
        commands: Iterable[ProgramCommand],
        spawner: ProcessSpawner,
        loop: asyncio.AbstractEventLoop,
        *,
        kill_grace_seconds: float = 5.0,
        memory_mib: int = 0,
    ) -> None:
        self._commands = {command.name: command for command in commands}
        self.spawner = spawner
        self.loop = loop
        self.kills = OomKills()
        self.memory_mib = memory_mib
        self._grace = kill_grace_seconds
        self._running: set[CommandExecution] = set()
        self._deadlines: Deadlines[CommandExecution] = Deadlines(loop, _kill)
        self._memory = MemoryWatch(loop, lambda: self._running)
        self._none_left = asyncio.Event()

    def start(self, attempt: AttemptRequest, done: Callable[[AttemptResult], None]) -> Execution:
        """Run the attempt's program."""
        command = self._commands.get(attempt.handler or "")
        if command is None:
            self.loop.call_soon(done, unknown_handler(attempt.handler, self._commands))
            return NothingRan()
        if not attempt.checkpoint_known:  # a program cannot ask for it: it would start over
            self.loop.call_soon(done, AttemptResult(seconds=0.0, released=True))
            return NothingRan()
        try:
            execution = CommandExecution(self, command, attempt, done)
        except TypeError as error:
            reason = f"the payload cannot be passed to handler {command.name!r}: {error}"
            result = failure("InvalidPayload", reason, 0.0, retryable=False)
        except OSError as error:
            reason = (
                f"the files of an attempt cannot be written ({error}): mount an emptyDir at "
                f"{tempfile.gettempdir()}, or set TMPDIR"
            )
            result = failure("ChildDied", reason, 0.0)
        else:
            self._running.add(execution)
            if self.memory_mib:
                self._memory.start()
            return execution
        self.loop.call_soon(done, result)
        return NothingRan()

    def kill_after_grace(self, execution: CommandExecution) -> None:
        """Kill an execution unless it ends within the grace."""
        self._deadlines.set_first(execution, self.loop.time() + self._grace)

    def remove_execution(self, execution: CommandExecution) -> None:
        """Stop tracking an execution that has ended."""
        self._running.discard(execution)
        self._deadlines.drop(execution)
        if not self._running:
            self._none_left.set()

    async def close(self, seconds: float = 0.0) -> None:
        """Let what runs end within ``seconds``; the end of the spawner kills the rest."""
        for execution in list(self._running):
            execution.cancel()
        if self._running:
            self._none_left.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._none_left.wait()
        self._memory.close()
        self._deadlines.close()


def _kill(execution: CommandExecution) -> None:
    execution.kill()
