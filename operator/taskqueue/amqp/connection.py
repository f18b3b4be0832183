"""A connection to RabbitMQ: opened once, used until `closed` is done, then replaced by its owner.

It does not reconnect: its owners do, in a loop (connect, work until `Connection.closed`, wait; see
`taskqueue.backoff`). A memory or disk alarm of the broker does not end a connection: publishes
wait, and `Connection.blocked` says so. The connection is closed after two heartbeat intervals of
silence.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import ssl
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pika.connection
import pika.credentials
from pika import exceptions

from taskqueue.amqp.adapter import StreamConnection
from taskqueue.amqp.channel import (
    CLOSE_SECONDS,
    BrokerUnavailable,
    Channel,
    ChannelRefused,
    Delivery,
    explain_close,
)
from taskqueue.amqp.parameters import BrokerConfigurationError, BrokerParameters

__all__ = [
    "BrokerConfigurationError",
    "BrokerParameters",
    "BrokerUnavailable",
    "Channel",
    "ChannelRefused",
    "Connection",
    "Delivery",
    "connect",
]


async def connect(
    parameters: BrokerParameters,
    *,
    name: str,
    heartbeat_seconds: int = 5,
    timeout_seconds: float = 10,
) -> Connection:
    """Connect and authenticate.

    Args:
        parameters: address and credentials.
        name: shown by the broker in its list of connections.
        heartbeat_seconds: the connection is closed after twice this without data of the broker.
        timeout_seconds: for name resolution, TCP, TLS and AMQP together.

    Raises:
        BrokerUnavailable: with what failed and what to do about it.
        BrokerConfigurationError: a certificate or key cannot be read, or the host is not a name.
    """
    _quieten_pika()
    context = tls_context(parameters) if parameters.tls else None
    loop = asyncio.get_running_loop()
    connection = Connection(parameters, name, heartbeat_seconds, loop)
    try:
        async with asyncio.timeout(timeout_seconds):
            await connection._open(context)
    except TimeoutError:
        raise BrokerUnavailable(
            f"cannot connect to RabbitMQ at {parameters.address}: no AMQP answer "
            f"within {timeout_seconds:g} s: check host and port, network policies and the broker's "
            "health"
        ) from None
    except UnicodeError as error:
        raise BrokerConfigurationError(
            f"key host (or the host of uri) is not a host name: {parameters.host!r}: {error}"
        ) from error
    except (OSError, exceptions.AMQPError) as error:
        raise BrokerUnavailable(
            f"cannot connect to RabbitMQ at {parameters.address} as user "
            f"{parameters.username!r}: {_explain_failure(error)}"
        ) from error
    return connection


class Connection:
    """An open connection; made by `connect`.

    Attributes:
        closed: done, with the reason, when the connection has closed, on either side; never raises.
            Wait with `asyncio.wait` or `asyncio.shield`: a task that is cancelled while it awaits a
            Future cancels the Future.
        blocked: the broker's reason (an alarm) while it does not read what this side publishes.
        parameters: what it was made from.
    """

    __slots__ = ("_opened", "_stream", "blocked", "closed", "parameters")

    def __init__(
        self,
        parameters: BrokerParameters,
        name: str,
        heartbeat_seconds: int,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self.parameters = parameters
        self.blocked: str | None = None
        self.closed: asyncio.Future[str] = loop.create_future()
        self._opened: asyncio.Future[None] = loop.create_future()
        self._stream = StreamConnection(
            pika.connection.ConnectionParameters(
                host=parameters.host,
                port=parameters.port,
                virtual_host=parameters.virtual_host,
                credentials=pika.credentials.PlainCredentials(
                    parameters.username, parameters.password
                ),
                heartbeat=heartbeat_seconds,
                # An alarm must not end the connection: it may last for hours, and a new
                # connection would be blocked as well.
                blocked_connection_timeout=None,
                client_properties={"connection_name": name, "product": "taskqueue"},
            ),
            loop,
            on_open=self._on_open,
            on_open_error=self._on_closed,
            on_close=self._on_closed,
        )
        self._stream.add_on_connection_blocked_callback(self._on_blocked)
        self._stream.add_on_connection_unblocked_callback(self._on_unblocked)

    def __repr__(self) -> str:
        state = "closed" if self.closed.done() else "open"
        return f"<Connection {self.parameters.address} {state}>"

    @property
    def silent_seconds(self) -> float:
        """How long ago the broker was last heard; below half a heartbeat interval when all is well.

        Work that must not run twice is stopped by this number, before the broker redelivers it: at
        the earliest two heartbeat intervals after the broker last heard this side.
        """
        return self._stream.silent_seconds

    @property
    def heartbeat_seconds(self) -> float:
        """The heartbeat interval agreed with the broker; 0: none, silence is never noticed."""
        return float(self._stream.params.heartbeat or 0)

    async def channel(self) -> Channel:
        """Open a channel.

        Raises:
            BrokerUnavailable: the connection is closed, or closes meanwhile.
        """
        loop = asyncio.get_running_loop()
        opened: asyncio.Future[None] = loop.create_future()

        def on_open(_: Any) -> None:
            if not opened.done():
                opened.set_result(None)

        try:
            raw = self._stream.channel(on_open_callback=on_open)
        except exceptions.AMQPError as error:
            raise BrokerUnavailable(
                f"RabbitMQ at {self.parameters.address}: {self._reason(error)}"
            ) from error
        channel = Channel(raw, self.parameters.address, loop)
        either: list[asyncio.Future[Any]] = [opened, channel.closed]
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            if not (raw.is_closing or raw.is_closed):
                raw.close()
            raise
        if not opened.done():
            raise BrokerUnavailable(
                f"RabbitMQ at {self.parameters.address}: {channel.closed.result()[1]}"
            )
        return channel

    async def close(self) -> None:
        """Close with a handshake; after 3 s without an answer (an alarm) by force. Idempotent."""
        if self._stream.is_open:
            self._stream.close()
        try:
            if not self.closed.done():
                await asyncio.wait({self.closed}, timeout=CLOSE_SECONDS)
        finally:
            self._stream.abort(exceptions.ConnectionClosedByClient(200, "closed without an answer"))
        if not self.closed.done():
            await asyncio.wait({self.closed}, timeout=CLOSE_SECONDS)

    async def _open(self, context: ssl.SSLContext | None) -> None:
        loop = asyncio.get_running_loop()
        try:
            await loop.create_connection(
                lambda: self._stream.protocol,
                self.parameters.host,
                self.parameters.port,
                ssl=context,
                server_hostname=self.parameters.host if context else None,
            )
            await self._opened
        except BaseException:
            # Cancelled or timed out: the socket must not outlive this call, and nobody handles the
            # error that follows.
            self._opened.cancel()
            self._stream.abort(exceptions.ConnectionOpenAborted("given up while connecting"))
            raise

    def _reason(self, error: BaseException) -> str:
        if self.closed.done() and not self.closed.cancelled():
            return self.closed.result()
        return f"the connection cannot be used: {error}"

    def _on_open(self, _: Any) -> None:
        if not self._opened.done():
            self._opened.set_result(None)

    def _on_closed(self, _: Any, reason: BaseException) -> None:
        if not self._opened.done():
            self._opened.set_exception(reason)
        if not self.closed.done():
            self.closed.set_result(explain_close(reason))

    def _on_blocked(self, _: Any, frame: Any) -> None:
        self.blocked = str(frame.method.reason)

    def _on_unblocked(self, _: Any, __: Any) -> None:
        self.blocked = None


def _explain_failure(error: BaseException) -> str:
    match error:
        case exceptions.ProbableAuthenticationError():
            return (
                f"the broker refused the login: check username and password ({_pika_text(error)})"
            )
        case exceptions.ProbableAccessDeniedError():
            return (
                "the virtual host does not exist or the user may not use it: check vhost and the "
                f"user's permissions ({_pika_text(error)})"
            )
        case exceptions.IncompatibleProtocolError():
            return (
                "what listens there does not speak AMQP 0-9-1, or wants TLS or a client "
                "certificate: check port (5672, with TLS 5671) and tls.crt"
            )
        case exceptions.AMQPError():
            return explain_close(error)
        case socket.gaierror():
            return f"the host name cannot be resolved: check host ({error.strerror})"
        case ssl.SSLCertVerificationError():
            return (
                "the broker's certificate is not trusted: put its authority into ca.crt and use "
                f"a host name the certificate has ({error.verify_message})"
            )
        case ssl.SSLError():
            return f"TLS failed: check that the port speaks TLS ({error.reason or error})"
        case ConnectionRefusedError():
            return "nothing listens there: check host and port, and whether the broker runs"
        case _:
            return f"the network connection failed: check host, port and routes ({error})"


def _pika_text(error: exceptions.AMQPError) -> str:
    # pika wraps the representation of the original error.
    words = str(error.args[0] if error.args else error)
    return words.removeprefix("ConnectionClosedByBroker: ").removeprefix("StreamLostError: ")


def tls_context(parameters: BrokerParameters) -> ssl.SSLContext:
    """Return the TLS context that verifies the broker's certificate, with our own if there is one.

    Raises:
        BrokerConfigurationError: a certificate or the key cannot be used.
    """
    try:
        context = ssl.create_default_context(cadata=parameters.ca_certificate)
    except ssl.SSLError as error:
        raise BrokerConfigurationError(
            f"key ca.crt is not a PEM certificate ({error.reason or error})"
        ) from None
    if parameters.client_certificate and parameters.client_key:
        with _as_file(f"{parameters.client_certificate}\n{parameters.client_key}\n") as path:
            try:
                # An encrypted key is refused; without a password OpenSSL would ask the terminal.
                context.load_cert_chain(path, password="")
            except ssl.SSLError as error:
                raise BrokerConfigurationError(
                    "keys tls.crt and tls.key are not a PEM certificate and its key "
                    f"({error.reason or error})"
                ) from None
    return context


@contextmanager
def _as_file(text: str) -> Iterator[str]:
    """Return a path for what the ssl module reads from files only.

    The file is in memory where there is such a thing: a container need not have a directory that it
    may write to, and a key belongs on no disk.
    """
    if sys.platform == "linux":
        with open(os.memfd_create("tls", os.MFD_CLOEXEC), "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            yield f"/proc/self/fd/{file.fileno()}"
        return
    with tempfile.NamedTemporaryFile("w", encoding="utf-8") as file:  # for its owner only
        file.write(text)
        file.flush()
        yield file.name


def _quieten_pika() -> None:
    """Silence pika's loggers unless the user has set a level on them.

    pika logs routine failures (broker away, channel closed with 404) as errors, some with a
    traceback. All of them reach the callers here as exceptions or through `closed`.
    """
    logger = logging.getLogger("pika")
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.CRITICAL)
