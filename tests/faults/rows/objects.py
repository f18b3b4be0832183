"""Section B: one object, or one tenant's many, stops neither the operator nor others' statuses.

Most rows put the objects into a `crowd`, a namespace beside the row's own, and look whether a Task
in the row's own still ends.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tests.e2e.api import GROUP, Body, Refused
from tests.faults.rows import row
from tests.faults.rows.crowd import Crowd, crowd, task_body, with_payload
from tests.faults.rows.operator_pods import (
    assert_alive,
    deaths,
    megabytes,
    memory_limit,
    metrics,
    probing,
    restart,
)
from tests.faults.rows.site import PATIENCE, Site, holds_within, outline

_FINISHED = ("Succeeded", "Failed", "Cancelled")
_FAR_FUTURE = "2099-01-01T00:00:00Z"
#: How long the operator is watched for a death that comes after it was ready.
_STEADY_SECONDS = 20.0
#: Levels of JSON: more than orjson writes, and more than it reads.
_DEEP, _DEEPER = 300, 1100

# Objects near etcd's limit.

_FAT = 17
#: By so much each of them is smaller than the one before it: of some a short status fits.
_STEP = 60
_FULL, _LIMIT = 6, "192Mi"
#: A busy API server takes seconds for each write of these.
_SAID_SECONDS = 150.0


@row(
    "B1",
    "17 Tasks of 1.57 MB, of which no status fits into etcd, or only a short one",
    "statuses of others are written; each of the 17 ends, or an Event says why it does not",
    alone=True,
)
def _fat(site: Site) -> str:
    site.queue()
    with crowd(site) as others:
        size = others.largest_text("fat-00")
        sizes = {f"fat-{number:02}": size - _STEP * number for number in range(_FAT)}
        others.create(sizes, lambda name: task_body(name, payload={"text": "x" * sizes[name]}))
        seen = site.works()
        silent: set[str] = set()

        def all_said() -> bool:
            nonlocal silent
            silent = set(sizes) - _ended(others) - others.events().keys()
            return not silent

        assert holds_within(_SAID_SECONDS, all_said), (
            f"{len(silent)} of {_FAT} neither end nor have an Event"
        )
        ended = len(_ended(others))
        return f"{seen}; {ended} ended, an Event for {_FAT - ended}"


def _ended(others: Crowd) -> set[str]:
    return {name for name, task in others.columns().items() if task["Phase"] in _FINISHED}


@row(
    "B2",
    f"{_FULL} finished Tasks of 1.4 MB of empty lists with a memory limit of {_LIMIT} (in place "
    "of 16 with 512Mi), then a restart",
    "it gets ready, a Task succeeds, no container dies",
    alone=True,
)
def _finished(site: Site) -> str:
    site.queue()
    payload = b'{"lists": [%b[]]}' % (b"[]," * 466_000)
    with memory_limit(site, _LIMIT), crowd(site) as others:
        others.create(
            [f"full-{number}" for number in range(_FULL)],
            lambda name: with_payload(name, payload),
            clients=1,  # the API server takes seconds for each
        )
        came = holds_within(_SAID_SECONDS, lambda: len(_ended(others)) == _FULL)
        assert came, f"{len(_ended(others))} of {_FULL} have ended; {deaths(site)}"
        return _restarts(site)


def _restarts(
    site: Site, steady_seconds: float = 0.0, meanwhile: Callable[[], None] = lambda: None
) -> str:
    """Restart the operator, and look whether it does its work and stays alive."""
    seconds = restart(site, meanwhile)
    works = site.works("after-restart")
    alive = assert_alive(site, steady_seconds)
    return f"ready after {seconds:.0f} s; {works}; {alive}; {megabytes(site)}"


# Memory.

#: 150 MB of payloads: as much for `_LIMIT` as 30,000 Tasks of 10 kB are for 512Mi.
_WAITING, _BYTES = 2500, 60_000


@row(
    "B3",
    f"{_WAITING:,} waiting Tasks of {_BYTES // 1000} kB with a memory limit of {_LIMIT} (in place "
    "of 30,000 of 10 kB with 512Mi), then a restart",
    "it gets ready, a Task succeeds, no container dies",
    alone=True,
)
def _waiting(site: Site) -> str:
    site.queue()
    with memory_limit(site, _LIMIT), crowd(site) as others:
        _create_scheduled(others, _WAITING, payload={"text": "x" * _BYTES})
        return _restarts(site)


#: 230 MB, if merged payloads are kept.
_MERGED, _MERGED_LIMIT = 1200, "256Mi"


@row(
    "B4",
    f"{_MERGED:,} Tasks with startAfter 2099 that name one ConfigMap of 190 KiB, with a memory "
    f"limit of {_MERGED_LIMIT} (in place of 3,000 with 512Mi), then a restart",
    "a Task succeeds, no container dies",
    alone=True,
)
def _one_config_map(site: Site) -> str:
    site.queue()
    with memory_limit(site, _MERGED_LIMIT), crowd(site) as others:
        others.config_map("large", part=json.dumps({"text": "x" * 190 * 1024}))
        _create_scheduled(others, _MERGED, payloadFrom=[_source("large")])
        return _restarts(site, _STEADY_SECONDS)


def _create_scheduled(others: Crowd, count: int, **spec: Any) -> None:
    """Create Tasks that wait until 2099."""
    names = (f"task-{number:05}" for number in range(count))
    others.create(names, lambda name: task_body(name, startAfter=_FAR_FUTURE, **spec))


def _source(name: str) -> Body:
    return {"configMapKeyRef": {"name": name, "key": "part"}}


# Depth.

_LISTS = re.compile(
    rf'^apiserver_request_total{{(?=[^}}]*group="{GROUP}")(?=[^}}]*resource="tasks")'
    r'(?=[^}]*verb="LIST")[^}]*} (\S+)',
    re.MULTILINE,
)
_OTHERS = 1500
#: Pages of these for two replicas, twice, and what the search for the deep one takes.
_MOST_LISTS = 150


@row(
    "B5",
    f"a Task nested 1,100 deep and {_OTHERS:,} others, at a start of the operator",
    f"fewer than {_MOST_LISTS} LISTs ({_OTHERS // 100} pages for a replica); the nested one "
    "ends as Failed, Invalid",
    alone=True,
)
def _deeper(site: Site) -> str:
    site.queue()
    with crowd(site) as others:
        deep = b'{"a":' * _DEEPER + b"1" + b"}" * _DEEPER
        _create_scheduled(others, _OTHERS)
        before = _lists(site)
        seen = _restarts(
            site,
            meanwhile=lambda: others.create(
                ["nested"], lambda name: with_payload(name, deep, startAfter=_FAR_FUTURE)
            ),
        )
        lists = _lists(site) - before
        assert lists < _MOST_LISTS, f"{lists} LISTs of Tasks in a restart; {seen}"
        nested: Body = {}

        def ended() -> bool:
            nested.update(others.columns()["nested"])
            return nested["Phase"] in _FINISHED

        assert holds_within(PATIENCE, ended), f"the nested one is {nested['Phase']}; {lists} LISTs"
        end = f"{nested['Phase']} {nested['Reason']}"
        assert end == "Failed Invalid", f"the nested one is {end}"
        return f"{lists} LISTs; {seen}; the nested one is {end}"


def _lists(site: Site) -> int:
    """Return how many LISTs of Tasks the API server has answered."""
    return sum(int(float(found)) for found in _LISTS.findall(site.at.api.text("/metrics")))


@row(
    "B6",
    f"a payload and a ConfigMap nested {_DEEP} deep",
    "Failed Invalid, or Blocked by the ConfigMap, with a message; cancel is obeyed, and so is a "
    "ConfigMap that is corrected",
)
def _nested(site: Site) -> str:
    site.queue()
    seen = outline(site.end("echo", "deep", payload=_nest(_DEEP)))
    assert seen.startswith("Failed Invalid"), f"the deep payload ended as {seen}"
    path = site.harness.core("configmaps")
    data = {"part": json.dumps(_nest(_DEEP))}
    site.at.api.request("POST", path, {"metadata": {"name": "deep"}, "data": data})
    for name in ("cancelled", "corrected"):
        site.harness.task(name, payloadFrom=[_source("deep")])
    said = site.harness.phase("corrected", "Blocked", "Failed", seconds=PATIENCE)
    assert "ConfigMap" in said["message"], f"of the deep ConfigMap it says {said['message']!r}"
    site.at.api.patch(site.harness.path("tasks", "cancelled"), {"spec": {"cancel": True}})
    site.harness.phase("cancelled", "Cancelled", said["phase"], seconds=PATIENCE)
    site.at.api.patch(f"{path}/deep", {"data": {"part": '{"n": 1}'}})
    if said["phase"] == "Failed":
        site.harness.task("again", payloadFrom=[_source("deep")])
    name = "again" if said["phase"] == "Failed" else "corrected"
    end = site.harness.finished(name, seconds=60)
    assert end["phase"] == "Succeeded", f"with the corrected ConfigMap: {outline(end)}"
    return f"{seen}; by the ConfigMap {said['phase']}; Cancelled; corrected: Succeeded"


def _nest(depth: int) -> Body:
    value: Body = {}
    for _ in range(depth):
        value = {"a": value}
    return value


# Names that are not there, and dependencies.

_SEEKERS, _ORPHANS = 1000, 500


@row(
    "B7",
    f"{_SEEKERS:,} Tasks with 64 missing dependencies each and {_ORPHANS:,} with a missing "
    "ConfigMap each; then another tenant's Task with a finished dependency and a ConfigMap",
    "that one succeeds in time",
    alone=True,
)
def _missing(site: Site) -> str:
    site.queue()
    site.works("first")
    path, data = site.harness.core("configmaps"), {"part": '{"n": 2}'}
    site.at.api.request("POST", path, {"metadata": {"name": "there"}, "data": data})
    with crowd(site) as others:
        others.create(
            (f"orphan-{number}" for number in range(_ORPHANS)),
            lambda name: task_body(name, payloadFrom=[_source(f"of-{name}")]),
        )
        others.create(
            (f"seeker-{number}" for number in range(_SEEKERS)),
            lambda name: task_body(name, dependsOn=[f"{name}-{need}" for need in range(64)]),
        )
        begin = time.monotonic()
        end = site.end("echo", "second", dependsOn=["first"], payloadFrom=[_source("there")])
        assert end["phase"] == "Succeeded", f"it ended as {outline(end)}"
        seconds = time.monotonic() - begin
        return f"it succeeds after {seconds:.1f} s; {megabytes(site)}"


_DEPENDENT = 2500
#: The kubelet's probes have so much time for an answer.
_PROBE_SECONDS = 5.0


@row(
    "B8",
    f"{_DEPENDENT:,} Tasks with 64 dependencies each, at a start of the operator",
    f"a Task succeeds; the operator is never silent for more than {_PROBE_SECONDS:g} s",
    alone=True,
)
def _dependencies(site: Site) -> str:
    site.queue()
    with crowd(site) as others:
        # Their dependencies are there before them, and a start shows them in another order.
        numbers = {_shuffled(number): number for number in reversed(range(_DEPENDENT))}
        others.create(numbers, lambda name: task_body(name, dependsOn=_needs(numbers[name])))
        with probing(site) as probes:
            seen = _restarts(site, 10.0)
        silent = f"silent for {probes.longest:.1f} s at most"
        assert probes.longest <= _PROBE_SECONDS, f"{seen}; {silent}"
        return f"{seen}; {silent}"


def _needs(number: int) -> list[str]:
    """Return the next 64."""
    return [_shuffled(need) for need in range(number + 1, min(number + 65, _DEPENDENT))]


def _shuffled(number: int) -> str:
    return f"task-{number * 7919 % _DEPENDENT:05}"


# What is kept of names.

_INVENTED, _MOST_SERIES = 300, 20


@row(
    "B9",
    f"{_INVENTED} Tasks that name TaskQueues which do not exist, cancelled and deleted",
    f"at most {_MOST_SERIES} metric series of that namespace stay",
)
def _invented(site: Site) -> str:
    site.queue()
    site.works()
    with crowd(site) as others:
        others.create(
            (f"task-{number}" for number in range(_INVENTED)),
            lambda name: task_body(name, queue=f"of-{name}", cancel=True),
        )
        came = holds_within(PATIENCE, lambda: len(_ended(others)) == _INVENTED)
        assert came, f"{len(_ended(others))} of {_INVENTED} are cancelled"
        others.delete_tasks()
        label, stay = f'namespace="{others.namespace}"', 0

        def forgotten() -> bool:
            nonlocal stay
            stay = sum(text.count(label) for text in metrics(site))
            return stay <= _MOST_SERIES

        assert holds_within(15, forgotten), f"{stay} series stay after {_INVENTED} Tasks"
        return f"{stay} series stay"


# A namespace whose statuses are refused.

_REFUSED = 40


@row(
    "B10",
    f"a policy that answers 403 to each status of one namespace, with {_REFUSED} Tasks cancelled "
    "there; then it is withdrawn",
    "Tasks of other namespaces succeed; the statuses are written afterwards",
    alone=True,
)
def _refused(site: Site) -> str:
    site.queue()
    with crowd(site) as others:
        with _statuses_refused(site, others):
            names = (f"task-{number}" for number in range(_REFUSED))
            others.create(names, lambda name: task_body(name, cancel=True))
            time.sleep(2)  # each of them has failed once
            seen = site.works()
            ended = len(_ended(others))
            assert not ended, f"{ended} statuses were not refused: the row is wrong"
        written = holds_within(100, lambda: len(_ended(others)) == _REFUSED)
        assert written, f"{seen}; {len(_ended(others))} of {_REFUSED} are written afterwards"
        return f"{seen}; all {_REFUSED} are written afterwards"


_POLICY_API = "admissionregistration.k8s.io/v1"
_POLICY = "validatingadmissionpolicies", "ValidatingAdmissionPolicy"
_BINDING = "validatingadmissionpolicybindings", "ValidatingAdmissionPolicyBinding"


@contextmanager
def _statuses_refused(site: Site, others: Crowd) -> Iterator[None]:
    """Have the API server answer 403 to each status of a Task in the crowd's namespace."""
    statuses = {
        "apiGroups": [GROUP],
        "apiVersions": ["*"],
        "operations": ["UPDATE"],
        "resources": ["tasks/status"],
    }
    selector = {"matchLabels": {"kubernetes.io/metadata.name": others.namespace}}
    policy = {
        "matchConstraints": {"namespaceSelector": selector, "resourceRules": [statuses]},
        "validations": [{"expression": "false", "reason": "Forbidden", "message": "by a test"}],
    }
    binding = {"policyName": others.namespace, "validationActions": ["Deny"]}
    others.create(["tried"], lambda name: task_body(name, startAfter=_FAR_FUTURE))
    made = []
    try:
        for (resource, kind), spec in ((_POLICY, policy), (_BINDING, binding)):
            metadata = {"name": others.namespace}
            body = {"apiVersion": _POLICY_API, "kind": kind, "metadata": metadata, "spec": spec}
            site.at.api.request("POST", f"/apis/{_POLICY_API}/{resource}", body)
            made.append(f"/apis/{_POLICY_API}/{resource}/{others.namespace}")
        assert holds_within(PATIENCE, lambda: _is_refused(site, others)), "the policy does nothing"
        yield
    finally:
        for path in reversed(made):
            site.at.api.request("DELETE", path)


def _is_refused(site: Site, others: Crowd) -> bool:
    """Try to write a status, without a trace."""
    try:
        site.at.api.request(
            "PATCH",
            f"{others.tasks}/tried/status",
            {"status": {"message": "tried"}},
            content_type="application/merge-patch+json",
            dryRun="All",
        )
    except Refused as refused:
        return refused.status == 403
    return False
