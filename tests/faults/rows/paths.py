"""A service that prints for which paths it is asked; mounted beside the handlers, runs alone."""

from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Paths(BaseHTTPRequestHandler):
    """Answers every attempt with an empty result."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:  # the name is http.server's
        """Print the path, as it was asked for."""
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        print(self.path, flush=True)
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, format: str, *arguments: Any) -> None:
        """Say nothing else."""


if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1", 8000), Paths).serve_forever()
