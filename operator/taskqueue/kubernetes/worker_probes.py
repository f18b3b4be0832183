"""The probes of a worker's container, where its template has none: `spec.workers.probes` Managed.

* ``readinessProbe`` on ``/readyz``: does the worker consume? A rollout waits for it.
* ``livenessProbe`` on ``/healthz``: the kubelet restarts a worker that cannot help itself.
* ``startupProbe`` on ``/healthz``, with our liveness probe only: importing the handlers may take
  minutes, and nothing answers before.
"""

from __future__ import annotations

from typing import Any

#: Where a worker listens for probes unless its environment says otherwise.
_DEFAULT_PORT = 8081
_PORT_VARIABLE = "TASKQUEUE_HEALTH_PORT"
#: How long the import of handlers may take, in seconds.
_START_SECONDS = 600
_START_PERIOD_SECONDS = 2


class NoHealthPort(ValueError):
    """A worker's container has no port that can be probed; the text says what to change."""


def add_probes(container: dict[str, Any]) -> None:
    """Add the probes that a container of a pod template does not have.

    Args:
        container: its ``env`` is a list of objects, or absent.

    Raises:
        NoHealthPort: its environment turns the port off, or takes it from elsewhere.
    """
    port = _health_port(container)
    if not container.get("livenessProbe"):
        if not container.get("startupProbe"):
            container["startupProbe"] = _probe(
                "/healthz",
                port,
                period=_START_PERIOD_SECONDS,
                failures=_START_SECONDS // _START_PERIOD_SECONDS,
            )
        container["livenessProbe"] = _probe("/healthz", port, period=10, failures=3)
    if not container.get("readinessProbe"):
        container["readinessProbe"] = _probe("/readyz", port, period=2, failures=3)


def _probe(path: str, port: int, *, period: int, failures: int) -> dict[str, Any]:
    return {
        "httpGet": {"path": path, "port": port},
        "periodSeconds": period,
        # The worker shares its CPUs with handlers.
        "timeoutSeconds": 5,
        "failureThreshold": failures,
    }


def _health_port(container: dict[str, Any]) -> int:
    for entry in container.get("env") or ():
        if entry.get("name") == _PORT_VARIABLE:
            text = str(entry.get("value", ""))
            if text.isascii() and text.isdecimal() and 0 < int(text) < 65_536:
                return int(text)
            raise NoHealthPort(
                f"spec.workers.probes is Managed, and {_PORT_VARIABLE} of container "
                f"{container.get('name')!r} in spec.workers.template is {text!r}: give a port from "
                "1 to 65535, or omit it, or set probes to None"
            )
    return _DEFAULT_PORT
