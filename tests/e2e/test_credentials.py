"""The broker's password changes while workers run: they come back by themselves, in their pods."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from contextlib import suppress
from urllib.parse import quote

import pytest
import requests

from taskqueue.controller.pool.disconnected import CONNECT_SECONDS
from taskqueue.limits import WORKER_LOST_SECONDS
from tests.e2e.harness import Harness

pytestmark = pytest.mark.cluster

#: The kubelet replaces the files of a changed Secret after this at most, and workers try again.
_FILES_SECONDS = 180.0

_WORKERS = 2


@pytest.fixture(scope="module")
def user(harness: Harness) -> Iterator[str]:
    """A user of our own in a virtual host of our own: nobody else is locked out."""
    virtual_host = name = harness.virtual_host()
    set_password(harness, name, "first")
    # As docs/install.md says.
    write = r"^(taskqueue|amq\.default$)"
    own = {"configure": "^taskqueue", "write": write, "read": "^taskqueue"}
    harness.broker_api("PUT", f"permissions/{virtual_host}/{name}", own)
    harness.secret("own", username=name, password="first", vhost=virtual_host)
    harness.queue(
        broker={"connectionSecret": {"name": "own"}},
        scaling={"minReplicas": _WORKERS, "maxReplicas": _WORKERS},
    )
    harness.registered(_WORKERS)
    yield name
    harness.broker_api("DELETE", f"vhosts/{virtual_host}")
    harness.broker_api("DELETE", f"users/{name}")


def set_password(harness: Harness, user: str, password: str) -> None:
    harness.broker_api("PUT", f"users/{user}", {"password": password, "tags": ""})


def connections(harness: Harness, virtual_host: str, prefix: str = "") -> list[str]:
    """Return the connections of these names as the broker lists them, some seconds late."""
    return [
        found["name"]
        for found in harness.broker_api("GET", f"vhosts/{virtual_host}/connections")
        if found.get("client_properties", {}).get("connection_name", "").startswith(prefix)
    ]


def close(harness: Harness, connection: str) -> None:
    with suppress(requests.HTTPError):  # it is closed already
        harness.broker_api("DELETE", f"connections/{quote(connection, safe='')}")


def containers(harness: Harness) -> list[tuple[str, int]]:
    """Return which pods there are, and how often their containers were started again."""
    return sorted(
        (pod["metadata"]["uid"], pod["status"]["containerStatuses"][0]["restartCount"])
        for pod in harness.pods()
    )


def test_a_changed_password_reaches_workers_that_run(harness: Harness, user: str) -> None:
    assert harness.finished(harness.task("before"))["phase"] == "Succeeded"
    before = containers(harness)
    assert len(before) == _WORKERS

    set_password(harness, user, "second")
    listed = 2 * _WORKERS
    harness.until(
        lambda: len(connections(harness, user, "worker ")) == listed, what=f"{listed} connections"
    )
    for connection in connections(harness, user, "worker "):
        close(harness, connection)
    harness.task("waits")
    message = harness.condition(
        "WorkersAvailable",
        "False",
        "WorkersDisconnected",
        seconds=CONNECT_SECONDS + WORKER_LOST_SECONDS + 60,
    )
    assert any(pod["metadata"]["name"] in message for pod in harness.pods()), message
    assert f"Secret {harness.namespace}/own" in message
    harness.condition("BrokerConnected", "True", "Connected")
    assert "refused the login" in harness.worker_log()

    password = base64.b64encode(b"second").decode()
    harness.api.patch(harness.core("secrets", "own"), {"data": {"password": password}})
    harness.renew_files()
    ended = harness.finished("waits", seconds=_FILES_SECONDS)
    assert (ended["phase"], ended["attempts"]) == ("Succeeded", 1)
    harness.condition("WorkersAvailable", "True", "Available", seconds=_FILES_SECONDS)
    assert containers(harness) == before

    # Nothing is left that has logged in with the former password: the operator has read it again.
    for connection in connections(harness, user):
        close(harness, connection)
    assert harness.finished(harness.task("after"), seconds=_FILES_SECONDS)["phase"] == "Succeeded"
    harness.ready(seconds=_FILES_SECONDS)
    assert containers(harness) == before
