"""Plays rows of the table: all at once, each in a thread of its own, in one harness.

Names: the Task of role ``dep`` is called ``<row>-dep``, and so are ConfigMaps; the row itself is
called like its title. A row's own TaskQueue is called like the row. A concurrencyKey gets the row's
name in front, so that no two rows share one.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

from pika import BlockingConnection, ConnectionParameters, PlainCredentials

from tests.conftest import RabbitMQ
from tests.e2e.api import Body
from tests.e2e.harness import Harness, Run, true_conditions
from tests.e2e.table import SHARED_QUEUES, In, Queue, Row, Shows

#: Rows under way at once: more would wait for the two cores, not for each other.
_AT_ONCE = 32
#: Of what a row's title becomes in names, a TaskQueue's among them.
_NAME_LENGTH = 50
#: How long anything may take to come to be seen.
PATIENCE_SECONDS = 60.0


class Play:
    """One row, being played."""

    def __init__(self, harness: Harness, row: Row, place: str, stage: Stage) -> None:
        self.harness = harness
        self.row = row
        self.stage = stage
        self.met = False
        self.place = place
        self.queue = row.on if isinstance(row.on, str) else place
        #: What messages may name.
        self.names = {"ns": harness.namespace, "q": self.queue, "row": place}
        #: Messages a consumer of the row's own has taken, as (routing key, headers, properties).
        self.taken: list[Any] = []
        self._roles: list[str] = []
        #: Of each role, the last version waited for.
        self._seen: dict[str, int] = {}

    def name(self, role: str) -> str:
        """Return the name of the Task, or ConfigMap, of a role."""
        return f"{self.place}-{role}"

    def create(self, role: str, task: Body) -> None:
        """Apply the manifest of a Task."""
        if role in self._roles:
            self._seen[role] = len(self.harness.tasks.versions(self.name(role)))
        else:
            self._roles.append(role)
        self.harness.task(self.name(role), queue=self.queue, **self._spec(task))

    def edit(self, role: str, **spec: Any) -> None:
        """Change a Task's spec."""
        path = self.harness.path("tasks", self.name(role))
        self.harness.api.patch(path, {"spec": self._spec(spec)})

    def latest(self, role: str = "it") -> Body:
        """Return a Task as last seen."""
        return self.harness.tasks.versions(self.name(role))[-1]

    def status(self, role: str = "it") -> Body:
        """Return a Task's status as last seen."""
        status: Body = self.latest(role)["status"]
        return status

    def uid(self, role: str = "it") -> str:
        """Return a Task's uid."""
        uid: str = self.harness.api.get(self.harness.path("tasks", self.name(role)))["metadata"][
            "uid"
        ]
        return uid

    def runs(self, role: str = "it") -> list[Run]:
        """Return the runs of a Task's handler, by the workers' logs."""
        uid = self.latest(role)["metadata"]["uid"]
        return [run for run in self.harness.runs(self.queue) if run.uid == uid]

    def see(self, role: str, shows: Shows) -> None:
        """Wait until a Task shows this, from what was last waited for on; ends are for good."""
        names = self._all_names()
        seen = self._seen.get(role, 0)
        found = self.harness.tasks.wait(
            self.name(role),
            lambda task: shows.is_meant(task, names),
            what=f"{shows.phase} {shows.reason}".strip(),
            since=seen,
            seconds=PATIENCE_SECONDS,
        )
        versions = self.harness.tasks.versions(self.name(role))
        self._seen[role] = versions.index(found, seen)
        shows.assert_shown_by(found, names)

    def consumer(self) -> BlockingConnection:
        """Return a connection of the row's own to the broker, as any AMQP client makes it."""
        broker: RabbitMQ = self.harness.rabbitmq
        return BlockingConnection(
            ConnectionParameters(
                broker.host,
                broker.port,
                credentials=PlainCredentials(broker.username, broker.password),
            )
        )

    def run(self) -> None:
        """Play the row.

        Raises:
            AssertionError: something else followed; its notes tell what was seen of the Tasks.
        """
        try:
            if isinstance(self.row.on, Queue):
                self.harness.queue(self.place, **self.row.on.changes)
                self.harness.queue_status(
                    lambda status: "Ready" in true_conditions(status), self.place, what="Ready"
                )
            for role, task in self.row.given.items():
                self.create(role, task)
            for step in self.row.when:
                step(self)
            for role, shows in self.row.then.items():
                self.see(role, shows)
            for check in self.row.also:
                check(self)
        except BaseException as problem:
            if not self.met:
                self.stage.operator_loss.miss()
            for role in self._roles:
                problem.add_note(self._tell(role))
            raise

    def _all_names(self) -> dict[str, str]:
        return {**self.names, **{role: self.name(role) for role in self._roles}}

    def _spec(self, spec: Body) -> Body:
        spec = dict(spec)
        if spec.get("dependsOn"):
            spec["dependsOn"] = [self.name(role) for role in spec["dependsOn"]]
        if spec.get("concurrencyKey"):
            spec["concurrencyKey"] = f"{self.place}-{spec['concurrencyKey']}"
        if "payloadFrom" in spec:
            spec["payloadFrom"] = [
                {"configMapKeyRef": {"name": self.name(role), "key": "payload"}}
                for role in spec["payloadFrom"]
            ]
        if isinstance(spec.get("startAfter"), In):
            spec["startAfter"] = spec["startAfter"].timestamp()
        return spec

    def _tell(self, role: str) -> str:
        versions = self.harness.tasks.versions(self.name(role))
        lines = [
            f"  {one['metadata']['resourceVersion']} {one['metadata']['uid'][:8]} "
            f"{ {k: v for k, v in one.get('status', {}).items() if k != 'conditions'} }"
            for one in versions
        ]
        return "\n".join([f"{self.name(role)} was seen as:", *lines])


class Meeting:
    """Where rows come together for what can happen to all of them only at once."""

    def __init__(self, happen: Callable[[], None], rows: int) -> None:
        self._happen = happen
        self._awaited = rows
        self._over = False
        self._changed = threading.Condition()

    def come(self) -> None:
        """Return when it has happened, which it does when nobody is awaited any more."""
        with self._changed:
            self._one_less()
            self._changed.wait_for(lambda: self._over, 2 * PATIENCE_SECONDS)
            assert self._over, "it did not happen"

    def miss(self) -> None:
        """Take note that a row has failed and will not come."""
        with self._changed:
            self._one_less()

    def _one_less(self) -> None:
        self._awaited -= 1
        if self._awaited == 0:
            self._happen()
            self._over = True
            self._changed.notify_all()


class Stage:
    """Where rows are played together; `play` begins, `result` waits for one."""

    def __init__(self, harness: Harness, rows: Iterable[Row]) -> None:
        self._harness = harness
        self._rows = list(rows)
        #: Where all rows of the stage, each once, have the operator killed.
        self.operator_loss = Meeting(harness.kill_operator, len(self._rows))
        self._pool = ThreadPoolExecutor(_AT_ONCE)
        self._played: dict[str, Future[None]] = {}

    def play(self) -> None:
        """Set the shared queues up and begin."""
        shared = {row.on for row in self._rows if isinstance(row.on, str)}
        for name in shared:
            self._harness.queue(name, **SHARED_QUEUES[name].changes)
        for name in shared:
            self._harness.ready(name)
            if SHARED_QUEUES[name].changes["workers"].get("template", ...) is not None:
                count = SHARED_QUEUES[name].changes["scaling"]["minReplicas"]
                self._harness.available(count, name)
        self._harness.power.prepare()
        crowd = [self._begin(row) for row in self._rows if not row.calm]
        for row in self._rows:
            if row.calm:
                self._begin(row, after=crowd)

    def _begin(self, row: Row, *, after: Iterable[Future[None]] = ()) -> Future[None]:
        play = Play(self._harness, row, place_of(row), self)

        def run() -> None:
            wait(after)
            play.run()

        played = self._played[row.title] = self._pool.submit(run)
        return played

    def result(self, row: Row) -> None:
        """Return when a row has been played.

        Raises:
            AssertionError: it was not as it says.
        """
        self._played[row.title].result()

    def close(self) -> None:
        """Begin no further row."""
        self._pool.shutdown(cancel_futures=True)


def place_of(row: Row) -> str:
    """Return the name a row's objects begin with: its title, as names are written."""
    return re.sub("[^a-z0-9]+", "-", row.title.lower()).strip("-")[:_NAME_LENGTH].strip("-")
