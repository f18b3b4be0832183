"""Kills the processes of a pod without warning, as a power failure does.

Deleting a pod, even with no grace period, sends its processes SIGTERM first. And the first process
of a container ignores SIGKILL from inside. So a privileged pod, which sees all processes of its
node, kills them.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from tests.e2e.api import Api, Body

if TYPE_CHECKING:
    from tests.conftest import Kubectl

_NAME = "hard-killer"

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

#: Kills every process whose HOSTNAME is the pod's name; prints how many it killed.
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


class HardKiller:
    """Kills the processes of pods in a cluster of one node, from a pod in ``namespace``."""

    def __init__(self, api: Api, kubectl: Kubectl, namespace: str) -> None:
        self._api = api
        self._kubectl = kubectl
        self._namespace = namespace
        self._lock = threading.Lock()
        self._ready = False

    def prepare(self) -> None:
        """Start the killing pod beforehand, so that `kill` is quick."""
        with self._lock:
            if not self._ready:
                self._start()

    def kill(self, pod: str) -> None:
        """Kill every process of a pod."""
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
