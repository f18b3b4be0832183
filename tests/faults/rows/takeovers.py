"""Section D, rows that stop the operator or stand between it and others."""

from __future__ import annotations

import base64
import json
import secrets
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

import requests

from taskqueue.contract import heartbeat
from taskqueue.contract.heartbeat import Heartbeat
from taskqueue.contract.names import HEARTBEATS_EXCHANGE, work_queue
from taskqueue.kubernetes.status_updater import CONCURRENCY
from taskqueue.model.worker import WorkerState
from tests.e2e.api import Body
from tests.e2e.harness import OPERATOR_NAMESPACE, OPERATOR_PODS, conditions
from tests.faults.api_faults import Delay, Silence
from tests.faults.api_proxy import ApiProxy, open_api_proxy
from tests.faults.clock import PodClock, pod_addition
from tests.faults.install import settle
from tests.faults.processes import whole_pod
from tests.faults.relay import Relay, address_towards, open_relay
from tests.faults.rows import row
from tests.faults.rows.edits import (
    CLOCK_STEPS,
    first_attempt,
    hold,
    open_gate,
    phase,
    release,
    undisturbed,
)
from tests.faults.rows.site import PATIENCE, Site, holds_within

OPERATOR = "taskqueue-operator"
_DEPLOYMENT = ("-n", OPERATOR_NAMESPACE, f"deployment/{OPERATOR}")
_TASKS = r"/tasks$"
#: Bookmarks come each minute; with some room.
_SILENCE_SECONDS = 110.0
#: More than operators have ever kept for one TaskQueue while its broker is away.
_COMMANDS = 10_500
_CREATED_AT_ONCE = 500
#: More statuses than an operator writes at once, so that some wait.
_LATE = 40


def _leader(site: Site) -> str:
    """Return the operator's pod that holds the Lease, "" if it is none of the present ones."""
    path = f"/apis/coordination.k8s.io/v1/namespaces/{OPERATOR_NAMESPACE}/leases/{OPERATOR}"
    holder = site.at.api.get(path)["spec"].get("holderIdentity") or ""
    pods = (pod["metadata"]["name"] for pod in site.harness.operator_pods())
    return next((pod for pod in pods if holder.startswith(pod)), "")


def _other_leader(site: Site, *others: str) -> str:
    """Return the leader, once it is none of these."""
    leader = ""

    def leads() -> bool:
        nonlocal leader
        leader = _leader(site)
        return leader not in ("", *others)

    assert holds_within(60, leads), "nobody leads"
    return leader


@contextmanager
def _proxied(site: Site) -> Iterator[ApiProxy]:
    """Put a proxy between the operator and the API server."""
    address = address_towards(site.at.rabbitmq.host)
    with (
        open_api_proxy(site.at.kubeconfig, address=address, port=443, tls=True) as proxy,
        proxy.pod_addition().in_deployment(site.at.kubectl, OPERATOR_NAMESPACE, OPERATOR),
    ):
        _other_leader(site)
        yield proxy


@contextmanager
def _two_operators(site: Site) -> Iterator[None]:
    """Have a standby beside the leader."""
    kubectl = site.at.kubectl
    before = kubectl.ok("get", *_DEPLOYMENT, "-o", "jsonpath={.spec.replicas}")
    kubectl.ok("scale", *_DEPLOYMENT, "--replicas=2")
    settle(kubectl)
    try:
        yield
    finally:
        kubectl.ok("scale", *_DEPLOYMENT, f"--replicas={before}")


def _relayed(site: Site) -> Relay:
    """Let the TaskQueue's operator and workers reach the broker by a relay only."""
    broker = site.at.rabbitmq
    address = address_towards(broker.host)
    relay, port = site.keep(open_relay(broker.host, broker.port, address=address))
    site.harness.secret("rabbit", vhost=site.vhost, host=address, port=str(port))
    return relay


def _connected(site: Site, status: str) -> None:
    """Wait until the condition BrokerConnected has this status."""

    def said() -> bool:
        queue = site.at.api.get(site.harness.path("taskqueues", "q"))
        return conditions(queue["status"]).get("BrokerConnected", {}).get("status") == status

    assert holds_within(PATIENCE, said), f"BrokerConnected does not become {status}"


def _at_broker(site: Site, count: int) -> None:
    """Wait until the work queue has this many messages."""
    there = holds_within(PATIENCE, lambda: _messages(site) >= count)
    assert there, f"the broker does not have {count} messages"


def _messages(site: Site) -> int:
    """Return how many messages the work queue has, by a figure that is seconds late."""
    path = f"queues/{site.vhost}/{work_queue(site.namespace, 'q')}"
    return int(site.harness.broker_api("GET", path).get("messages", 0))


@row(
    "D2",
    "the wall clock of the operator stepped by 400 s, forward and back, while an attempt of 300 s "
    "runs",
    "it goes on",
    alone=True,
)
def _operator_clock(site: Site) -> str:
    kubectl = site.at.kubectl
    with pod_addition().in_deployment(kubectl, OPERATOR_NAMESPACE, OPERATOR):
        _other_leader(site)
        site.queue(taskDefaults={"attemptTimeoutSeconds": 300})
        hold(site, "long")
        pods = [pod["metadata"]["name"] for pod in site.harness.operator_pods()]
        for seconds in CLOCK_STEPS:
            with ExitStack() as stack:
                for pod in pods:
                    clock = PodClock(kubectl, OPERATOR_NAMESPACE, pod)
                    stack.enter_context(clock.stepped(seconds))
                undisturbed(site, "long")
        return "; ".join([first_attempt(site, "long"), site.works()])


@row(
    "D6",
    f"a leader is paused while {_LATE} statuses Running are to be written; another takes over, and "
    "records that the attempts failed; then the first goes on",
    "it writes nothing",
    alone=True,
)
def _paused_leader(site: Site) -> str:
    retry: Body = {"maxAttempts": 2, "backoff": {"initialSeconds": 600, "maxSeconds": 600}}
    spec: Body = {"payload": {"gate": "late"}, "retry": retry}
    with _two_operators(site), _proxied(site) as proxy, ExitStack() as pause:
        site.queue(slots=_LATE)
        first = _leader(site)
        with proxy.fault(Delay(8), method="PATCH", path="/tasks/late") as delayed:
            names = site.harness.batch("late", _LATE, "until_open_fails", **spec)
            full = holds_within(PATIENCE, lambda: delayed.applied >= CONCURRENCY)
            assert full, f"{delayed.applied} writes of statuses are under way"
            target = whole_pod(OPERATOR_NAMESPACE, first)
            pause.enter_context(site.harness.processes.stopped(target, seconds=90))
        second = _other_leader(site, first)
        open_gate(site, "late")
        slow = [name for name in names if not _is_retrying(site, name)]
        assert not slow, f"{second} does not record that {len(slow)} attempts failed"
        recorded = int(site.at.api.get(site.harness.path("tasks"))["metadata"]["resourceVersion"])
        pause.close()
        time.sleep(10)
        written = [
            version["status"]["phase"]
            for version in site.harness.tasks.all_versions()
            if int(version["metadata"]["resourceVersion"]) > recorded
        ]
        assert not written, f"{len(written)} statuses were written then: {', '.join(set(written))}"
        return f"{_LATE} Retrying stay"


def _is_retrying(site: Site, name: str) -> bool:
    return holds_within(PATIENCE, lambda: phase(site, name) == "Retrying")


@row(
    "D7",
    "a Task is cancelled and one is deleted while the broker is away; then the operator is killed; "
    "handlers that take less than 0.5 s",
    "neither handler runs when operator and broker are back",
    alone=True,
)
def _owed(site: Site) -> str:
    relay = _relayed(site)
    site.queue()
    hold(site, "first")
    for name in ("cancelled", "deleted"):
        site.harness.task(name, "note", payload={"name": name})
    _at_broker(site, 3)
    with relay.down():
        _connected(site, "False")
        site.at.api.patch(site.harness.path("tasks", "cancelled"), {"spec": {"cancel": True}})
        site.harness.delete_task("deleted")
        gone = holds_within(PATIENCE, lambda: phase(site, "cancelled") == "Cancelled")
        assert gone, "the Task is not Cancelled"
        time.sleep(3)
        before = [pod["metadata"]["name"] for pod in site.harness.operator_pods()]
        for pod in before:
            site.harness.kill(pod, namespace=OPERATOR_NAMESPACE)
        settle(site.at.kubectl)
        _other_leader(site, *before)
    _connected(site, "True")
    time.sleep(3)
    seen = release(site, "first")["phase"]
    assert seen == "Succeeded", f"the first Task ended as {seen}"
    site.works()
    log = site.harness.worker_log()
    ran = [name for name in ("cancelled", "deleted") if f"noted {name}" in log]
    assert not ran, f"the handler of the Task that was {' and '.join(ran)} ran"
    return "neither ran"


@row(
    "D8",
    f"{_COMMANDS:,} Tasks at the broker are deleted while it is away",
    "what is kept of the commands is bounded, and the log says that some are dropped",
    alone=True,
)
def _many_commands(site: Site) -> str:
    relay = _relayed(site)
    site.queue(scaling={"minReplicas": 0, "maxReplicas": 0}, dispatch={"maxPublished": 100_000})
    before = site.restarts()
    try:
        _publish_tasks(site)
        with relay.down():
            _connected(site, "False")
            _delete_tasks(site)
            said = holds_within(PATIENCE, lambda: bool(_dropped(site)))
            assert said, f"no word about any of {_COMMANDS} commands"
    finally:
        _delete_tasks(site)
    _connected(site, "True")
    restarts = site.restarts() - before
    assert not restarts, f"the operator's container was killed {restarts} times"
    return _dropped(site)


def _publish_tasks(site: Site) -> None:
    """Create Tasks, and wait until all are at the broker."""
    for first in range(0, _COMMANDS, _CREATED_AT_ONCE):
        _claim_slots(site)
        count = min(_CREATED_AT_ONCE, _COMMANDS - first)
        site.harness.batch(f"from-{first}", count, "note", payload={"name": "any"})
    for _ in range(20):
        _claim_slots(site)
        if holds_within(10, lambda: _messages(site) >= _COMMANDS):
            return
    raise AssertionError(f"{_messages(site)} messages are at the broker")


def _claim_slots(site: Site) -> None:
    """Have the operator publish all Tasks, as for a worker with that many slots."""
    body = heartbeat.encode(
        Heartbeat(
            namespace=site.namespace,
            queue="q",
            pod="large",
            node="",
            cpus=1,
            slots=_COMMANDS,
            handlers=("note",),
            running=(),
            state=WorkerState.READY,
        )
    )
    site.publish(HEARTBEATS_EXCHANGE, f"{site.key}.worker.heartbeat", b"\x00\x00", body)


def _delete_tasks(site: Site) -> None:
    """Delete all Tasks, in pieces: a namespace takes long to delete so many."""
    path = site.harness.path("tasks")
    while site.at.api.get(path, limit="1")["items"]:
        with suppress(requests.Timeout):  # the API server goes on with it
            site.at.api.request("DELETE", path, limit="250")


def _dropped(site: Site) -> str:
    """Return the operator's error about commands of the TaskQueue that it drops, "" for none."""
    found = site.at.kubectl.ok(
        "logs", "-n", OPERATOR_NAMESPACE, f"-l={OPERATOR_PODS}", "--tail=-1", "--since=300s"
    )
    lines = (json.loads(line) for line in found.splitlines() if line.startswith("{"))
    return next(
        (
            f"{line['event']}: {line.get('error', '')}"
            for line in lines
            if line.get("namespace") == site.namespace and "dropped" in line["event"]
        ),
        "",
    )


@row(
    "D9",
    "the operator's watch of Tasks says nothing more, and its connection stays; then a Task is "
    "created",
    "noticed after 75 s: the Task succeeds",
    alone=True,
)
def _silent_watch(site: Site) -> str:
    with _proxied(site) as proxy:
        site.queue()
        site.works("before")
        silent = proxy.disturb_watches(Silence(), path=_TASKS)
        assert silent, "nobody watches Tasks"
        begin = time.monotonic()
        status = site.end("echo", "meanwhile", seconds=_SILENCE_SECONDS)
        assert status["phase"] == "Succeeded", f"the Task ended as {status['phase']}"
        return f"it succeeds after {time.monotonic() - begin:.0f} s"


@row(
    "D13",
    "token keys k2 to k10 added to the Secret, and the operator restarted",
    "k10 signs",
    alone=True,
)
def _key_ids(site: Site) -> str:
    path = f"/api/v1/namespaces/{OPERATOR_NAMESPACE}/secrets/taskqueue-token-keys"
    added = {f"k{number}": secrets.token_bytes(32) for number in range(2, 11)}
    data = {name: base64.b64encode(key).decode() for name, key in added.items()}
    try:
        site.at.api.patch(path, {"data": data})
        _restart(site)
        site.queue()
        hold(site, "first")
        site.harness.task("second", "echo", payload={})
        _at_broker(site, 2)
        (message,) = site.harness.broker_api(
            "POST",
            f"queues/{site.vhost}/{work_queue(site.namespace, 'q')}/get",
            {"count": 1, "ackmode": "ack_requeue_true", "encoding": "auto"},
        )
        signer = message["properties"]["headers"]["tq-token"].partition(".")[0]
        assert signer == "k10", f"{signer} signs"
        release(site, "first")
        return "k10 signs"
    finally:
        site.at.api.patch(path, {"data": dict.fromkeys(data)})
        _restart(site)


def _restart(site: Site) -> None:
    site.at.kubectl.ok("rollout", "restart", *_DEPLOYMENT)
    settle(site.at.kubectl)
    _other_leader(site)
