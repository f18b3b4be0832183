"""The operator that is tried, from outside: its pods, however many replicas it has."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import requests

from tests.e2e.api import Body, Refused
from tests.e2e.harness import OPERATOR_NAMESPACE, OPERATOR_PODS
from tests.faults.rows.site import Site, holds_within

_DEPLOYMENT = f"/apis/apps/v1/namespaces/{OPERATOR_NAMESPACE}/deployments/taskqueue-operator"
_PODS = f"/api/v1/namespaces/{OPERATOR_NAMESPACE}/pods"
#: How long an operator may take until it is ready.
START_SECONDS = 90.0
_RESIDENT = re.compile(r"^process_resident_memory_bytes (\S+)", re.MULTILINE)
_PROBE_PAUSE_SECONDS = 0.5
#: Where the status of a container may have its end.
_STATES = ("lastState", "state")


def restart(site: Site, meanwhile: Callable[[], None] = lambda: None) -> float:
    """Stop the operator and start it again; return how many seconds later it is ready.

    Args:
        site: of the row.
        meanwhile: called while no pod of it is there.
    """
    replicas = site.at.api.get(_DEPLOYMENT)["spec"]["replicas"]
    try:
        site.at.api.patch(_DEPLOYMENT, {"spec": {"replicas": 0}})
        assert holds_within(60, lambda: not _pods(site)), "the operator does not stop"
        meanwhile()
    finally:
        site.at.api.patch(_DEPLOYMENT, {"spec": {"replicas": replicas}})
    begin = time.monotonic()
    came = holds_within(
        START_SECONDS, lambda: sum(map(_is_ready, site.harness.operator_pods())) >= replicas
    )
    died = deaths(site) or "no restart"
    assert came, f"not ready {START_SECONDS:g} s after it was started again; {died}"
    return time.monotonic() - begin


def deaths(site: Site) -> str:
    """Return how often the operator's containers have died, and of what; "": never."""
    pods = site.harness.operator_pods()
    states = [each for pod in pods for each in pod["status"].get("containerStatuses", ())]
    count = sum(each["restartCount"] for each in states)
    ends = [each.get(when, {}).get("terminated") for each in states for when in _STATES]
    reasons = sorted({end.get("reason", "") for end in ends if end})
    return f"its containers died {count} times ({', '.join(reasons)})" if count or reasons else ""


def assert_alive(site: Site, seconds: float = 0.0) -> str:
    """Check that no container of the operator has died, nor does so within some seconds."""
    if holds_within(seconds, lambda: bool(deaths(site))):
        raise AssertionError(deaths(site))
    return "no restart"


def metrics(site: Site) -> list[str]:
    """Return the metrics of each pod of the operator that answers."""
    texts = []
    for pod in site.harness.operator_pods():
        with suppress(Refused, requests.RequestException):
            texts.append(_ask(site, pod["metadata"]["name"], "metrics"))
    return texts


def megabytes(site: Site) -> str:
    """Return how much memory the operator takes now: the pod that takes most."""
    sizes = [float(found[1]) for text in metrics(site) if (found := _RESIDENT.search(text))]
    return f"{max(sizes) / 1e6:.0f} MB" if sizes else "memory unknown"


@contextmanager
def memory_limit(site: Site, quantity: str) -> Iterator[None]:
    """Give the operator's containers another memory limit; on exit, the one they had."""
    (container,) = site.at.api.get(_DEPLOYMENT)["spec"]["template"]["spec"]["containers"]
    usual = container["resources"]["limits"]["memory"]
    try:
        _set_memory(site, quantity)
        yield
    finally:
        _set_memory(site, usual)


def _set_memory(site: Site, quantity: str) -> None:
    target = ("-n", OPERATOR_NAMESPACE, "deployment/taskqueue-operator")
    site.at.kubectl.ok("set", "resources", *target, f"--limits=memory={quantity}")
    site.at.kubectl.ok("rollout", "status", *target, "--timeout=110s")


class Probing:
    """Asks each pod of the operator for /healthz again and again; use `probing`."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        #: The longest time from one answer of a pod to its next, in seconds.
        self.longest = 0.0
        self._answered: dict[str, float] = {}
        self._thread.start()

    def close(self) -> None:
        """Stop asking."""
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(_PROBE_PAUSE_SECONDS):
            with suppress(Refused, requests.RequestException):
                self._ask_all()

    def _ask_all(self) -> None:
        pods = {pod["metadata"]["name"] for pod in self._site.harness.operator_pods()}
        for gone in self._answered.keys() - pods:
            del self._answered[gone]
        for pod in sorted(pods):
            with suppress(Refused, requests.RequestException):
                _ask(self._site, pod, "healthz")
                self._answered.setdefault(pod, time.monotonic())
                self._note(pod)
                self._answered[pod] = time.monotonic()
                continue
            self._note(pod)

    def _note(self, pod: str) -> None:
        if pod in self._answered:
            self.longest = max(self.longest, time.monotonic() - self._answered[pod])


@contextmanager
def probing(site: Site) -> Iterator[Probing]:
    """Probe the operator's pods until the end of the block."""
    made = Probing(site)
    try:
        yield made
    finally:
        made.close()


def _ask(site: Site, pod: str, path: str) -> str:
    return site.at.api.text(f"{_PODS}/{pod}:8080/proxy/{path}")


def _pods(site: Site) -> list[Body]:
    """Return all pods of the operator, those on their way out included."""
    found: list[Body] = site.at.api.get(_PODS, labelSelector=OPERATOR_PODS)["items"]
    return found


def _is_ready(pod: Body) -> bool:
    conditions = pod["status"].get("conditions", ())
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)
