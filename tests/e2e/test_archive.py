"""A TaskQueue with an archive: rows of all ends, while the database is there, away, and back."""

from __future__ import annotations

import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from taskqueue.client import ArchivedTask, HistoryPage, TaskClient
from tests.conftest import Cluster, RabbitMQ
from tests.e2e.harness import Harness
from tests.faults.archive_record import TaskRecord
from tests.faults.archived import differences
from tests.integration.results.servers import PostgresqlServer

pytestmark = [pytest.mark.cluster, pytest.mark.broker]


@pytest.fixture(scope="module")
def database(rabbitmq: RabbitMQ) -> Iterator[PostgresqlServer]:
    """A PostgreSQL of this machine that pods can reach."""
    with (
        tempfile.TemporaryDirectory() as folder,
        socket.create_connection((rabbitmq.host, rabbitmq.port), timeout=30) as connection,
    ):
        place = Path(folder)
        place.chmod(0o755)
        server = PostgresqlServer(place, connection.getsockname()[0])
        server.prepare()
        server.start()
        try:
            yield server
        finally:
            server.kill()


def test_every_end_has_a_row_whatever_becomes_of_the_object_and_the_database(
    harness: Harness, database: PostgresqlServer, cluster: Cluster
) -> None:
    harness.create_core("secrets", "archive", stringData={"uri": database.connection().uri})
    record = TaskRecord(harness.api, harness.namespace)
    harness.queue(archive={"connectionSecret": {"name": "archive"}, "payloads": "Keep"})
    harness.condition("ArchiveConnected", "True", "Connected")

    def ends(prefix: str) -> None:
        """Have Tasks end in every way, and be deleted, by their TTL or by hand."""
        soon: dict[str, Any] = {"ttlSecondsAfterFinished": 0}
        harness.task(f"{prefix}-done", payload={"customer": {"id": 7}}, **soon)
        harness.task(f"{prefix}-failed", "give_up", retry={"maxAttempts": 1})
        harness.task(f"{prefix}-cancelled", cancel=True, suspend=True, **soon)
        harness.task(f"{prefix}-late", "nobody-has-it", activeDeadlineSeconds=2, **soon)
        harness.task(f"{prefix}-blocked", dependsOn=[f"{prefix}-failed"])
        harness.task(f"{prefix}-deleted", suspend=True)
        harness.phase(f"{prefix}-deleted", "Suspended")
        harness.delete_task(f"{prefix}-deleted")
        harness.finished(f"{prefix}-blocked")

    def are_gone(prefix: str) -> bool:
        names = {f"{prefix}-{way}" for way in ("done", "cancelled", "late", "deleted")}
        gone = {one.body["metadata"]["name"] for one in record.seen().values() if one.deleted}
        return names <= gone

    ends("before")
    harness.until(lambda: are_gone("before"), what="deleted by its time to live")

    database.kill()
    harness.condition("ArchiveConnected", "False", "ArchiveUnavailable")
    ends("away")
    harness.until(lambda: are_gone("away"), what="deleted while the database is away")
    database.start()
    harness.condition("ArchiveConnected", "True", "Connected")

    with TaskClient(kubeconfig=str(cluster.kubeconfig), namespace=harness.namespace) as client:
        rows: list[ArchivedTask] = []

        def are_all_there() -> bool:
            nonlocal rows
            page: HistoryPage = client.history("q", limit=1000)
            rows = list(page.tasks)
            return len(rows) >= 12

        harness.until(are_all_there, what="12 rows")
        assert differences(rows, record.seen()) == []
        found = client.history("q", payload={"customer.id": 7})
        assert {row.name for row in found.tasks} <= {"before-done", "away-done"}
        found = client.history("q", reason="Deleted")
        assert {row.name for row in found.tasks} == {"before-deleted", "away-deleted"}
    record.close()


def test_finished_tasks_from_before_the_archive_get_their_rows(
    harness: Harness, database: PostgresqlServer, cluster: Cluster
) -> None:
    harness.create_core("secrets", "later", stringData={"uri": database.connection().uri})
    harness.queue("later")
    names = harness.batch("old", 5, queue="later")
    harness.all_finished(names)
    harness.change_queue("later", archive={"connectionSecret": {"name": "later"}})

    with TaskClient(kubeconfig=str(cluster.kubeconfig), namespace=harness.namespace) as client:

        def are_there() -> bool:
            page = client.history("later", archive=database.connection().uri)
            return {row.name for row in page.tasks} == set(names)

        harness.condition("ArchiveConnected", "True", "Connected", "later")
        harness.until(are_there, what="five rows")
