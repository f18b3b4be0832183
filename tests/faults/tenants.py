"""``python -m tests.faults.tenants``: one tenant attacks another, beside a control run.

Tenant A has a namespace, a ServiceAccount with Kubernetes' role admin there, and a virtual host and
a user of its own. It tries its acts against B again and again, each as often as another, while B
runs Tasks. In the control run A does as many harmless requests, with as many bytes. What refuses an
act is a third party: the API server, the broker, or B itself, which must not notice anything.

B's throughput should be at least `LEAST_RATIO` of the control's. Run it on a machine that does
nothing else. Exit code 1: something got through, or B was slowed down.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pika
import pika.exceptions
import requests

from devcluster import images
from devcluster.cluster import open_cluster
from devcluster.paths import CHECKOUT, DEFAULT_NAME, KUBECONFIG
from taskqueue.contract import heartbeat, outcome
from taskqueue.contract.heartbeat import Heartbeat
from taskqueue.contract.names import HEARTBEATS_EXCHANGE, OUTCOMES_EXCHANGE
from taskqueue.contract.outcome import AttemptEvent, EventKind
from taskqueue.model.worker import WorkerState
from tests.faults.install import install
from tests.faults.rows.site import Installation, Site, site

_IMAGE = f"taskqueue-operator:tenants-{DEFAULT_NAME}"
#: Part of the control's throughput that B must have at least.
LEAST_RATIO = 0.8
#: At most: so that both runs have as many. Each of 17 acts is tried 100 times in 170 seconds.
ACTS_A_SECOND = 10
#: A user of A's at the broker.
_PASSWORD = "tenant-a"
#: Tasks of A that are there at a time, of each kind.
_CROWD = 500


@dataclass
class Tally:
    """How often each act was tried, what failed before anybody judged it, what came through."""

    tried: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    through: list[str] = field(default_factory=list)


class Attacker:
    """Tenant A: what it can do, and what it tries.

    Args:
        own: its namespace and virtual host.
        victim: those of B.
    """

    def __init__(self, own: Site, victim: Site) -> None:
        self._own, self._victim = own, victim
        self._server = own.at.api.server
        self._session = requests.Session()
        # Or else a certificate bundle that the environment names is trusted in its place.
        self._session.trust_env = False
        self._session.verify = own.at.api._ca
        self._session.headers["Authorization"] = f"Bearer {self._token()}"
        self._names = itertools.count()
        self._local = threading.local()
        user = own.vhost
        own.harness.broker_api("PUT", f"users/{user}", {"password": _PASSWORD, "tags": ""})
        everything = {"configure": ".*", "write": ".*", "read": ".*"}
        own.harness.broker_api("PUT", f"permissions/{own.vhost}/{user}", everything)

    def _token(self) -> str:
        kubectl, name = self._own.at.kubectl, self._own.namespace
        kubectl.ok("-n", name, "create", "serviceaccount", "tenant")
        account = f"--serviceaccount={name}:tenant"
        kubectl.ok("-n", name, "create", "rolebinding", "tenant", "--clusterrole=admin", account)
        return kubectl.ok("-n", name, "create", "token", "tenant", "--duration=2h").strip()

    # What is refused at once: each returns whether it was.

    def read_secrets(self) -> bool:
        return self._forbidden("GET", f"/api/v1/namespaces/{self._victim.namespace}/secrets")

    def read_tasks(self) -> bool:
        return self._forbidden("GET", self._victim.harness.path("tasks"))

    def end_a_task(self) -> bool:
        body = {"status": {"phase": "Failed"}}
        path = f"{self._victim.harness.path('tasks', 'b-0')}/status"
        return self._forbidden("PATCH", path, body)

    def create_a_queue(self) -> bool:
        return self._forbidden("POST", self._victim.harness.path("taskqueues"), {})

    def delete_pods(self) -> bool:
        return self._forbidden("DELETE", f"/api/v1/namespaces/{self._victim.namespace}/pods")

    def write_own_status(self) -> bool:
        path = f"{self._own.harness.path('tasks', 'any')}/status"
        return self._forbidden("PATCH", path, {"status": {"phase": "Succeeded"}})

    def log_in_at_the_victims(self) -> bool:
        try:
            self._connect(self._victim.vhost).close()
        except (
            pika.exceptions.ProbableAccessDeniedError,
            pika.exceptions.ProbableAuthenticationError,
            pika.exceptions.ConnectionClosedByBroker,
        ):
            return True
        return False

    # What B must not notice.

    def claim_a_busy_worker(self) -> bool:
        return self._beat("attacker", WorkerState.READY, busy=100_000)

    def stop_a_worker(self) -> bool:
        pods = self._victim.harness.all_pods()
        name = pods[0]["metadata"]["name"] if pods else "b-worker"
        return self._beat(name, WorkerState.STOPPED, busy=0)

    def forge_an_outcome(self) -> bool:
        event = AttemptEvent(
            kind=EventKind.SUCCEEDED,
            namespace=self._victim.namespace,
            queue="q",
            task="b-0",
            uid="00000000-0000-0000-0000-000000000000",
            token="k1.forged",
            attempt=1,
            epoch=0,
            worker="attacker",
            seconds=1.0,
        )
        return self._publish(
            OUTCOMES_EXCHANGE, f"{self._victim.key}.task.succeeded", outcome.encode(event)
        )

    def send_what_is_no_event(self) -> bool:
        return self._publish(OUTCOMES_EXCHANGE, f"{self._victim.key}.task.succeeded", b"{" * 5000)

    def command_the_victims_workers(self) -> bool:
        order = {"order": "drain", "pod": "b-worker"}
        return self._publish("", "taskqueue.control", json.dumps(order).encode())

    # What loads the operator on A's behalf.

    def wait_for_a_config_map(self) -> bool:
        missing = {"configMapKeyRef": {"name": f"missing-{next(self._names) % 50}", "key": "k"}}
        return self._task(payloadFrom=[missing])

    def wait_for_tasks(self) -> bool:
        number = next(self._names)
        return self._task(dependsOn=[f"missing-{number}-{one}" for one in range(64)])

    def create_what_is_nested_deep(self) -> bool:
        deep: Any = {}
        for _ in range(90):
            deep = {"a": deep}
        return self._task(payload=deep)

    def create_what_is_large(self) -> bool:
        return self._task(payload={"text": "x" * 150_000}, startAfter="2099-01-01T00:00:00Z")

    def fail_at_once(self) -> bool:
        return self._task(handler="refuse", activeDeadlineSeconds=1)

    # What is harmless.

    def read_own_tasks(self) -> bool:
        answer = self._session.get(
            self._server + self._own.harness.path("tasks"), params={"limit": "1"}, timeout=30
        )
        return answer.ok

    def publish_little_to_nobody(self) -> bool:
        return self._publish("amq.topic", "nobody", b"x" * 5000)

    def publish_much_to_nobody(self) -> bool:
        return self._publish("amq.topic", "nobody", b"x" * 150_000)

    @property
    def acts(self) -> list[Callable[[], bool]]:
        """What is tried against B."""
        return [
            self.read_secrets,
            self.read_tasks,
            self.end_a_task,
            self.create_a_queue,
            self.delete_pods,
            self.write_own_status,
            self.log_in_at_the_victims,
            self.claim_a_busy_worker,
            self.stop_a_worker,
            self.forge_an_outcome,
            self.send_what_is_no_event,
            self.command_the_victims_workers,
            self.wait_for_a_config_map,
            self.wait_for_tasks,
            self.create_what_is_nested_deep,
            self.create_what_is_large,
            self.fail_at_once,
        ]

    @property
    def harmless(self) -> list[Callable[[], bool]]:
        """As many acts with as many bytes, of the control run."""
        published = [*[self.publish_little_to_nobody] * 5, self.publish_much_to_nobody]
        return [*[self.read_own_tasks] * (len(self.acts) - len(published)), *published]

    def _forbidden(self, method: str, path: str, body: Any = None) -> bool:
        answer = self._session.request(
            method,
            self._server + path,
            data=None if body is None else json.dumps(body),
            headers={
                "Content-Type": "application/merge-patch+json"
                if method == "PATCH"
                else "application/json"
            },
            timeout=30,
        )
        return answer.status_code == 403

    def _task(self, *, handler: str = "echo", **spec: Any) -> bool:
        number = next(self._names)
        body = {
            "apiVersion": "taskqueue.dev/v1alpha1",
            "kind": "Task",
            "metadata": {"name": f"a-{number}"},
            "spec": {"queue": "q", "handler": handler, **spec},
        }
        path = self._server + self._own.harness.path("tasks")
        answer = self._session.post(path, json=body, timeout=30)
        if number >= _CROWD:
            self._session.delete(f"{path}/a-{number - _CROWD}", timeout=30)
        return answer.status_code in (201, 403, 413, 422, 429)

    def _beat(self, pod: str, state: WorkerState, *, busy: int) -> bool:
        beat = Heartbeat(
            namespace=self._victim.namespace,
            queue="q",
            pod=pod,
            node="",
            cpus=64.0,
            slots=64,
            handlers=("echo",),
            running=(),
            state=state,
            busy=busy,
        )
        return self._publish(HEARTBEATS_EXCHANGE, beat.routing_key, heartbeat.encode(beat))

    def _publish(self, exchange: str, key: str, body: bytes) -> bool:
        channel = getattr(self._local, "channel", None)
        if channel is None or not channel.is_open:
            channel = self._local.channel = self._connect(self._own.vhost).channel()
        channel.basic_publish(exchange, key, body)
        return True

    def _connect(self, virtual_host: str) -> Any:
        rabbitmq = self._own.at.rabbitmq
        credentials = pika.PlainCredentials(self._own.vhost, _PASSWORD)
        return pika.BlockingConnection(
            pika.ConnectionParameters(rabbitmq.host, rabbitmq.port, virtual_host, credentials)
        )


def busy_with(acts: list[Callable[[], bool]], tally: Tally, stop: threading.Event) -> None:
    """Try acts in turn, `ACTS_A_SECOND`, until told to stop."""
    for act in itertools.cycle(acts):
        if stop.wait(1 / ACTS_A_SECOND):
            return
        try:
            refused = act()
        except (requests.RequestException, pika.exceptions.AMQPError) as error:
            tally.failed[f"{act.__name__}: {error!r}"[:200]] += 1
            continue
        tally.tried[act.__name__] += 1
        if not refused:
            tally.through.append(act.__name__)


def run(
    at: Installation, *, tasks: int, seconds: float, attacks: bool
) -> tuple[float, Tally, list[str]]:
    """Run B's Tasks beside what A does.

    Returns:
        B's Tasks a second, what A has tried, and what B has noticed.
    """
    with site(at) as own, site(at) as victim:
        for place in (own, victim):
            place.queue(slots=4)
        attacker, tally, stop = Attacker(own, victim), Tally(), threading.Event()
        acts = attacker.acts if attacks else attacker.harmless
        pods = {pod["metadata"]["uid"] for pod in victim.harness.all_pods()}
        attacking = threading.Thread(target=busy_with, args=(acts, tally, stop))
        attacking.start()
        began = time.monotonic()
        try:
            names = victim.harness.batch("b", tasks)
            ends = victim.harness.all_finished(names, seconds=10 * seconds)
            rate = tasks / (time.monotonic() - began)
            while time.monotonic() < began + seconds:
                time.sleep(1)
        finally:
            stop.set()
            attacking.join()
        noticed = [
            f"{name} is {end['phase']} after {end['attempts']} attempts"
            for name, end in zip(names, ends, strict=True)
            if (end["phase"], end["attempts"]) != ("Succeeded", 1)
        ]
        if {pod["metadata"]["uid"] for pod in victim.harness.all_pods()} != pods:
            noticed.append("B's pods are others")
        status = victim.harness.api.get(victim.harness.path("taskqueues", "q"))["status"]
        if len(status.get("workers", ())) != len(pods) or status.get("deadLetters"):
            noticed.append(f"B's TaskQueue says {json.dumps(status)}")
        noticed += [f"{name} came through" for name in sorted(set(tally.through))]
        return rate, tally, noticed


def main() -> int:
    """Run both, print what was seen, and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.faults.tenants",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--tasks", type=int, default=2000, help="of B (default: 2000)")
    parser.add_argument(
        "--seconds", type=float, default=300.0, help="at least this long (default: 300)"
    )
    options = parser.parse_args()
    images.build_operator(_IMAGE, CHECKOUT)
    at = install(open_cluster(DEFAULT_NAME, KUBECONFIG, with_images=False), _IMAGE, CHECKOUT)
    control, harmless, calm = run(at, tasks=options.tasks, seconds=options.seconds, attacks=False)
    rate, tally, noticed = run(at, tasks=options.tasks, seconds=options.seconds, attacks=True)
    for name, count in tally.tried.items():
        print(f"{name}: tried {count} times")
    for name, count in (harmless.failed + tally.failed).items():
        print(f"failed {count} times: {name}")
    print(f"control run: {control:.1f} Tasks/s beside {harmless.tried.total()} requests")
    print(f"attacked: {rate:.1f} Tasks/s beside {tally.tried.total()} acts")
    print(f"ratio: {rate / control:.2f}, {LEAST_RATIO} is wanted")
    few = [name for name, count in tally.tried.items() if count < 100]
    problems = [*(f"control: {one}" for one in calm), *noticed]
    problems += [f"{name} was tried less than 100 times" for name in few]
    for problem in problems:
        print(problem)
    return int(bool(problems) or rate < LEAST_RATIO * control)


if __name__ == "__main__":
    sys.exit(main())
