from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from taskqueue.archive.archive import Archive
from tests.integration.results.servers import PostgresqlServer


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresqlServer]:
    """A PostgreSQL of this machine."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        place.chmod(0o755)
        server = PostgresqlServer(place)
        server.prepare()
        server.start()
        try:
            yield server
        finally:
            server.kill()


@pytest.fixture
async def archive(server: PostgresqlServer) -> AsyncIterator[Archive]:
    archive = Archive(server.connection(), timeout=5)
    yield archive
    await archive.close()
