"""Workers of an older commit with today's operator, and pools that are rolled from and to them.

The reverse is in `test_skew_older_operator`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pika
import pytest

from tests.commits import OLDER, needs_older, sources
from tests.conformance import go
from tests.e2e import go_worker, skew
from tests.e2e.events import connect, events_of
from tests.e2e.gates import Gates
from tests.e2e.harness import Harness
from tests.e2e.skew import GO_ENDS, OLDER_GO_IMAGE, OLDER_IMAGE, PYTHON_ENDS, SLOTS, TODAYS
from tests.faults.watcher import watching

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300), pytest.mark.long, needs_older]

needs_go = pytest.mark.skipif(go.go() is None, reason="Go is not installed")

#: More than run at once, so that some wait at the broker.
COUNT = 3 * SLOTS


@pytest.fixture(scope="module")
def older_tree() -> Iterator[Path]:
    with sources(OLDER) as tree:
        yield tree


@pytest.fixture(scope="module")
def python_queue(
    request: pytest.FixtureRequest, harness: Harness, gates: Gates, older_tree: Path
) -> None:
    skew.put_older_image(request, older_tree)
    skew.create_queue(harness, "q", skew.python_template(OLDER_IMAGE))


@pytest.fixture(scope="module")
def go_queue(
    request: pytest.FixtureRequest,
    harness: Harness,
    older_tree: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    skew.put_older_go_image(request, older_tree, tmp_path_factory.mktemp("older"))
    go_worker.uri_secret(harness)
    skew.create_queue(harness, "go", skew.go_template(OLDER_GO_IMAGE))


@pytest.fixture(scope="module")
def todays_go_image(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> None:
    go_worker.put_image(skew.own_cluster(request), tmp_path_factory.mktemp("todays"))


@pytest.mark.usefixtures("python_queue")
def test_attempts_on_older_workers_end_as_they_should(harness: Harness) -> None:
    skew.assert_ends(harness, PYTHON_ENDS, queue="q")
    assert harness.tasks.versions("success")[-1]["status"]["result"] == {"page": 7}


@pytest.mark.usefixtures("python_queue")
def test_older_workers_obey_commands(harness: Harness) -> None:
    skew.assert_obeys(harness, "commanded", "watch", queue="q")


@pytest.mark.usefixtures("python_queue")
def test_older_workers_are_registered(harness: Harness) -> None:
    harness.registered(1)
    pod = skew.the_worker(harness)
    (worker,) = harness.queues.versions("q")[-1]["status"]["workers"]
    assert worker["pod"] == pod["metadata"]["name"]
    assert worker["slots"] == SLOTS
    assert {"echo", "flaky", "wait"} <= set(worker["handlers"])


@pytest.mark.usefixtures("python_queue")
def test_direct_messages_run_on_older_workers(harness: Harness) -> None:
    with events_of(harness, "q") as events:
        connection = connect(harness.rabbitmq)
        channel = connection.channel()
        for handler, correlation_id in (("echo", "direct-1"), ("give_up", "direct-2")):
            channel.basic_publish(
                exchange="taskqueue.direct",
                routing_key=f"{harness.namespace}.q",
                body=b'{"page": 7}',
                properties=pika.BasicProperties(
                    type=handler, correlation_id=correlation_id, delivery_mode=2
                ),
            )
        assert events.of("direct-1")["data"]["result"] == {"page": 7}
        assert events.of("direct-2")["data"]["error"]["type"] == "NotFound"
        connection.close()
    harness.queue_status(lambda status: status.get("deadLetters") == 1, what="a dead letter")


@pytest.mark.usefixtures("python_queue")
@pytest.mark.parametrize(
    ("before", "after"),
    [(OLDER_IMAGE, TODAYS), (TODAYS, OLDER_IMAGE)],
    ids=["forward", "back"],
)
def test_a_pool_is_rolled_with_messages_in_flight(
    request: pytest.FixtureRequest, harness: Harness, gates: Gates, before: str, after: str
) -> None:
    """What runs is given back by the worker that goes, and what waits is taken by the next."""
    name = request.node.callspec.id
    skew.roll(harness, "q", skew.python_template(before))
    if after == TODAYS:
        skew.assert_is_blocked(harness, "for-newcomers", "newcomer", queue="q")
    with watching(harness.api, harness.rabbitmq, harness.namespace) as watcher:
        tasks = gates.behind(name, COUNT)
        skew.wait_running(harness, tasks, SLOTS)
        cancelled = harness.task(f"{name}-cancelled", "wait", payload={"gate": name})
        skew.roll(harness, "q", skew.python_template(after))
        harness.api.patch(harness.path("tasks", cancelled), {"spec": {"cancel": True}})
        gates.open(name)
        ended = harness.all_finished(tasks)
        assert {(one["phase"], one["attempts"]) for one in ended} == {("Succeeded", 1)}
        assert harness.finished(cancelled)["phase"] == "Cancelled"
        pod = skew.the_worker(harness)
        assert {one["result"]["pod"] for one in ended} == {pod["metadata"]["name"]}
        watcher.verdict().assert_clean()
    if after == TODAYS:
        assert harness.finished("for-newcomers")["result"] == {"known": True}


@needs_go
@pytest.mark.usefixtures("go_queue")
def test_attempts_on_older_go_workers_end_as_they_should(harness: Harness) -> None:
    skew.assert_ends(harness, GO_ENDS, queue="go")
    skew.assert_obeys(harness, "go-commanded", "nap", queue="go")
    skew.assert_is_blocked(harness, "go-unknown", "no-such-handler", queue="go")
    harness.delete_task("go-unknown")


@needs_go
@pytest.mark.usefixtures("go_queue", "todays_go_image")
@pytest.mark.parametrize(
    ("before", "after"),
    [(OLDER_GO_IMAGE, go_worker.IMAGE), (go_worker.IMAGE, OLDER_GO_IMAGE)],
    ids=["forward", "back"],
)
def test_a_pool_of_go_workers_is_rolled_with_messages_in_flight(
    request: pytest.FixtureRequest, harness: Harness, before: str, after: str
) -> None:
    name = f"go-{request.node.callspec.id}"
    skew.roll(harness, "go", skew.go_template(before))
    with watching(harness.api, harness.rabbitmq, harness.namespace) as watcher:
        tasks = harness.batch(name, COUNT, "nap", queue="go", payload={"seconds": 4})
        skew.wait_running(harness, tasks, SLOTS)
        skew.roll(harness, "go", skew.go_template(after))
        ended = harness.all_finished(tasks)
        assert {(one["phase"], one["attempts"]) for one in ended} == {("Succeeded", 1)}
        watcher.verdict().assert_clean()
