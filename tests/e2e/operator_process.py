"""An operator of any sources as a process of this machine, beside that of the cluster.

It serves resources of an API group of the test's own, so the two know nothing of one another. Its
sources are copied, and the one line that names the group is changed. Its Lease and its token keys
are in a namespace of the test's.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import requests

from taskqueue.api.crds import DEFINITIONS
from tests.e2e.api import GROUP
from tests.integration.admission import served

if TYPE_CHECKING:
    from tests.conftest import Kubectl

#: How long a start may take, in seconds.
_READY_SECONDS = 60.0

_GROUP_LINE = 'GROUP = "{}"\n'

_PROGRAM = """
import asyncio
from taskqueue import logs
try:
    from taskqueue.controller.manager import OperatorSettings, serve
except ModuleNotFoundError:  # an older one
    from taskqueue.handlers.startup import OperatorSettings, serve
logs.configure()
raise SystemExit(asyncio.run(serve(OperatorSettings.from_environment())))
"""


@contextmanager
def own_group(kubectl: Kubectl, prefix: str) -> Iterator[str]:
    """Define today's resources in an API group that no other operator serves."""
    group = f"{prefix}-{uuid.uuid4().hex[:6]}.{GROUP}"
    crds = [served(definition, group) for definition in DEFINITIONS]
    names = [f"crd/{crd['metadata']['name']}" for crd in crds]
    for crd in crds:
        kubectl.ok("apply", "--server-side", "-f", "-", input=json.dumps(crd))
    kubectl.ok("wait", "--for=condition=Established", "--timeout=30s", *names)
    yield group
    kubectl.ok("delete", *names, "--timeout=60s")


class OperatorSources:
    """Sources that serve an API group of their own; `folder` is what PYTHONPATH must name."""

    def __init__(self, tree: Path, folder: Path, group: str) -> None:
        self.folder = folder
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(tree / "operator" / "taskqueue", folder / "taskqueue", ignore=ignored)
        self.change_line("api/common.py", _GROUP_LINE.format(GROUP), _GROUP_LINE.format(group))

    def change_line(self, module: str, line: str, changed: str) -> None:
        """Change a line that a module has once: the group, or a constant that tests wait for."""
        path = self.folder / "taskqueue" / module
        text = path.read_text()
        assert text.count(line) == 1, f"{path} has {line!r} {text.count(line)} times"
        path.write_text(text.replace(line, changed))


class OperatorProcess:
    """A running operator; it logs to a file.

    Args:
        sources: what it runs.
        kubeconfig: of the cluster.
        namespace: of its Lease and its token keys.
        log: gets its log, after what is there.
        settings: further environment variables.
    """

    def __init__(
        self,
        sources: OperatorSources,
        *,
        kubeconfig: Path,
        namespace: str,
        log: Path,
        settings: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self._log = log
        port = _free_port()
        environment = {
            **os.environ,
            "PYTHONPATH": str(sources.folder),
            "KUBECONFIG": str(kubeconfig),
            "POD_NAMESPACE": namespace,
            "TASKQUEUE_HTTP_PORT": str(port),
            **settings,
        }
        with log.open("ab") as file:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _PROGRAM], env=environment, stdout=file, stderr=file
            )
        try:
            self._wait_ready(f"http://127.0.0.1:{port}/readyz")
        except BaseException:
            self._process.kill()
            raise

    def stop(self) -> None:
        """End it as Kubernetes does, and wait until it has given its Lease back."""
        self._process.send_signal(signal.SIGTERM)
        code = self._process.wait(60)
        assert code == 0, f"the operator ended with {code}:\n{self.end_of_log()}"

    def end_of_log(self) -> str:
        """Return its last lines."""
        return "\n".join(self._log.read_text().splitlines()[-40:])

    def _wait_ready(self, url: str) -> None:
        deadline = time.monotonic() + _READY_SECONDS
        while not _is_ready(url):
            assert self._process.poll() is None, f"the operator has ended:\n{self.end_of_log()}"
            assert time.monotonic() < deadline, f"the operator is not ready:\n{self.end_of_log()}"
            time.sleep(0.1)


def _is_ready(url: str) -> bool:
    try:
        return requests.get(url, timeout=5).ok
    except requests.RequestException:
        return False


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
