"""Workers with a broker user of their own: it comes, rotates while they run, and goes."""

from __future__ import annotations

import base64
import time
from collections.abc import Iterator

import pytest

from taskqueue.kubernetes.worker_secret import ROTATED_ANNOTATION
from taskqueue.timestamps import to_rfc3339
from tests.e2e.harness import OPERATOR, OPERATOR_NAMESPACE, Harness

pytestmark = pytest.mark.cluster

_WORKERS = 1


@pytest.fixture(scope="module")
def virtual_host(harness: Harness) -> Iterator[str]:
    """A TaskQueue with managed credentials, in a virtual host of our own."""
    name = harness.virtual_host()
    harness.secret("own", vhost=name, managementUri="http://rabbitmq.rabbitmq.svc:15672")
    harness.queue(
        broker={"connectionSecret": {"name": "own"}},
        scaling={"minReplicas": _WORKERS, "maxReplicas": _WORKERS},
        workers={"credentials": {"type": "Managed", "rotationSeconds": 3600}},
    )
    yield name
    harness.broker_api("DELETE", f"vhosts/{name}")


def login(harness: Harness) -> tuple[str, str]:
    data = harness.api.get(harness.core("secrets", "q-worker"))["data"]
    user, password = (base64.b64decode(data[key]).decode() for key in ("username", "password"))
    return user, password


def let_age(harness: Harness, seconds: int) -> None:
    """Have the credentials be that old; a changed spec is looked at at once."""
    made = {ROTATED_ANNOTATION: to_rfc3339(time.time() - seconds)}
    harness.api.patch(harness.core("secrets", "q-worker"), {"metadata": {"annotations": made}})
    harness.change_queue(workers={"credentials": {"rotationSeconds": 3600 + seconds % 1000}})


def users(harness: Harness) -> set[str]:
    return {user["name"] for user in harness.broker_api("GET", "users")}


def connected(harness: Harness, virtual_host: str, user: str) -> bool:
    found = harness.broker_api("GET", f"vhosts/{virtual_host}/connections")
    return any(one.get("user") == user for one in found)


def test_a_right_that_is_missing_is_named_and_nothing_is_started(
    harness: Harness, virtual_host: str
) -> None:
    message = harness.condition("CredentialsReady", "False", "SecretForbidden")
    assert "bind the ClusterRole taskqueue-operator-credentials" in message
    harness.condition("Ready", "False", "SecretForbidden")
    assert harness.pods() == []
    harness.kubectl.ok(
        *("create", "rolebinding", "taskqueue-operator-credentials", "-n", harness.namespace),
        "--clusterrole=taskqueue-operator-credentials",
        f"--serviceaccount={OPERATOR_NAMESPACE}:{OPERATOR}",
    )
    harness.condition("CredentialsReady", "True", "Managed")
    harness.ready()


def test_workers_run_and_rotate_without_a_break_and_their_users_go_with_the_queue(
    harness: Harness, virtual_host: str
) -> None:
    assert harness.finished(harness.task("before"))["phase"] == "Succeeded"
    first = login(harness)
    assert first[0].startswith("taskqueue-worker.default.")
    harness.until(lambda: connected(harness, virtual_host, first[0]), what="its own user connected")
    pods = {pod["metadata"]["uid"] for pod in harness.pods()}

    # A keyed attempt ends when its worker loses the broker.
    harness.task("keyed", "watch_async", payload={"seconds": 20}, concurrencyKey="k")
    harness.phase("keyed", "Running")
    let_age(harness, 5_001)
    harness.until(lambda: login(harness)[0] != first[0], what="other credentials")
    second = login(harness)
    assert {first[0], second[0]} <= users(harness)
    let_age(harness, 402)
    harness.until(
        lambda: not harness.broker_api("GET", f"users/{first[0]}")["password_hash"],
        what="the former password revoked",
    )
    ended = harness.finished("keyed")
    assert (ended["phase"], ended["attempts"]) == ("Succeeded", 1)
    assert {pod["metadata"]["uid"] for pod in harness.pods()} == pods

    harness.delete_queue()
    assert not {first[0], second[0]} & users(harness)
