"""A service beside the worker, in the same pod: handlers are paths, ``POST /run/<handler>``.

In any language; here with the standard library. One request is one attempt. While it is worked on
the connection stays open; when the worker closes it and sends DELETE, the work is stopped.
"""

from __future__ import annotations

import json
import signal
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Attempt = tuple[str | None, str | None]

#: What runs: an attempt is the uid of a Task and a number. Set to stop it.
running: dict[Attempt, threading.Event] = {}


class Refused(Exception):
    """The attempt has failed: a status, a reason, and when to try again."""

    def __init__(self, status: int, reason: str, *, after: int | None = None) -> None:
        super().__init__(reason)
        self.status = status
        self.after = after


def greet(payload: dict[str, Any], attempt: int, stop: threading.Event) -> dict[str, Any]:
    """Return a greeting; busy at first for whoever is called "later"."""
    if "name" not in payload:
        raise Refused(422, 'the payload has no "name"')
    if payload["name"] == "later" and attempt == 1:
        raise Refused(503, "busy", after=2)
    return {"greeting": f"Hello, {payload['name']}!", "attempt": attempt}


def wait(payload: dict[str, Any], attempt: int, stop: threading.Event) -> dict[str, Any]:
    """Work until stopped."""
    print("waiting", flush=True)
    stop.wait(payload.get("seconds", 3600))
    print("stopped" if stop.is_set() else "waited", flush=True)
    return {"stopped": stop.is_set()}


HANDLERS = {"greet": greet, "wait": wait}


class Service(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        payload = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        handler = HANDLERS.get(self.path.removeprefix("/run/"))
        if handler is None:
            self.answer(404, {"error": f"no handler at {self.path}"})
            return
        stop = running[self.attempt] = threading.Event()
        try:
            result = handler(payload, int(self.headers["Taskqueue-Attempt"]), stop)
        except Refused as refused:
            self.answer(refused.status, {"error": str(refused)}, after=refused.after)
        else:
            self.answer(200, result)
        finally:
            running.pop(self.attempt, None)

    def do_DELETE(self) -> None:
        if (stop := running.get(self.attempt)) is not None:
            stop.set()
        self.answer(204)

    @property
    def attempt(self) -> Attempt:
        return self.headers["Taskqueue-Uid"], self.headers["Taskqueue-Attempt"]

    def answer(
        self, status: int, body: dict[str, Any] | None = None, *, after: int | None = None
    ) -> None:
        text = b"" if body is None else json.dumps(body).encode()
        try:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            if after is not None:
                self.send_header("Retry-After", str(after))
            self.end_headers()
            self.wfile.write(text)
        except ConnectionError:
            self.close_connection = True  # the worker gave the attempt up


def main() -> None:
    # The first process of a container dies of no signal it does not handle.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
    server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Service)
    print(f"serving on port {server.server_port}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
