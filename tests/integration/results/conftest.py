from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from taskqueue.results.connection import open_store
from taskqueue.results.store import ResultStore
from tests.integration.results.servers import KINDS, Server, running


@pytest.fixture(scope="module", params=list(KINDS))
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A server of each kind, as a process of this machine."""
    with running(request.param) as server:
        yield server


@pytest.fixture
async def store(server: Server) -> AsyncIterator[ResultStore]:
    store = open_store(server.connection(), timeout=3)
    yield store
    await store.close()
