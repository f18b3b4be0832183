"""The store that files or variables name, as they are at the moment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from taskqueue.results.connection import StoreConnection
from taskqueue.results.reference import StoredResult
from taskqueue.results.source import CurrentStore, StoreSource
from taskqueue.results.store import StoreError
from tests.unit.results.memory import MemoryStore

RESULT = StoredResult(b"{}", "application/json")
VARIABLES = {"TASKQUEUE_RESULTS_URI": "redis://one", "TASKQUEUE_RESULTS_REGION": "eu-1"}


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> dict[str, MemoryStore]:
    """Stores by their address, in the order they were opened."""
    stores: dict[str, MemoryStore] = {}

    def open_store(connection: StoreConnection, **_: Any) -> MemoryStore:
        return stores.setdefault(connection.uri, MemoryStore())

    monkeypatch.setattr("taskqueue.results.source.open_store", open_store)
    return stores


def test_a_file_counts_before_its_variable(tmp_path: Path) -> None:
    source = StoreSource(VARIABLES, str(tmp_path))
    assert source.read() == StoreConnection("redis://one", region="eu-1")
    (tmp_path / "uri").write_text("redis://two\n")
    (tmp_path / "unknown").write_text("x")
    assert source.read() == StoreConnection("redis://two", region="eu-1")


def test_variables_are_enough() -> None:
    assert StoreSource(VARIABLES).read().uri == "redis://one"


@pytest.mark.parametrize("content", [None, b"", b"mysql://host", b"\xff"])
def test_what_is_missing_or_wrong_may_be_corrected(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "uri").write_bytes(content)
    with pytest.raises(StoreError, match=str(tmp_path)) as caught:
        StoreSource({}, str(tmp_path)).read()
    assert caught.value.transient


async def test_a_store_is_opened_once_and_another_one_when_its_address_changes(
    tmp_path: Path, opened: dict[str, MemoryStore]
) -> None:
    (tmp_path / "uri").write_text("redis://one")
    store = CurrentStore(StoreSource({}, str(tmp_path)))
    assert not opened  # until it is needed
    for key in ("a", "b"):
        await store.put(key, RESULT)
    assert set(opened) == {"redis://one"}
    (tmp_path / "uri").write_text("redis://two")
    await store.put("c", RESULT)
    assert list(opened["redis://one"].kept) == ["a", "b"]
    assert list(opened["redis://two"].kept) == ["c"]
    assert (opened["redis://one"].closed, opened["redis://two"].closed) == (1, 0)
    assert await store.get("c") == RESULT
    await store.close()
    await store.close()
    assert opened["redis://two"].closed == 1


async def test_an_address_that_is_wrong_for_a_while_does_no_harm(
    tmp_path: Path, opened: dict[str, MemoryStore]
) -> None:
    (tmp_path / "uri").write_text("redis://one")
    store = CurrentStore(StoreSource({}, str(tmp_path)))
    await store.put("a", RESULT)
    (tmp_path / "uri").unlink()
    with pytest.raises(StoreError):
        await store.put("b", RESULT)
    (tmp_path / "uri").write_text("redis://one")
    await store.put("b", RESULT)
    assert list(opened["redis://one"].kept) == ["a", "b"]
