"""Section D, beside other rows: what is changed while attempts run."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from taskqueue.contract.names import CONTROL_STREAM, INBOX_QUEUE, OUTCOMES_EXCHANGE
from tests.e2e.api import Body
from tests.faults.broker import BrokerFaults
from tests.faults.clock import PodClock, pod_addition
from tests.faults.rows import row
from tests.faults.rows.site import PATIENCE, Site, holds_within, outline

#: Longer than an operator takes to act upon an edit or a clock.
STEADY_SECONDS = 15.0
#: More than the time limit of the attempts that run meanwhile.
CLOCK_STEPS = (400.0, -400.0)
#: How long the kubelet takes to show a pod what was changed in a Secret, with some room.
_SECRET_SECONDS = 150.0
_ONCE: Body = {"maxAttempts": 1}
_FINALIZER = "example.dev/kept"


def hold(site: Site, name: str, **spec: Any) -> None:
    """Create a Task that runs until `release`, and wait until it runs."""
    site.harness.task(name, "until_open", payload={"gate": name}, **spec)
    assert holds_within(PATIENCE, lambda: phase(site, name) == "Running"), f"{name} does not run"


def release(site: Site, name: str) -> Body:
    """Let a held Task end, and return its final status."""
    open_gate(site, name)
    return site.harness.finished(name, seconds=PATIENCE)


def open_gate(site: Site, gate: str) -> None:
    """Let the Tasks end that wait at a gate."""
    for pod in site.harness.pods():
        where = ("-n", site.namespace, pod["metadata"]["name"])
        site.at.kubectl.ok("exec", *where, "--", "touch", f"/tmp/{gate}")  # noqa: S108


def phase(site: Site, name: str) -> str:
    """Return the phase of a Task, "" while it has none."""
    task = site.at.api.get(site.harness.path("tasks", name))
    return str(task.get("status", {}).get("phase", ""))


def undisturbed(site: Site, *names: str) -> None:
    """Fail if one of these Tasks does not run for the whole of `STEADY_SECONDS`."""

    def stopped() -> bool:
        return any(phase(site, name) != "Running" for name in names)

    if holds_within(STEADY_SECONDS, stopped):
        raise AssertionError(f"attempts that run became {_statuses(site, names)}")


def _statuses(site: Site, names: Sequence[str]) -> str:
    """Return the statuses of Tasks in short."""
    path = site.harness.path("tasks")
    tasks = [site.at.api.get(f"{path}/{name}")["status"] for name in names]
    return "; ".join(
        f"{name} is {outline(status)}" for name, status in zip(names, tasks, strict=True)
    )


def first_attempt(site: Site, name: str) -> str:
    """Let a held Task end, and check that it succeeds at its first attempt."""
    status = release(site, name)
    assert status["phase"] == "Succeeded", f"{name} ended as {outline(status)}"
    assert status["attempts"] == 1, f"{name} took {status['attempts']} attempts"
    return f"{name} succeeds at its first attempt"


def _pods(site: Site) -> set[str]:
    """Return the pods of the workers, with those on their way out."""
    found = site.at.api.get(site.harness.core("pods"), labelSelector="taskqueue.dev/queue=q")
    return {pod["metadata"]["name"] for pod in found["items"]}


def _same_pods(site: Site, before: set[str]) -> str:
    """Fail if a pod of the workers was replaced."""
    now = _pods(site)
    assert now == before, f"the pods {sorted(before)} became {sorted(now)}"
    return "the same pods"


@row(
    "D1",
    "taskDefaults.attemptTimeoutSeconds lowered to 1 while an attempt runs",
    "it goes on, no pod is replaced, and the next attempt has the new limit",
)
def _lowered(site: Site) -> str:
    site.queue(slots=2, taskDefaults={"attemptTimeoutSeconds": 300})
    before = _pods(site)
    hold(site, "long")
    site.harness.change_queue(taskDefaults={"attemptTimeoutSeconds": 1})
    undisturbed(site, "long")
    seen = [_same_pods(site, before), first_attempt(site, "long")]
    status = site.end("until_open", "short", payload={"gate": "never"}, retry=_ONCE)
    assert status["phase"] == "Failed", f"the next one ended as {outline(status)}"
    return "; ".join([*seen, "the next one fails"])


@row(
    "D3",
    "the wall clock of a worker stepped by 400 s, forward and back, while an attempt of 300 s runs",
    "it goes on",
)
def _worker_clock(site: Site) -> str:
    addition = pod_addition()
    manifest = addition.config_map
    name = manifest["metadata"]["name"]
    site.harness.create_core("configmaps", name, binaryData=manifest["binaryData"])
    template = site.template()
    template["spec"] = addition.added_to(template["spec"])
    site.queue(template=template, taskDefaults={"attemptTimeoutSeconds": 300})
    hold(site, "long")
    (pod,) = _pods(site)
    clock = PodClock(site.at.kubectl, site.namespace, pod)
    for seconds in CLOCK_STEPS:
        with clock.stepped(seconds):
            undisturbed(site, "long")
    return "; ".join([first_attempt(site, "long"), site.works()])


@row(
    "D4",
    "taskDefaults.maxDeliveries and attemptTimeoutSeconds edited",
    "no pod is replaced",
)
def _defaults(site: Site) -> str:
    site.queue(taskDefaults={"attemptTimeoutSeconds": 300})
    before = _pods(site)
    site.harness.change_queue(taskDefaults={"maxDeliveries": 7})
    time.sleep(STEADY_SECONDS)
    _same_pods(site, before)
    site.harness.change_queue(taskDefaults={"attemptTimeoutSeconds": 200})
    time.sleep(STEADY_SECONDS)
    return "; ".join([_same_pods(site, before), site.works()])


@row(
    "D5",
    "status.attempts raised by another writer, then cancel: a Task at the broker, one that is "
    "scheduled",
    "both end as Cancelled",
)
def _late_writer(site: Site) -> str:
    site.queue()
    hold(site, "first")
    tomorrow = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 86_400))
    site.harness.task("published", "note", payload={"name": "published"})
    site.harness.task("scheduled", "note", payload={"name": "scheduled"}, startAfter=tomorrow)
    site.harness.phase("scheduled", "Scheduled", seconds=PATIENCE)
    names = ("published", "scheduled")
    for name in names:
        path = site.harness.path("tasks", name)
        site.at.api.patch(f"{path}/status", {"status": {"attempts": 2}})
        site.at.api.patch(path, {"spec": {"cancel": True}})
    held = [name for name in names if not _is_cancelled(site, name)]
    assert not held, f"{PATIENCE:g} s after its cancel: {_statuses(site, held)}"
    release(site, "first")
    return "; ".join(["both Cancelled", site.works()])


def _is_cancelled(site: Site, name: str) -> bool:
    return holds_within(PATIENCE, lambda: phase(site, name) == "Cancelled")


@row(
    "D10",
    "exchange taskqueue.outcomes deleted, then its bindings, then taskqueue.control",
    "a Task succeeds after each, a cancel is obeyed, and nothing was restarted",
)
def _topology(site: Site) -> str:
    site.queue()
    site.works("before")
    faults = BrokerFaults(site.at.rabbitmq, site.at.kubectl, virtual_host=site.vhost)
    faults.delete_exchange(OUTCOMES_EXCHANGE)
    site.works("without-exchange")
    path = f"bindings/{site.vhost}/e/{OUTCOMES_EXCHANGE}/q/{INBOX_QUEUE}"
    for binding in site.harness.broker_api("GET", path):
        site.harness.broker_api("DELETE", f"{path}/{binding['properties_key']}")
    site.works("without-binding")
    faults.delete_queue(CONTROL_STREAM)
    site.works("without-control")
    hold(site, "long")
    site.at.api.patch(site.harness.path("tasks", "long"), {"spec": {"cancel": True}})
    site.harness.phase("long", "Cancelled", seconds=PATIENCE)
    site.works("after-cancel")
    return "a Task succeeds after each; a cancel is obeyed"


@row(
    "D11",
    "the broker's password changed at the broker and in the Secret; all connections closed",
    "workers and operator come back; a Task succeeds",
)
def _password(site: Site) -> str:
    with _user(site) as name:
        site.harness.secret("rabbit", vhost=site.vhost, username=name, password="first")
        site.queue()
        site.works("before")
        _set_password(site, name, "second")
        site.at.api.patch(
            site.harness.core("secrets", "rabbit"), {"stringData": {"password": "second"}}
        )
        faults = BrokerFaults(site.at.rabbitmq, site.at.kubectl, virtual_host=site.vhost)
        faults.close_connections(name)
        seen = site.end("echo", "after", payload={}, seconds=_SECRET_SECONDS)
        assert seen["phase"] == "Succeeded", f"a good Task ended as {outline(seen)}"
    return "a good Task succeeds"


@contextmanager
def _user(site: Site) -> Iterator[str]:
    """Create a user of the broker who may do everything in the virtual host."""
    name = f"user-{site.namespace}"
    _set_password(site, name, "first")
    everything = {"configure": ".*", "write": ".*", "read": ".*"}
    site.harness.broker_api("PUT", f"permissions/{site.vhost}/{name}", everything)
    try:
        yield name
    finally:
        site.harness.broker_api("DELETE", f"users/{name}")


def _set_password(site: Site, name: str, password: str) -> None:
    site.harness.broker_api("PUT", f"users/{name}", {"password": password, "tags": ""})


@row(
    "D12",
    "a Task with a finalizer is deleted while it runs, and one before its startAfter",
    "the first is stopped, the second never begins",
)
def _finalizer(site: Site) -> str:
    site.queue()
    names = ("running", "scheduled")
    hold(site, "running")
    start = time.time() + 8
    soon = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(start))
    site.harness.task("scheduled", "note", payload={"name": "scheduled"}, startAfter=soon)
    try:
        for name in names:
            path = site.harness.path("tasks", name)
            site.at.api.patch(path, {"metadata": {"finalizers": [_FINALIZER]}})
            site.harness.delete_task(name)
        time.sleep(max(start - time.time(), 0))
        seen = site.works()
        time.sleep(3)
        assert "noted scheduled" not in site.harness.worker_log(), "the scheduled one has run"
    finally:
        for name in names:
            path = site.harness.path("tasks", name)
            site.at.api.patch(path, {"metadata": {"finalizers": None}})
    return f"{seen}: the slot is free; the scheduled one never began"
