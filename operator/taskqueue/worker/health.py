"""The kubelet's probes over HTTP: ``/healthz`` (restart it?) and ``/readyz`` (does it consume?).

``/metrics`` has the few numbers that only a worker knows, for Prometheus.

The loop that talks to the broker serves them: when that loop is blocked, there is no answer, and
the probe times out. The body of a failed probe gives the reason in one line.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from http import HTTPStatus

#: A worker may be without its consumer for this long, in seconds: a broker may restart, a queue may
#: not be declared yet.
RECONNECT_SECONDS = 120.0

_REQUEST_SECONDS = 5.0


def unhealthy(
    *, unregistered_seconds: float, busy: int, stuck: int, slots: int, defect: str = ""
) -> str | None:
    """Return why the worker should be restarted, or None.

    Args:
        unregistered_seconds: how long it has been without its consumer; 0 while it has one.
        busy: slots taken.
        stuck: slots taken by attempts that were asked to end and do not.
        slots: all of them.
        defect: what the worker itself has failed at; "": nothing.
    """
    if defect:
        return f"the worker has failed, and what it held may never be freed: {defect}"
    if stuck >= slots:
        return f"all {slots} slots are held by handlers that were asked to end and run on"
    if unregistered_seconds > RECONNECT_SECONDS and busy == stuck:
        return f"no consumer is registered with the broker for {unregistered_seconds:.0f} s"
    return None


class HealthServer:
    """Answers probes on a port until closed.

    Args:
        healthy: returns why the worker should be restarted, or None.
        ready: returns why it takes no work, or None.
        counters: returns what has been counted so far, by the name of the metric.
    """

    def __init__(
        self,
        *,
        healthy: Callable[[], str | None],
        ready: Callable[[], str | None],
        counters: Callable[[], Mapping[str, int]] = dict,
    ) -> None:
        self._counters = counters
        self._checks = {"/healthz": healthy, "/readyz": ready}
        self._server: asyncio.Server | None = None

    async def start(self, port: int, *, host: str | None = None) -> int:
        """Listen on all addresses, or one; on any free port for 0. Return the port.

        Raises:
            OSError: the port is taken.
        """
        self._server = await asyncio.start_server(self._answer, host, port)
        return int(self._server.sockets[0].getsockname()[1])

    def close(self) -> None:
        """Stop listening."""
        if self._server is not None:
            self._server.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(_REQUEST_SECONDS):
                request = await reader.readuntil(b"\r\n")
                status, body = self._response(request.decode("latin-1"))
                writer.write(
                    f"HTTP/1.1 {status.value} {status.phrase}\r\n"
                    "Content-Type: text/plain; charset=utf-8\r\n"
                    f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode()
                    + body
                )
                await writer.drain()
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # not a probe
        finally:
            writer.close()

    def _response(self, request: str) -> tuple[HTTPStatus, bytes]:
        path = request.split(" ")[1] if request.count(" ") >= 2 else ""
        path = path.partition("?")[0]
        if path == "/metrics":
            counted = self._counters().items()
            lines = (f"# TYPE {name} counter\n{name} {value}\n" for name, value in counted)
            return HTTPStatus.OK, "".join(lines).encode()
        check = self._checks.get(path)
        if check is None:
            return HTTPStatus.NOT_FOUND, b"see /healthz, /readyz and /metrics\n"
        failure = check()
        if failure is None:
            return HTTPStatus.OK, b"ok\n"
        return HTTPStatus.SERVICE_UNAVAILABLE, f"{failure}\n".encode()
