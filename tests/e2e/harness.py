"""A test namespace in the cluster: TaskQueues with real workers, Tasks, and their outcomes."""

from __future__ import annotations

import base64
import copy
import json
import time
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import requests

from tests.e2e.api import GROUP, VERSION, Api, Body, Refused
from tests.e2e.observations import Observations
from tests.faults.processes import Processes, whole_pod
from tests.parallel import assert_exclusive

if TYPE_CHECKING:
    from tests.conftest import Kubectl, RabbitMQ

#: How long a test waits for anything it expects; a machine may be busy with other work.
PATIENCE_SECONDS = 120.0
HANDLERS = Path(__file__).with_name("handlers.py")
FINISHED = ("Succeeded", "Failed", "Cancelled")
OPERATOR_NAMESPACE = "taskqueue-system"
OPERATOR = "taskqueue-operator"
OPERATOR_PODS = f"app.kubernetes.io/name={OPERATOR}"

#: Where the broker is, for pods.
BROKER_HOST = "rabbitmq.rabbitmq.svc.cluster.local"

#: Pods that are quick to come and quick to go.
TEMPLATE: Body = {
    "spec": {
        "terminationGracePeriodSeconds": 6,
        "containers": [
            {
                "name": "worker",
                "image": "taskqueue-operator:dev",
                "args": ["worker", "handlers"],
                "volumeMounts": [{"name": "handlers", "mountPath": "/handlers"}],
            }
        ],
        "volumes": [{"name": "handlers", "configMap": {"name": "handlers"}}],
    }
}

#: A newer version of the module, which knows one handler more.
_ROLLED_OUT = """
from handlers import *
from taskqueue import task

@task
def newcomer(payload):
    return {"known": True}
"""

#: A pool that is quick to grow and to shrink, and shares two cores with everything else.
_SPEC: Body = {
    "broker": {"connectionSecret": {"name": "rabbit"}},
    "scaling": {
        "maxReplicas": 2,
        "idleSecondsBeforeZero": 2,
        "scaleDown": {"stabilizationWindowSeconds": 1},
    },
    "taskDefaults": {"retry": {"backoff": {"initialSeconds": 0.2, "factor": 1, "jitter": 0}}},
    "workers": {"concurrency": 4, "template": TEMPLATE},
}


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run of a handler, as the handler itself logged it; ``ended`` is None while it runs."""

    uid: str
    attempt: int
    pod: str
    fence: str
    began: datetime
    ended: datetime | None


class Harness:
    """A namespace for a test module; `close` deletes it and what it left at the broker.

    Args:
        api: a client of the API server.
        kubectl: of the same cluster.
        rabbitmq: its broker.
        group: of the resources; another one than usual is served by an operator of the test's own.
    """

    def __init__(
        self, api: Api, kubectl: Kubectl, rabbitmq: RabbitMQ, *, group: str = GROUP
    ) -> None:
        self.api = api
        self.group = group
        self.kubectl = kubectl
        self.rabbitmq = rabbitmq
        self.namespace = f"e2e-{uuid.uuid4().hex[:8]}"
        #: The metadata of each TaskQueue as last written here: the watch may be behind.
        self._written_queues: dict[str, Body] = {}
        #: When the operator was killed, in seconds since the epoch.
        self.operator_kills: list[float] = []
        api.request(
            "POST",
            "/api/v1/namespaces",
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": self.namespace}},
        )
        self.processes = Processes(api, kubectl, self.namespace)
        self.tasks = Observations(api, self.path("tasks"))
        self.queues = Observations(api, self.path("taskqueues"))
        self._pods = Observations(api, self.core("pods"))
        modules = {"handlers.py": HANDLERS.read_text(), "rolled_out.py": _ROLLED_OUT}
        self.create_core("configmaps", "handlers", data=modules)
        self.secret("rabbit")

    def path(self, *parts: str) -> str:
        """Return the path of our own resources in the namespace."""
        return "/".join([f"/apis/{self.group}/{VERSION}/namespaces/{self.namespace}", *parts])

    def core(self, *parts: str) -> str:
        """Return the path of Kubernetes' core resources in the namespace."""
        return "/".join([f"/api/v1/namespaces/{self.namespace}", *parts])

    def deployment(self, queue: str = "q") -> str:
        """Return the path of a TaskQueue's worker Deployment."""
        return f"/apis/apps/v1/namespaces/{self.namespace}/deployments/{queue}-worker"

    # What a test puts in place.

    def create_core(self, resource: str, name: str, **fields: Any) -> None:
        """Create an object of the core API."""
        self.api.request("POST", self.core(resource), {"metadata": {"name": name}, **fields})

    def secret(self, name: str, **changed: str | None) -> None:
        """Put a connection Secret in place; keys may be changed, or left out by None."""
        data = {
            "host": BROKER_HOST,
            "username": self.rabbitmq.username,
            "password": self.rabbitmq.password,
            **changed,
        }
        encoded = {
            key: base64.b64encode(value.encode()).decode()
            for key, value in data.items()
            if value is not None
        }
        with suppress(Refused):
            self.api.request("DELETE", self.core("secrets", name))
        self.create_core("secrets", name, data=encoded)

    def virtual_host(self) -> str:
        """Create a virtual host with the namespace's name; return that. Whoever asks deletes it."""
        self.broker_api("PUT", f"vhosts/{self.namespace}", {"default_queue_type": "quorum"})
        user = quote(self.rabbitmq.username)
        everything = {"configure": ".*", "write": ".*", "read": ".*"}
        self.broker_api("PUT", f"permissions/{self.namespace}/{user}", everything)
        return self.namespace

    def queue(self, name: str = "q", **changes: Any) -> None:
        """Create a TaskQueue; changes are merged into its spec, at any depth."""
        body = {
            "apiVersion": f"{self.group}/{VERSION}",
            "kind": "TaskQueue",
            "metadata": {"name": name},
            "spec": merged(_SPEC, changes),
        }
        created = self.api.request("POST", self.path("taskqueues"), body)
        self._written_queues[name] = created["metadata"]

    def change_queue(self, name: str = "q", **changes: Any) -> Body:
        """Merge changes into a TaskQueue's spec."""
        changed = self.api.patch(self.path("taskqueues", name), {"spec": changes})
        self._written_queues[name] = changed["metadata"]
        return changed

    def task(self, name: str, handler: str = "echo", *, queue: str = "q", **spec: Any) -> str:
        """Create a Task; return its name."""
        body = {
            "apiVersion": f"{self.group}/{VERSION}",
            "kind": "Task",
            "metadata": {"name": name},
            "spec": {"queue": queue, "handler": handler, **spec},
        }
        self.api.request("POST", self.path("tasks"), body)
        return name

    def batch(self, prefix: str, count: int, handler: str = "echo", **spec: Any) -> list[str]:
        """Create many Tasks alike; return their names."""
        with ThreadPoolExecutor(8) as pool:
            names = [f"{prefix}-{number}" for number in range(count)]
            return list(pool.map(lambda name: self.task(name, handler, **spec), names))

    def delete_task(self, name: str) -> None:
        """Delete a Task."""
        self.api.request("DELETE", self.path("tasks", name))

    def delete_queue(self, name: str = "q") -> None:
        """Delete a TaskQueue."""
        self.api.request("DELETE", self.path("taskqueues", name))
        self.queues.wait_deleted(name)

    # What a test waits for.

    def finished(self, name: str, *, seconds: float = PATIENCE_SECONDS) -> Body:
        """Return the status of a Task once it has ended."""
        return self.phase(name, *FINISHED, seconds=seconds)

    def all_finished(
        self, names: Iterable[str], *, seconds: float = PATIENCE_SECONDS
    ) -> list[Body]:
        """Return the statuses of Tasks once all have ended."""
        deadline = time.monotonic() + seconds
        return [self.finished(name, seconds=max(deadline - time.monotonic(), 0)) for name in names]

    def phase(self, name: str, *phases: str, seconds: float = PATIENCE_SECONDS) -> Body:
        """Return the status of a Task once it is in one of these phases."""
        seen = self.tasks.wait(
            name,
            lambda task: task["status"]["phase"] in phases,
            what=" or ".join(phases),
            seconds=seconds,
        )
        status: Body = seen["status"]
        return status

    def queue_status(
        self, until: Callable[[Body], bool], name: str = "q", *, what: str, seconds: float = 60
    ) -> Body:
        """Return a TaskQueue's status, written for its newest spec, of which ``until`` holds."""
        written = self._written_queues.get(name, {})

        def holds(queue: Body) -> bool:
            metadata, status = queue["metadata"], queue.get("status") or {}
            newest = (
                metadata["uid"] == written.get("uid", metadata["uid"])
                and metadata["generation"] >= written.get("generation", 0)
                and metadata["generation"] == status.get("observedGeneration")
            )
            return newest and until(status)

        status: Body = self.queues.wait(name, holds, what=what, seconds=seconds)["status"]
        return status

    def all_counted(self, succeeded: int, *, uncounted: int = 0) -> None:
        """Return once the totals say that so many succeeded, and nothing else ended.

        Args:
            succeeded: how many did.
            uncounted: how many of these may be missing: those that ended in the second before an
                operator was killed.
        """
        others = {"failed": 0, "cancelled": 0}

        def holds(status: Body) -> bool:
            totals = dict(status.get("totals") or {"succeeded": -1})
            counted = totals.pop("succeeded")
            return totals == others and succeeded - uncounted <= counted <= succeeded

        self.queue_status(holds, what=f"totals of {succeeded}, {uncounted} fewer at most")

    def condition(
        self, kind: str, status: str, reason: str, name: str = "q", *, seconds: float = 60
    ) -> str:
        """Return the message of a TaskQueue's condition once it says so."""

        def holds(queue: Body) -> bool:
            found = conditions(queue).get(kind, {})
            return (found.get("status"), found.get("reason")) == (status, reason)

        what = f"{kind}={status}, {reason}"
        message: str = conditions(self.queue_status(holds, name, what=what, seconds=seconds))[kind][
            "message"
        ]
        return message

    def ready(self, name: str = "q", *, seconds: float = PATIENCE_SECONDS) -> None:
        """Return when a TaskQueue takes Tasks."""
        self.condition("Ready", "True", "Ready", name, seconds=seconds)

    def running_elsewhere(self, name: str, pods: Collection[str]) -> str:
        """Return the pod that runs a Task, once it is none of these."""
        seen = self.tasks.wait(
            name,
            lambda task: (
                task["status"]["phase"] == "Running" and task["status"].get("worker") not in pods
            ),
            what=f"running in none of {sorted(pods)}",
            seconds=PATIENCE_SECONDS,
        )
        worker: str = seen["status"]["worker"]
        return worker

    def until(
        self, holds: Callable[[], bool], *, what: str, seconds: float = PATIENCE_SECONDS
    ) -> None:
        """Wait for something that no watch shows; ask more and more rarely."""
        deadline = time.monotonic() + seconds
        pause = 0.1
        while not holds():
            assert time.monotonic() < deadline, f"not {what} within {seconds:g} s"
            time.sleep(pause)
            pause = min(1.2 * pause, 0.4)

    # Workers and operator.

    def pods(self, queue: str = "q") -> list[Body]:
        """Return the worker pods of a TaskQueue that are not on their way out, as last seen."""
        return [pod for pod in self.all_pods(queue) if "deletionTimestamp" not in pod["metadata"]]

    def all_pods(self, queue: str = "q") -> list[Body]:
        """Return the worker pods of a TaskQueue, as last seen."""
        return [
            pod
            for pod in self._pods.present()
            if pod["metadata"].get("labels", {}).get(f"{self.group}/queue") == queue
        ]

    def available(self, count: int, queue: str = "q", *, seconds: float = PATIENCE_SECONDS) -> None:
        """Return when this many workers of a TaskQueue are available, no more and no fewer."""

        def there() -> bool:
            with suppress(Refused):
                status = self.api.get(self.deployment(queue)).get("status", {})
                numbers = status.get("replicas", 0), status.get("availableReplicas", 0)
                return numbers == (count, count)
            return False

        self.until(there, what=f"{count} workers available", seconds=seconds)

    def registered(
        self, count: int, queue: str = "q", *, seconds: float = PATIENCE_SECONDS
    ) -> None:
        """Return when at least this many workers of a TaskQueue take work."""
        self.queue_status(
            lambda status: len(status.get("workers", ())) >= count,
            queue,
            what=f"{count} workers registered",
            seconds=seconds,
        )

    def renew_files(self, queue: str = "q") -> None:
        """Have the kubelet renew the files of Secrets and ConfigMaps in worker pods at once.

        It does so whenever it looks at a pod: after a change of an annotation, or each minute.
        """
        for pod in self.pods(queue):
            changed = {"metadata": {"annotations": {"tests/renewed": uuid.uuid4().hex}}}
            self.api.patch(self.core("pods", pod["metadata"]["name"]), changed)

    def kill_processes(self, name: str, *, namespace: str | None = None) -> None:
        """Kill every process of a pod; its containers start again."""
        self.processes.kill(whole_pod(namespace or self.namespace, name))

    def kill(self, name: str, *, namespace: str | None = None) -> None:
        """End a pod at once, as a node that dies does; another takes its place.

        Stopped first: a container killed before its pod is deleted would start again for a moment,
        and what it did, and its log, would be lost with it.
        """
        namespace = namespace or self.namespace
        options = {"gracePeriodSeconds": 0, "propagationPolicy": "Background"}
        with self.processes.stopped(whole_pod(namespace, name)) as processes:
            self.api.request("DELETE", f"/api/v1/namespaces/{namespace}/pods/{name}", options)
            with suppress(AssertionError):  # kubelet was faster
                self.processes.kill(processes)

    def worker_log(self, queue: str = "q") -> str:
        """Return what the workers of a TaskQueue that are still there have logged."""
        return "".join(text for _, text in self._worker_logs(queue))

    def _worker_logs(self, queue: str) -> Iterator[tuple[str, str]]:
        """Yield the name and the log of each worker pod that has begun and has not left."""
        for pod in self.all_pods(queue):
            name = pod["metadata"]["name"]
            try:
                text = self.api.text(self.core("pods", name, "log"))
            except Refused:
                continue
            yield name, text

    def log_lines(self, queue: str = "q") -> list[Body]:
        """Return what the workers of a TaskQueue that are still there have logged, by time."""
        lines: list[Body] = []
        for name, text in self._worker_logs(queue):
            written, _, _ = text.rpartition("\n")  # the last line may not be complete yet
            lines += [
                {**json.loads(line), "pod": name}
                for line in written.splitlines()
                if line.startswith("{")
            ]
        return sorted(lines, key=lambda line: line["time"])

    def runs(self, queue: str = "q") -> list[Run]:
        """Return the runs of counted handlers of a TaskQueue, by when they began.

        What a worker that is gone has run is not among them.
        """
        began: dict[str, Body] = {}
        ended: dict[str, str] = {}
        for line in self.log_lines(queue):
            event, _, rest = line["event"].partition(" ")
            if event == "run.began":
                began[rest] = line
            elif event == "run.ended":
                ended[rest] = line["time"]
        return [
            Run(
                uid=line["uid"],
                attempt=line["attempt"],
                pod=line["pod"],
                fence=rest.split()[1],
                began=datetime.fromisoformat(line["time"]),
                ended=datetime.fromisoformat(ended[rest]) if rest in ended else None,
            )
            for rest, line in began.items()
        ]

    def operator_pods(self) -> list[Body]:
        """Return the operator's pods that are not on their way out."""
        path = f"/api/v1/namespaces/{OPERATOR_NAMESPACE}/pods"
        found = self.api.get(path, labelSelector=OPERATOR_PODS)
        return [pod for pod in found["items"] if "deletionTimestamp" not in pod["metadata"]]

    def leader(self) -> str:
        """Return the operator's pod that leads, once one does."""
        lease = f"/apis/coordination.k8s.io/v1/namespaces/{OPERATOR_NAMESPACE}/leases/{OPERATOR}"
        found = ""

        def leads() -> bool:
            nonlocal found
            holder = self.api.get(lease)["spec"].get("holderIdentity", "")
            found = holder.rpartition("_")[0]
            return found in {pod["metadata"]["name"] for pod in self.operator_pods()}

        self.until(leads, what="an operator leading")
        return found

    def kill_operator(self) -> None:
        """End the leader at once; another has to wait until its Lease has run out."""
        assert_exclusive("operator")
        leader = self.leader()
        self.operator_kills.append(time.time())
        self.kill(leader, namespace=OPERATOR_NAMESPACE)

    def operator_log(self, lines: int = 40, *, since: str = "0s") -> str:
        """Return the end of the operator's log: what is not older, and no more than these lines.

        All of it is megabytes in a run of all tests: whoever asks again and again asks ``since``.
        """
        limits = (f"--tail={lines}", f"--since={since}")
        done = self.kubectl(
            "logs", "-n", OPERATOR_NAMESPACE, f"-l={OPERATOR_PODS}", *limits, "--prefix"
        )
        return done.stdout + done.stderr

    def broker_api(self, method: str, path: str, body: Any = None) -> Any:
        """Ask RabbitMQ's management API; return the answer, None when it is empty."""
        answer = requests.request(
            method,
            f"http://{self.rabbitmq.host}:{self.rabbitmq.management_port}/api/{path}",
            auth=(self.rabbitmq.username, self.rabbitmq.password),
            json=body,
            timeout=30,
        )
        answer.raise_for_status()
        return answer.json() if answer.content else None

    # The end.

    def assert_ends_are_final(self) -> None:
        """Fail if any Task, once finished, was ever changed."""
        for name in self.tasks.names():
            ends: dict[str, Body] = {}
            for version in self.tasks.versions(name):
                uid = version["metadata"]["uid"]
                status = version["status"]
                assert ends.get(uid, status) == status, f"{name} was finished, and changed"
                if status["phase"] in FINISHED:
                    ends[uid] = status

    def describe(self) -> str:
        """Return what helps to understand a failure."""
        objects = self.kubectl("get", "tq,tasks,deploy,pods", "-n", self.namespace, "-o", "wide")
        last = [self.queues.versions(name)[-1] for name in self.queues.names()]
        queues = "\n".join(map(_in_short, last))
        return f"{objects.stdout}\n{queues}\n\n{self.operator_log()}"

    def close(self) -> None:
        """Delete the namespace, and what is at the broker once nobody declares it again."""
        self.tasks.close()
        names = self.queues.names()
        for name in names:
            with suppress(Refused):
                self.delete_queue(name)
        self.queues.close()
        self._pods.close()
        self.api.request("DELETE", f"/api/v1/namespaces/{self.namespace}")
        for name in names:
            for kind in ("taskqueue", "taskqueue-dead"):
                with suppress(requests.HTTPError):
                    self.broker_api("DELETE", f"queues/%2F/{kind}.{self.namespace}.{name}")


def _in_short(queue: Body) -> str:
    status = dict(queue.get("status") or {})
    told = [
        f"{one['type']}={one['status']} {one['reason']}: {one['message']}"
        for one in status.pop("conditions", ())
    ]
    return "\n  ".join([queue["metadata"]["name"], *told, json.dumps(status)])


def conditions(holder: Mapping[str, Any]) -> dict[str, Body]:
    """Return the conditions of a status by type."""
    return {condition["type"]: condition for condition in holder.get("conditions", ())}


def true_conditions(status: Mapping[str, Any]) -> set[str]:
    """Return the types of the conditions that are True."""
    return {kind for kind, one in conditions(status).items() if one["status"] == "True"}


def merged(base: Body, changes: Mapping[str, Any]) -> Body:
    """Return ``base`` with ``changes`` merged in as a JSON merge patch would: None removes."""
    result = copy.deepcopy(base)
    for key, value in changes.items():
        if value is None:
            result.pop(key, None)
        elif isinstance(value, Mapping) and isinstance(result.get(key), dict):
            result[key] = merged(result[key], value)
        else:
            result[key] = value
    return result
