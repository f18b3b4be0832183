"""A receiver of webhooks for tests: it verifies what it gets with the library of the standard.

It runs in a thread of its own, so that a test may block. Anybody who uses it counts what it has
accepted, and what it has refused.
"""

from __future__ import annotations

import random
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from standardwebhooks.webhooks import Webhook, WebhookVerificationError


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


class WebhookReceiver:
    """Accepts events, or fails as it is told.

    Args:
        secret: that the signatures must be made with.
        host: address to listen at.
        seed: of the random failures.

    Attributes:
        failing: share of the requests that are answered with 500, though they are kept as seen.
        accepted: how often each webhook-id was accepted.
        events: each accepted event, by webhook-id.
        bodies: what was ever sent with each webhook-id: it must be one body.
        forged: requests whose signature is not right.
        refused: requests that were answered with 500.
    """

    def __init__(self, secret: str, host: str = "127.0.0.1", *, seed: int = 0) -> None:
        self.failing = 0.0
        self.accepted: Counter[str] = Counter()
        self.events: dict[str, dict[str, Any]] = {}
        self.bodies: dict[str, set[bytes]] = {}
        self.forged = 0
        self.refused = 0
        self._webhook = Webhook(secret)
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        self._host, self._port = host, 0
        self._server: _Server | None = None
        self.start()

    @property
    def url(self) -> str:
        """Where to send to."""
        return f"http://{self._host}:{self._port}/hook"

    def start(self) -> None:
        """Listen, at the same port as before."""
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = 30

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                status = receiver._judge(dict(self.headers.items()), body)
                if status is None:
                    self.close_connection = True
                    return
                self.send_response(status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None: ...

        self._server = _Server((self._host, self._port), Handler)
        self._port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        """Be away: refuse connections."""
        server, self._server = self._server, None
        if server is not None:
            server.shutdown()
            server.server_close()

    def _judge(self, headers: dict[str, str], body: bytes) -> int | None:
        sent = {name.lower(): value for name, value in headers.items()}
        message_id = sent.get("webhook-id", "")
        with self._lock:
            if self._server is None:
                return None  # a connection from before it went away
            try:
                event = self._webhook.verify(body, sent)
            except WebhookVerificationError:
                self.forged += 1
                return 401
            self.bodies.setdefault(message_id, set()).add(body)
            if self._random.random() < self.failing:
                self.refused += 1
                return 500
            self.accepted[message_id] += 1
            self.events[message_id] = event
            return 204
