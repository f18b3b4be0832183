"""Handlers whose runs are on record outside of their pods, whatever becomes of these.

A run of `recorded` writes into a ConfigMap when it begins and when it ends, with its pod and the
node's clock, as its own service account. So a killed, released or repeated run is known
from the one who ran it, not by the system that is measured.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from tests.bench.cluster import NAMESPACE, Cluster
from tests.bench.removals import Run

#: The handlers' module, and the ConfigMap that holds it.
MODULE = "scaling_handlers"
CONFIG_MAP = "scaling-handlers"

_NAMED = f"/api/v1/namespaces/{NAMESPACE}/configmaps"
_RUNS = "runs"
_ROLES = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{NAMESPACE}"

_HANDLERS = f"""\
import asyncio
import json
import os
import ssl
import time
import urllib.request
import uuid

from taskqueue import task

ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
RUNS = "https://kubernetes.default.svc{_NAMED}/{_RUNS}"
TRIES = 5


@task
def noop(payload):
    return None


@task
async def nap(payload):
    await asyncio.sleep(payload["seconds"])


@task(thread=True)
def recorded(payload, ctx):
    run = uuid.uuid4().hex
    tell(run + ".began", ctx)
    time.sleep(payload["seconds"])
    tell(run + ".ended", ctx)


def tell(key, ctx):
    with open(ACCOUNT + "/token") as token:
        headers = {{
            "Authorization": "Bearer " + token.read(),
            "Content-Type": "application/merge-patch+json",
        }}
    said = {{"task": ctx.task, "pod": os.environ["POD_NAME"], "at": time.time()}}
    body = json.dumps({{"data": {{key: json.dumps(said)}}}}).encode()
    trusted = ssl.create_default_context(cafile=ACCOUNT + "/ca.crt")
    for left in reversed(range(TRIES)):
        request = urllib.request.Request(RUNS, body, headers, method="PATCH")
        try:
            urllib.request.urlopen(request, timeout=10, context=trusted).close()
            return
        except OSError:
            if not left:
                raise
            time.sleep(0.1)
"""


async def prepare(target: Cluster) -> None:
    """Put the handlers and what they need in place, in the benchmark's namespace."""

    async def create(path: str, name: str, **fields: object) -> None:
        await target.client.request("POST", path, body={"metadata": {"name": name}, **fields})

    await create(_NAMED, CONFIG_MAP, data={f"{MODULE}.py": _HANDLERS})
    await create(_NAMED, _RUNS, data={})
    rule = {
        "apiGroups": [""],
        "resources": ["configmaps"],
        "resourceNames": [_RUNS],
        "verbs": ["patch"],
    }
    await create(f"{_ROLES}/roles", _RUNS, rules=[rule])
    await create(
        f"{_ROLES}/rolebindings",
        _RUNS,
        roleRef={"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": _RUNS},
        subjects=[{"kind": "ServiceAccount", "name": "default", "namespace": NAMESPACE}],
    )


async def read_runs(target: Cluster) -> tuple[Run, ...]:
    """Return every run so far, by when it began."""
    found = await target.client.get(f"{_NAMED}/{_RUNS}")
    return parse_runs(found.get("data") or {})


def parse_runs(data: Mapping[str, str]) -> tuple[Run, ...]:
    """Read what runs have written; one that never wrote its end has ended None."""
    runs = []
    for key, text in data.items():
        identity, _, what = key.partition(".")
        if what != "began":
            continue
        began = json.loads(text)
        ended = data.get(f"{identity}.ended")
        runs.append(
            Run(
                task=began["task"].partition("/")[2],
                pod=began["pod"],
                began=began["at"],
                ended=None if ended is None else json.loads(ended)["at"],
            )
        )
    return tuple(sorted(runs, key=lambda run: run.began))
