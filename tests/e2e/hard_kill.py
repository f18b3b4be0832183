"""Ends what runs in a pod as a power failure does: SIGKILL, and nobody is told beforehand.

Deleting a pod, even without grace, has its processes told, and a moment to say good-bye. And a
process that is the first of its container is deaf to SIGKILL from inside. So a pod that sees all
processes of its node does it.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from tests.e2e.api import Api, Body

if TYPE_CHECKING:
    from tests.conftest import Kubectl

_NAME = "power"

_POD: Body = {
    "metadata": {"name": _NAME},
    "spec": {
        "hostPID": True,
        "terminationGracePeriodSeconds": 0,
        "containers": [
            {
                "name": "shell",
                "image": "taskqueue-operator:dev",
                "command": ["sleep", "infinity"],
                "securityContext": {
                    "privileged": True,
                    "runAsUser": 0,
                    "runAsNonRoot": False,
                },
            }
        ],
    },
}

#: Kills every process of a pod, which has the pod's name for its host name; prints how many.
_KILL = """
import os, signal, sys
name, killed = f"HOSTNAME={sys.argv[1]}".encode(), 0
for process in filter(str.isdigit, os.listdir("/proc")):
    try:
        with open(f"/proc/{process}/environ", "rb") as file:
            if name in file.read().split(bytes(1)):
                os.kill(int(process), signal.SIGKILL)
                killed += 1
    except OSError:
        pass  # it has ended meanwhile
print(killed)
"""


class Power:
    """Switches pods of a cluster of one node off; its own pod is in ``namespace``."""

    def __init__(self, api: Api, kubectl: Kubectl, namespace: str) -> None:
        self._api = api
        self._kubectl = kubectl
        self._namespace = namespace
        self._lock = threading.Lock()
        self._ready = False

    def prepare(self) -> None:
        """Have the pod there, so that `off` loses no time."""
        with self._lock:
            if not self._ready:
                self._start()

    def off(self, pod: str) -> None:
        """End everything in a pod at once."""
        self.prepare()
        command = ("exec", "-n", self._namespace, _NAME, "--", "python3", "-c", _KILL, pod)
        killed = int(self._kubectl.ok(*command))
        assert killed, f"nothing runs in {pod}"

    def _start(self) -> None:
        pods = f"/api/v1/namespaces/{self._namespace}/pods"
        self._api.request("POST", pods, _POD)
        deadline = time.monotonic() + 60
        while not self._ready:
            status = self._api.get(f"{pods}/{_NAME}").get("status", {})
            self._ready = status.get("phase") == "Running"
            assert time.monotonic() < deadline, status
            time.sleep(0.1)
