from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from taskqueue.results.connection import open_store
from taskqueue.results.store import ResultStore
from tests.integration.results.servers import KINDS, Server


@pytest.fixture(scope="module", params=list(KINDS))
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A server of each kind, as a process of this machine."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        place.chmod(0o755)
        server = KINDS[request.param](place)
        server.prepare()
        server.start()
        try:
            yield server
        finally:
            server.kill()


@pytest.fixture
async def store(server: Server) -> AsyncIterator[ResultStore]:
    store = open_store(server.connection(), timeout=3)
    yield store
    await store.close()
