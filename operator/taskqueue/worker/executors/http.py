"""Runs attempts by HTTP: ``--http 'NAME=http://127.0.0.1:8000/path'``, for a service in the pod.

The payload is POSTed as JSON; Taskqueue- headers describe the attempt. An answer 2xx is success and
its body, if it begins with ``{``, the result, a JSON object. 408, 425, 429, 5xx and a missing
answer are failures that are retried, after the time of a Retry-After if there is one; any other
status is a failure that is not retried. To end an attempt, its connection is closed and a DELETE
with its uid and number sent to the same URL; a message without a uid gets no DELETE, which could
hit another. The service decides whether that ends the work.

The header Taskqueue-Checkpoint-Url has an address of the worker's: GET returns the last checkpoint,
PUT saves another. A target outside the pod does not get it: nothing of the pod's is open to it.

NAME ``*`` stands for every handler without an executor of its own; its name is appended to the
URL.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from urllib.parse import quote, urlsplit

import aiohttp
import orjson

from taskqueue.limits import TEXT_RESULT_BYTES
from taskqueue.worker.checkpoints import TextCheckpoint
from taskqueue.worker.executor import AttemptRequest, AttemptResult, Execution
from taskqueue.worker.executors.checkpoint_server import CheckpointServer
from taskqueue.worker.executors.function import NothingRan
from taskqueue.worker.outcome import failure, parsed_result, too_large, unknown_handler
from taskqueue.worker.sdk import Progress

#: The NAME that stands for every handler.
ANY = "*"

#: Handlers that `ANY` does not stand for: appended to its URL they lead to another path.
_NO_NAMES = {"", ".", ".."}

_RETRYABLE = {408, 425, 429}

#: How long making a connection may take, in seconds.
_CONNECT_SECONDS = 10.0

#: A connection that was idle this long is not reused: services close them after 2 s and more, and a
#: request on a connection that is being closed would be a failed attempt.
_IDLE_SECONDS = 1.0

#: Characters of an answer in an error's message.
_SHOWN_LENGTH = 200


class HttpError(ValueError):
    """An option of the command line is wrong; the text says what to do."""


@dataclass(frozen=True, slots=True)
class HttpTarget:
    """A handler that is a URL."""

    name: str
    url: str

    @classmethod
    def parse(cls, text: str, *, anywhere: bool = False) -> HttpTarget:
        """Read ``NAME=URL``.

        Args:
            text: the option's value.
            anywhere: allow addresses outside the pod.

        Raises:
            HttpError: it is not that, or the address is not of this pod.
        """
        name, separator, url = (part.strip() for part in text.partition("="))
        how = "give --http 'NAME=http://127.0.0.1:8000/path'"
        if not separator or not name:
            raise HttpError(f"--http {text!r} names no handler: {how}")
        try:
            parts = urlsplit(url)
            host, _ = parts.hostname, parts.port
        except ValueError as problem:
            raise HttpError(f"--http {text!r}: {problem}: {how}") from None
        if parts.scheme not in ("http", "https") or not host:
            raise HttpError(f"--http {text!r} names no http:// address: {how}")
        if not anywhere and not _is_loopback(host):
            raise HttpError(
                f"--http {text!r}: {host} is not an address of this pod: give 127.0.0.1, or add "
                "--http-anywhere if payloads may leave the pod"
            )
        return cls(name, url)

    def url_for(self, handler: str) -> str:
        """Return where attempts of the handler are sent."""
        if self.name != ANY:
            return self.url
        parts = urlsplit(self.url)
        return parts._replace(path=f"{parts.path.rstrip('/')}/{quote(handler, safe='')}").geturl()

    @property
    def in_pod(self) -> bool:
        """Whether the address is of this pod."""
        return _is_loopback(urlsplit(self.url).hostname or "")


class HttpExecution:
    """Sends an attempt as an HTTP request and waits for the answer."""

    killable = True
    progress: Progress | None = None

    def __init__(
        self,
        executor: HttpExecutor,
        target: HttpTarget,
        attempt: AttemptRequest,
        body: bytes,
        done: Callable[[AttemptResult], None],
    ) -> None:
        self._executor = executor
        self._url = target.url_for(attempt.handler or "")
        self._in_pod = target.in_pod
        self._attempt = attempt
        self._body = body
        self._done = done
        self._began = executor.loop.time()
        self._cancelled = False
        self._killed = False
        self._released = False
        self._checkpoint_url = ""
        self.task = executor.loop.create_task(self._run())
        self.task.add_done_callback(self._on_task_done)

    def cancel(self) -> None:
        """Close the connection and send the DELETE; it may take as long as the grace."""
        if not self._cancelled:
            self._cancelled = True
            self.task.cancel()

    def kill(self) -> bool:
        """Close the connection without a DELETE."""
        self._cancelled = self._killed = True
        self.task.cancel()
        return True

    def _give_back(self) -> None:
        """End the attempt: the service needs a checkpoint that only the operator knows."""
        if not self._cancelled:
            self._cancelled = self._released = True
            self.task.cancel()

    async def _run(self) -> AttemptResult:
        try:
            return await self._post()
        except asyncio.CancelledError:
            if not self._killed:
                await self._delete()
            raise

    async def _post(self) -> AttemptResult:
        session = self._executor.session()
        headers = _headers(self._attempt)
        try:
            if self._in_pod:
                headers["Taskqueue-Checkpoint-Url"] = await self._serve_checkpoint()
            async with session.post(
                self._url, data=self._body, headers=headers, allow_redirects=False
            ) as answer:
                text = await _read(answer)
                return self._answer_result(answer.status, answer.reason, answer.headers, text)
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            message = f"no answer from {_redacted(self._url)}: {_describe(error)}"
            return failure("HttpUnreachable", message, self._seconds)

    async def _serve_checkpoint(self) -> str:
        checkpoint = TextCheckpoint(self._attempt)
        self._checkpoint_url = await self._executor.checkpoints.add(checkpoint, self._give_back)
        return self._checkpoint_url

    async def _delete(self) -> None:
        if not self._attempt.uid:
            return
        with contextlib.suppress(aiohttp.ClientError, OSError, TimeoutError):
            async with (
                asyncio.timeout(self._executor.grace_seconds),
                self._executor.session().delete(
                    self._url,
                    headers={
                        "Taskqueue-Uid": _header(self._attempt.uid),
                        "Taskqueue-Attempt": str(self._attempt.attempt),
                    },
                ),
            ):
                pass

    def _answer_result(
        self, status: int, reason: str | None, headers: Mapping[str, str], text: bytes
    ) -> AttemptResult:
        if 200 <= status < 300:
            return self._success(text)
        detail = text.decode("utf-8", "replace").strip().partition("\n")[0][:_SHOWN_LENGTH]
        message = f"{_redacted(self._url)} answered {status} {reason or _phrase(status)}"
        return failure(
            "HttpStatus",
            f"{message}: {detail}" if detail else message,
            self._seconds,
            retryable=status in _RETRYABLE or status >= 500,
            retry_after=_retry_after(headers.get("Retry-After")),
        )

    def _success(self, text: bytes) -> AttemptResult:
        handler = self._attempt.handler or ""
        text = text.strip()
        if not text.startswith(b"{"):
            return AttemptResult(seconds=self._seconds)
        if len(text) > TEXT_RESULT_BYTES:
            return too_large(self._seconds)
        return parsed_result(text, self._seconds, handler=handler, where="in its answer")

    def _on_task_done(self, task: asyncio.Task[AttemptResult]) -> None:
        self._executor.remove_execution(self)
        self._executor.checkpoints.remove(self._checkpoint_url)
        if task.cancelled() and self._released:
            result = AttemptResult(seconds=self._seconds, released=True)
        elif task.cancelled():
            result = failure("Cancelled", "the request was cancelled", self._seconds)
        elif (problem := task.exception()) is not None:
            result = failure("HttpUnreachable", f"{type(problem).__name__}: {problem}", 0.0)
        else:
            result = task.result()
        self._done(result)

    @property
    def _seconds(self) -> float:
        return self._executor.loop.time() - self._began


class HttpExecutor:
    """Runs handlers by HTTP; a `taskqueue.worker.executor.Executor`.

    Args:
        targets: the handlers.
        loop: everything here is called on it.
        kill_grace_seconds: how long a DELETE may take.
    """

    def __init__(
        self,
        targets: Iterable[HttpTarget],
        loop: asyncio.AbstractEventLoop,
        *,
        kill_grace_seconds: float = 5.0,
    ) -> None:
        self._targets = {target.name: target for target in targets}
        self.loop = loop
        self.grace_seconds = kill_grace_seconds
        self.checkpoints = CheckpointServer()
        self._session: aiohttp.ClientSession | None = None
        self._running: set[HttpExecution] = set()

    def start(self, attempt: AttemptRequest, done: Callable[[AttemptResult], None]) -> Execution:
        """Send the attempt to its URL."""
        name = attempt.handler or ""
        target = self._targets.get(name)
        if target is None and name not in _NO_NAMES:
            target = self._targets.get(ANY)
        if target is None:
            self.loop.call_soon(done, unknown_handler(attempt.handler, self._targets))
            return NothingRan()
        try:
            body = orjson.dumps(attempt.payload)
        except TypeError as problem:
            reason = f"the payload cannot be passed to handler {name!r}: {problem}"
            result = failure("InvalidPayload", reason, 0.0, retryable=False)
            self.loop.call_soon(done, result)
            return NothingRan()
        execution = HttpExecution(self, target, attempt, body, done)
        self._running.add(execution)
        return execution

    def session(self) -> aiohttp.ClientSession:
        """Return the session, created on first use."""
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_IDLE_SECONDS),
                cookie_jar=aiohttp.DummyCookieJar(),
                # The runtime enforces the attempt's time limit.
                timeout=aiohttp.ClientTimeout(total=None, connect=_CONNECT_SECONDS),
            )
        return self._session

    def remove_execution(self, execution: HttpExecution) -> None:
        """Stop tracking an execution that has ended."""
        self._running.discard(execution)

    async def close(self, seconds: float = 0.0) -> None:
        """Cancel what runs, and wait for its end at most ``seconds``."""
        tasks = [execution.task for execution in self._running]
        for execution in list(self._running):
            execution.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=seconds)
        for task in tasks:
            task.cancel()
        if self._session is not None:
            await self._session.close()
        await self.checkpoints.close()


def _headers(attempt: AttemptRequest) -> dict[str, str]:
    headers = {
        "Content-Type": "application/json",
        "Taskqueue-Task": _header(attempt.task),
        "Taskqueue-Uid": _header(attempt.uid),
        "Taskqueue-Attempt": str(attempt.attempt),
        "Taskqueue-Max-Attempts": str(attempt.max_attempts),
        "Taskqueue-Timeout-Seconds": f"{attempt.timeout_seconds:g}",
    }
    if attempt.fence is not None:
        headers["Taskqueue-Fence"] = str(attempt.fence)
    if attempt.scheduled_time is not None:
        headers["Taskqueue-Scheduled-Time"] = attempt.scheduled_time.isoformat()
    if attempt.index is not None:
        headers["Taskqueue-Index"] = str(attempt.index)
    return headers


def _header(text: str) -> str:
    """Return text as a header's value: a correlation id may have any characters."""
    if text.isascii() and text.isprintable():
        return text
    return quote(text, safe="/:=+ ", errors="replace")


def _redacted(url: str) -> str:
    """Return a URL without what may be secret: a Task's status shows errors."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()


def _describe(error: Exception) -> str:
    # Its text would include the URL.
    text = error.message if isinstance(error, aiohttp.ClientResponseError) else str(error)
    return text or type(error).__name__


async def _read(answer: aiohttp.ClientResponse) -> bytes:
    """Return the body, or a little more than `TEXT_RESULT_BYTES` of it."""
    text = b""
    async for chunk in answer.content.iter_any():
        text += chunk
        if len(text) > TEXT_RESULT_BYTES:
            break
    return text


def _retry_after(value: str | None) -> float | None:
    """Return the seconds a Retry-After asks for: a number, or a date."""
    if value is None:
        return None
    try:
        if value.strip().isdigit():
            return float(value)
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
