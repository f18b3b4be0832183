"""Large results of real workers in real stores, which go away meanwhile."""

from __future__ import annotations

import base64
import hashlib
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
import yaml

from taskqueue.client import BinaryResult, TaskClient, TaskFailed
from tests.conftest import Cluster
from tests.e2e.harness import HANDLERS, Harness
from tests.integration.results.servers import (
    KINDS,
    Server,
    address_towards,
    running,
    secret_of,
)

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

SECONDS = 120
COUNT = 30

_MODULE = """
import hashlib
import time

from taskqueue import BinaryResult, Fail, redact_output, task


@task
def bulky(payload):
    return {"text": hashlib.shake_128(payload["seed"].encode()).hexdigest(50_000)}


@task
async def picture(payload):
    return BinaryResult(bytes(range(256)), "image/png")


@task(thread=True)
def broken(payload):
    raise Fail("no result")


@task
def talk(payload, ctx):
    print("the key is s3cret")
    ctx.logger.info("a line of the log")
    raise Fail("said enough")


@redact_output
def hide(text):
    return text.replace("s3cret", "…")
"""


@pytest.fixture(scope="module")
def host(cluster: Cluster) -> str:
    """The address at which pods reach this machine."""
    config = yaml.safe_load(cluster.kubeconfig.read_text())
    return address_towards(urlsplit(config["clusters"][0]["cluster"]["server"]).hostname or "")


@pytest.fixture(scope="module")
def tasks(cluster: Cluster, harness: Harness) -> Iterator[TaskClient]:
    with TaskClient(kubeconfig=str(cluster.kubeconfig), namespace=harness.namespace) as client:
        yield client


@pytest.fixture(scope="module", params=sorted(KINDS))
def server(request: pytest.FixtureRequest, host: str, harness: Harness) -> Iterator[Server]:
    """A store that runs, and a TaskQueue of its kind's name that uses it."""
    modules = {"handlers.py": HANDLERS.read_text() + _MODULE}
    harness.api.patch(harness.core("configmaps", "handlers"), {"data": modules})
    kind = request.param
    with running(kind, host) as server:
        put_secret(harness, f"results-{kind}", secret_of(server.connection()))
        store = {"connectionSecret": {"name": f"results-{kind}"}}
        harness.queue(
            kind,
            scaling={"minReplicas": 1, "maxReplicas": 1},
            results={"store": store, "retentionSeconds": 3600, "output": "All"},
        )
        yield server
        harness.delete_queue(kind)


def put_secret(harness: Harness, name: str, keys: dict[str, str]) -> None:
    data = {key: base64.b64encode(text.encode()).decode() for key, text in keys.items()}
    harness.create_core("secrets", name, data=data)


def test_results_are_there_though_their_store_was_killed_twice(
    server: Server, harness: Harness, tasks: TaskClient
) -> None:
    names = [f"{server.kind}-{number}" for number in range(COUNT)]
    submitted = [tasks.submit(server.kind, "bulky", {"seed": n}, name=n) for n in names[:10]]
    assert submitted[0].wait(SECONDS).result is None
    for part in (names[10:20], names[20:]):
        server.kill()
        submitted += [tasks.submit(server.kind, "bulky", {"seed": n}, name=n) for n in part]
        time.sleep(3)
        server.start()
    for name, task in zip(names, submitted, strict=True):
        text = hashlib.shake_128(name.encode()).hexdigest(50_000)
        assert task.result(SECONDS) == {"text": text}
        reference = task.status().result_ref
        assert reference is not None
        assert reference.key == f"{harness.namespace}/{server.kind}/{task.uid}/1-0"
        assert reference.size_bytes == len('{"text":""}') + 100_000
        assert reference.expiration_time is not None
    harness.condition("ResultStoreReady", "True", "SecretValid", server.kind)


def test_bytes_come_back_and_a_failed_task_has_none(
    server: Server, harness: Harness, tasks: TaskClient
) -> None:
    kind = server.kind
    picture = tasks.submit(kind, "picture").result(SECONDS)
    assert picture == BinaryResult(bytes(range(256)), "image/png")
    assert tasks.submit(kind, "echo", {"small": 1}).result(SECONDS) == {"small": 1}
    failed = tasks.submit(kind, "broken", name=f"{kind}-broken")
    with pytest.raises(TaskFailed):
        failed.result(SECONDS)
    assert "resultRef" not in harness.finished(f"{kind}-broken")


def test_output_is_read_after_the_end_without_what_nobody_must_read(
    server: Server, tasks: TaskClient
) -> None:
    task = tasks.submit(server.kind, "talk")
    with pytest.raises(TaskFailed):
        task.wait(SECONDS)
    deadline = time.monotonic() + SECONDS
    while not (text := task.output()):  # it is written after the outcome
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert "the key is …\n" in text
    assert "a line of the log" in text
    assert "s3cret" not in text
