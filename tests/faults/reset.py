"""Resets a connection: the other side gets RST, not the FIN of an orderly end."""

from __future__ import annotations

import asyncio
import socket
import struct

#: SO_LINGER on, for no time: closing sends RST.
_NO_LINGER = struct.pack("ii", 1, 0)


def reset_connection(transport: asyncio.Transport | asyncio.WriteTransport) -> None:
    """Reset a TCP connection; harmless if it is closed already."""
    connection = transport.get_extra_info("socket")
    if connection is not None and not transport.is_closing():
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
    transport.abort()
