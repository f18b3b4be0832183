"""Runs lifecycle cases: all at once, each in its own thread, in one namespace.

The title of a case becomes its prefix. The Task of role ``dep`` is called ``<prefix>-dep``, and so
are ConfigMaps; a case's own TaskQueue is called ``<prefix>``. A concurrencyKey starts with the
prefix too, so that no two cases share one.
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
from tests.e2e.harness import PATIENCE_SECONDS, Harness, Run, true_conditions
from tests.e2e.lifecycle_case import SHARED_QUEUES, ExpectedStatus, FromNow, LifecycleCase, Queue

#: Cases that run at once. More would wait for the two cores, not for each other.
_AT_ONCE = 32
#: The longest prefix, in characters: a TaskQueue's name has a limit.
_NAME_LENGTH = 50


class RunningCase:
    """A case while it runs: what its steps and checks work with."""

    def __init__(
        self, harness: Harness, case: LifecycleCase, prefix: str, runner: CaseRunner
    ) -> None:
        self.harness = harness
        self.case = case
        self.runner = runner
        self.operator_was_killed = False
        self.prefix = prefix
        self.queue = case.on if isinstance(case.on, str) else prefix
        #: What expected messages may refer to in braces.
        self.names = {"ns": harness.namespace, "q": self.queue, "case": prefix}
        #: Properties of the messages that the case's own consumer received.
        self.received: list[Any] = []
        self._roles: list[str] = []
        #: By role, the index of the last version waited for.
        self._matched: dict[str, int] = {}

    def name(self, role: str) -> str:
        """Return the name of the Task, or ConfigMap, of a role."""
        return f"{self.prefix}-{role}"

    def create(self, role: str, task: Body) -> None:
        """Apply the manifest of a Task."""
        if role in self._roles:
            self._matched[role] = len(self.harness.tasks.versions(self.name(role)))
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

    def wait_for_status(self, role: str, expected: ExpectedStatus) -> None:
        """Wait until a Task has this status, searching from the version last waited for.

        Raises:
            AssertionError: it has another one, finished with another one, or time is up.
        """
        names = self._all_names()
        since = self._matched.get(role, 0)
        found = self.harness.tasks.wait(
            self.name(role),
            lambda task: expected.is_candidate(task, names),
            what=f"{expected.phase} {expected.reason}".strip(),
            since=since,
            seconds=PATIENCE_SECONDS,
        )
        versions = self.harness.tasks.versions(self.name(role))
        self._matched[role] = versions.index(found, since)
        expected.assert_matches(found, names)

    def consumer(self) -> BlockingConnection:
        """Return a new connection to the broker, as any AMQP client makes it."""
        broker: RabbitMQ = self.harness.rabbitmq
        return BlockingConnection(
            ConnectionParameters(
                broker.host,
                broker.port,
                credentials=PlainCredentials(broker.username, broker.password),
            )
        )

    def run(self) -> None:
        """Run the case.

        Raises:
            AssertionError: an expectation failed; the notes list the statuses each Task had.
        """
        try:
            if isinstance(self.case.on, Queue):
                self.harness.queue(self.prefix, **self.case.on.changes)
                self.harness.queue_status(
                    lambda status: "Ready" in true_conditions(status), self.prefix, what="Ready"
                )
            for role, task in self.case.given.items():
                self.create(role, task)
            for step in self.case.when:
                step(self)
            for role, expected in self.case.then.items():
                self.wait_for_status(role, expected)
            for check in self.case.also:
                check(self)
        except BaseException as error:
            if not self.operator_was_killed:
                self.runner.operator_loss.drop_out()
            for role in self._roles:
                error.add_note(self._describe(role))
            raise

    def _all_names(self) -> dict[str, str]:
        return {**self.names, **{role: self.name(role) for role in self._roles}}

    def _spec(self, spec: Body) -> Body:
        spec = dict(spec)
        if spec.get("dependsOn"):
            spec["dependsOn"] = [self.name(role) for role in spec["dependsOn"]]
        if spec.get("dependencies"):
            spec["dependencies"] = [
                one | {"name": self.name(one["name"])} for one in spec["dependencies"]
            ]
        if spec.get("concurrencyKey"):
            spec["concurrencyKey"] = f"{self.prefix}-{spec['concurrencyKey']}"
        if "payloadFrom" in spec:
            spec["payloadFrom"] = [
                {"configMapKeyRef": {"name": self.name(role), "key": "payload"}}
                for role in spec["payloadFrom"]
            ]
        if isinstance(spec.get("startAfter"), FromNow):
            spec["startAfter"] = spec["startAfter"].timestamp()
        return spec

    def _describe(self, role: str) -> str:
        versions = self.harness.tasks.versions(self.name(role))
        lines = [
            f"  {one['metadata']['resourceVersion']} {one['metadata']['uid'][:8]} "
            f"{ {k: v for k, v in one.get('status', {}).items() if k != 'conditions'} }"
            for one in versions
        ]
        return "\n".join([f"statuses of {self.name(role)}:", *lines])


class Barrier:
    """Runs an action once, as soon as every case has arrived or dropped out."""

    def __init__(self, action: Callable[[], None], cases: int) -> None:
        self._action = action
        self._awaited = cases
        self._done = False
        self._changed = threading.Condition()

    def arrive_and_wait(self) -> None:
        """Return when the action has run."""
        with self._changed:
            self._count_down()
            self._changed.wait_for(lambda: self._done, 2 * PATIENCE_SECONDS)
            assert self._done, "some cases have not arrived in time"

    def drop_out(self) -> None:
        """Stop waiting for a case that has failed."""
        with self._changed:
            self._count_down()

    def _count_down(self) -> None:
        self._awaited -= 1
        if self._awaited == 0:
            self._action()
            self._done = True
            self._changed.notify_all()


class CaseRunner:
    """Runs cases together; `start` begins, `wait_finished` waits for one."""

    def __init__(self, harness: Harness, cases: Iterable[LifecycleCase]) -> None:
        self._harness = harness
        self._cases = list(cases)
        #: Kills the operator once, when all cases have come to that step.
        self.operator_loss = Barrier(harness.kill_operator, len(self._cases))
        self._pool = ThreadPoolExecutor(_AT_ONCE)
        self._futures: dict[str, Future[None]] = {}

    def start(self) -> None:
        """Create the shared queues and start the cases."""
        shared = {case.on for case in self._cases if isinstance(case.on, str)}
        for name in shared:
            self._harness.queue(name, **SHARED_QUEUES[name].changes)
        for name in shared:
            self._harness.ready(name)
            if SHARED_QUEUES[name].changes["workers"].get("template", ...) is not None:
                count = SHARED_QUEUES[name].changes["scaling"]["minReplicas"]
                self._harness.available(count, name)
                # A Task with a deadline of seconds must not wait for workers that still start.
                self._harness.registered(count, name)
        self._harness.processes.prepare()
        others = [self._submit(case) for case in self._cases if not case.runs_last]
        for case in self._cases:
            if case.runs_last:
                self._submit(case, after=others)

    def _submit(self, case: LifecycleCase, *, after: Iterable[Future[None]] = ()) -> Future[None]:
        running = RunningCase(self._harness, case, object_prefix(case), self)

        def run() -> None:
            wait(after)
            running.run()

        future = self._futures[case.title] = self._pool.submit(run)
        return future

    def wait_finished(self, case: LifecycleCase) -> None:
        """Return when a case has passed.

        Raises:
            AssertionError: an expectation of the case failed.
        """
        self._futures[case.title].result()

    def close(self) -> None:
        """Start no further case."""
        self._pool.shutdown(cancel_futures=True)


def object_prefix(case: LifecycleCase) -> str:
    """Return the first part of the names of a case's objects: its title as a Kubernetes name."""
    return re.sub("[^a-z0-9]+", "-", case.title.lower()).strip("-")[:_NAME_LENGTH].strip("-")
