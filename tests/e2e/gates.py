"""Tasks that run until the test lets them end, so that no test has to guess how long.

A gate is a ConfigMap that is not there yet; handler `wait` runs until its gate has been opened.
"""

from __future__ import annotations

from typing import Any

from tests.e2e.api import Body
from tests.e2e.harness import TEMPLATE, Harness, merged

#: Beside the usual handlers.
_MODULE = """
import http.client, os, ssl, time
from taskqueue import task

ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"

@task(thread=True)
def wait(payload, ctx):
    with open(ACCOUNT + "/token") as token, open(ACCOUNT + "/namespace") as namespace:
        headers = {"Authorization": "Bearer " + token.read()}
        path = f"/api/v1/namespaces/{namespace.read()}/configmaps/{payload['gate']}"
    trusted = ssl.create_default_context(cafile=ACCOUNT + "/ca.crt")
    while True:
        api = http.client.HTTPSConnection("kubernetes.default.svc", context=trusted, timeout=10)
        try:
            api.request("GET", path, headers=headers)
            if api.getresponse().status == 200:
                return {"pod": os.environ["POD_NAME"]}
        except OSError:
            pass
        finally:
            api.close()
        time.sleep(0.3)
"""

_RULE = {"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get"]}


class Gates:
    """The gates of a test namespace; make it before the TaskQueues whose workers need it."""

    def __init__(self, harness: Harness) -> None:
        self._harness = harness
        harness.create_core("configmaps", "gated", data={"gated.py": _MODULE})
        roles = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{harness.namespace}"
        name: Body = {"metadata": {"name": "gates"}}
        harness.api.request("POST", f"{roles}/roles", {**name, "rules": [_RULE]})
        harness.api.request(
            "POST",
            f"{roles}/rolebindings",
            {
                **name,
                "roleRef": {
                    "apiGroup": "rbac.authorization.k8s.io",
                    "kind": "Role",
                    "name": "gates",
                },
                "subjects": [
                    {"kind": "ServiceAccount", "name": "default", "namespace": harness.namespace}
                ],
            },
        )

    def behind(self, gate: str, count: int, **spec: Any) -> list[str]:
        """Create Tasks that run until the gate is open; return their names."""
        return self._harness.batch(gate, count, "wait", payload={"gate": gate}, **spec)

    def open(self, gate: str) -> None:
        """Let all end that wait at the gate."""
        self._harness.create_core("configmaps", gate)


def template(**container: Any) -> Body:
    """Return the usual pod template with `wait` among its handlers, and its container changed."""
    (worker,) = TEMPLATE["spec"]["containers"]
    changed = merged(worker, {"args": ["worker", "handlers", "gated"], **container})
    modules = [{"configMap": {"name": name}} for name in ("handlers", "gated")]
    volume = {"name": "handlers", "projected": {"sources": modules}}
    return merged(TEMPLATE, {"spec": {"containers": [changed], "volumes": [volume]}})
