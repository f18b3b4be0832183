"""The child of the standard library's fork server; it imports nothing else."""

from __future__ import annotations

import socket


def send_a_byte(connection: socket.socket) -> None:
    """Say that this process runs, and wait for the end of the input."""
    connection.sendall(b"x")
    connection.recv(1)
