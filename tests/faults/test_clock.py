"""The stepped clock: the wall clock moves, the monotonic clock and waiting do not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Kubectl
from tests.faults.clock import PodClock, ProcessClock, pod_addition

#: Prints, for each line on its standard input, the clocks of this process and of a child.
_PROGRAM = """
import datetime, subprocess, sys, time
for _ in sys.stdin:
    began = time.time(), time.monotonic()
    time.sleep(0.05)
    slept = time.time() - began[0], time.monotonic() - began[1]
    child = float(subprocess.check_output(["date", "+%s.%N"]))
    now = datetime.datetime.now().timestamp()
    print([*began, now, child, *slept], flush=True)
"""


class Clocks:
    """A program that reads its clocks on request."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM],
            env={**os.environ, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def offsets(self) -> dict[str, float]:
        """Return how far its clocks are ahead of ours, in seconds."""
        assert self._process.stdin
        assert self._process.stdout
        ours, ours_monotonic = time.time(), time.monotonic()
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        wall, monotonic, now, child, *slept = json.loads(self._process.stdout.readline())
        assert all(0.04 < one < 5 for one in slept)
        return {
            "wall": wall - ours,
            "datetime": now - ours,
            "child": child - ours,
            "monotonic": monotonic - ours_monotonic,
        }

    def close(self) -> None:
        self._process.communicate("", timeout=10)


@pytest.fixture
def clock(tmp_path: Path) -> ProcessClock:
    return ProcessClock(tmp_path)


@pytest.fixture
def clocks(clock: ProcessClock) -> Iterator[Clocks]:
    clocks = Clocks(clock.environment)
    yield clocks
    clocks.close()


@pytest.mark.parametrize("seconds", [400.5, -400.5])
def test_wall_clock_steps_while_the_process_runs_and_the_monotonic_clock_stays(
    clock: ProcessClock, clocks: Clocks, seconds: float
) -> None:
    true = dict.fromkeys(("wall", "datetime", "child", "monotonic"), pytest.approx(0, abs=5))
    stepped = dict.fromkeys(true, pytest.approx(seconds, abs=5)) | {
        "monotonic": pytest.approx(0, abs=5)
    }
    assert clocks.offsets() == true
    with clock.stepped(seconds):
        assert clocks.offsets() == stepped
    assert clocks.offsets() == true


@pytest.mark.cluster
def test_date_in_a_pod_steps_while_its_monotonic_clock_does_not(
    kubectl: Kubectl, namespace: str
) -> None:
    addition = pod_addition()
    spec = addition.added_to(
        {
            "terminationGracePeriodSeconds": 0,
            "containers": [
                {
                    "name": "worker",
                    "image": "taskqueue-operator:dev",
                    "command": ["sleep", "infinity"],
                    "securityContext": {"readOnlyRootFilesystem": True},
                }
            ],
        }
    )
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "clock"}, "spec": spec}
    for manifest in (addition.config_map, pod):
        kubectl.ok("create", "-n", namespace, "-f", "-", input=json.dumps(manifest))
    kubectl.ok("wait", "-n", namespace, "--for=condition=Ready", "pod/clock", "--timeout=60s")

    def offsets() -> list[float]:
        program = "import time; print(time.time(), time.monotonic())"
        ours = time.time(), time.monotonic()
        shown = kubectl.ok("exec", "-n", namespace, "clock", "--", "python3", "-c", program)
        wall, monotonic = map(float, shown.split())
        return [wall - ours[0], monotonic - ours[1]]

    true: Any = pytest.approx(0, abs=20)
    assert offsets() == [true, true]
    with PodClock(kubectl, namespace, "clock").stepped(400):
        assert offsets() == [pytest.approx(400, abs=20), true]
    assert offsets() == [true, true]
