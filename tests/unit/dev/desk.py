"""`taskqueue dev` as a process, and as a namespace that lifecycle cases run in."""

from __future__ import annotations

import copy
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from tests.e2e.api import GROUP, Api, Body
from tests.e2e.harness import Harness, Run, merged
from tests.e2e.observations import Observations

ROOT = Path(__file__).parents[3]

#: How long anything may take here: the machine may be busy.
SECONDS = 90.0


class Desk:
    """A running `taskqueue dev`."""

    def __init__(self, folder: Path, *words: str, **environment: str) -> None:
        self.output = folder / "dev.out"
        self.log = folder / "dev.log"
        path = os.pathsep.join([str(ROOT / "operator"), str(ROOT), str(folder)])
        with self.output.open("wb") as out, self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "taskqueue", "dev", "--port", "0", *words],
                cwd=folder,
                stdout=out,
                stderr=log,
                env={**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", **environment},
            )

    @property
    def text(self) -> str:
        """What it has said so far."""
        return self.output.read_text()

    @property
    def url(self) -> str:
        """Where its API is, once it says so; the last one of several sessions."""
        self.until(lambda: "  at  " in self.text)
        return str(re.findall(r"  at +(\S+)", self.text)[-1])

    def until(self, holds: Callable[[], object], *, what: str = "as expected") -> None:
        """Wait for something."""
        deadline = time.monotonic() + SECONDS
        while not holds():
            said = f"{self.text}\n{self.log.read_text()[-2000:]}"
            assert self.process.poll() is None, f"it has ended: {said}"
            assert time.monotonic() < deadline, f"not {what} within {SECONDS:g} s: {said}"
            time.sleep(0.05)

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run another command that asks it."""
        return subprocess.run(
            [sys.executable, "-m", "taskqueue", *words],
            env={
                **os.environ,
                "PYTHONPATH": str(ROOT / "operator"),
                "TASKQUEUE_DEV": self.url,
            },
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )

    def stop(self) -> int:
        """Interrupt it and return its exit code."""
        self.process.send_signal(signal.SIGINT)
        try:
            return self.process.wait(SECONDS)
        finally:
            self.process.kill()


class DeskApi(Api):
    """Its API, as tests ask an API server."""

    def __init__(self, url: str) -> None:
        self.server = url
        self._ca = self._certificate = None  # type: ignore[assignment]
        self._of_thread = threading.local()


class DeskHarness(Harness):
    """A `Desk` as lifecycle cases use a namespace. What has no counterpart here raises."""

    def __init__(self, desk: Desk) -> None:
        self.api = DeskApi(desk.url)
        self.group = GROUP
        self.namespace = "default"
        self._desk = desk
        self._written_queues = {}
        self.tasks = Observations(self.api, self.path("tasks"))
        self.queues = Observations(self.api, self.path("taskqueues"))

    def queue(self, name: str = "q", **changes: Any) -> None:
        """Create a TaskQueue; its workers are always there."""
        spec = merged(
            {
                "broker": {"connectionSecret": {"name": "rabbit"}},
                "taskDefaults": {
                    "retry": {"backoff": {"initialSeconds": 0.2, "factor": 1, "jitter": 0}}
                },
            },
            {key: value for key, value in copy.deepcopy(changes).items() if key != "scaling"},
        )
        if "workers" in spec:
            count = changes.get("scaling", {}).get("minReplicas", 1)
            spec["workers"] = {"concurrency": spec["workers"].get("concurrency", 4) * count}
        body = {"kind": "TaskQueue", "metadata": {"name": name}, "spec": spec}
        self.api.request("POST", self.path("taskqueues"), body)

    def queue_status(
        self, until: Callable[[Body], bool], name: str = "q", *, what: str, seconds: float = 60
    ) -> Body:
        """A TaskQueue is ready as soon as it is there, and a change of it counts at once."""
        time.sleep(0.05)
        return {}

    def log_lines(self, queue: str = "q") -> list[Body]:
        """Return the lines of handlers' logs."""
        lines = self._desk.log.read_text().splitlines()
        return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]

    def runs(self, queue: str = "q") -> list[Run]:
        """Return the runs of counted handlers, by when they began."""
        began: dict[str, Body] = {}
        ended: dict[str, str] = {}
        for line in self.log_lines():
            event, _, rest = line["event"].partition(" ")
            if event == "run.began":
                began[rest] = line
            elif event == "run.ended":
                ended[rest] = line["time"]
        return [
            Run(
                uid=line["uid"],
                attempt=line["attempt"],
                pod="dev",
                fence=rest.split()[1],
                began=datetime.fromisoformat(line["time"]),
                ended=datetime.fromisoformat(ended[rest]) if rest in ended else None,
            )
            for rest, line in began.items()
        ]


def needed_steps(steps: Sequence[Any]) -> set[str]:
    """Return the names of the functions that have made these steps, and those inside them."""
    names: set[str] = set()
    for step in steps:
        names.add(step.__qualname__.partition(".")[0])
        inner = [cell.cell_contents for cell in step.__closure__ or ()]
        names |= needed_steps([one for one in inner if hasattr(one, "__qualname__")])
    return names
