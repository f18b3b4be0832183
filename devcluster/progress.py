"""Runs steps in parallel and writes their progress to standard error.

Each step writes a line when it starts and when it ends. Every fifteen seconds a line names the
steps that still run, so a slow step does not look like a hang. The first failure is raised when all
steps have ended, so that no thread keeps working unattended.
"""

import sys
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TextIO

#: Seconds between two lines that name the running steps.
HEARTBEAT_S = 15.0


class Steps:
    """Runs named steps and writes their progress."""

    def __init__(
        self, *, out: TextIO | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._out = out or sys.stderr
        self._clock = clock
        self._started = clock()
        self._running: dict[str, float] = {}
        self._lock = threading.Lock()
        #: Whether steps run already: only the outermost call writes the regular lines.
        self._nested = False

    def say(self, text: str) -> None:
        """Write one line with the time since the first."""
        elapsed = int(self._clock() - self._started)
        # One write for each line, because several threads write.
        self._out.write(f"[{elapsed // 60:3d}:{elapsed % 60:02d}] {text}\n")
        self._out.flush()

    def run(self, name: str, action: Callable[[], object]) -> None:
        """Run one step to its end."""
        self.run_all({name: action})

    def run_all(self, steps: Mapping[str, Callable[[], object]]) -> None:
        """Run steps in parallel and wait for all of them.

        Raises:
            Exception: whatever the first step that failed raised.
        """
        if not steps:
            return
        with self._lock:
            outermost, self._nested = not self._nested, True
        try:
            self._run_all(steps, reports=outermost)
        finally:
            if outermost:
                self._nested = False

    def _run_all(self, steps: Mapping[str, Callable[[], object]], *, reports: bool) -> None:
        with ThreadPoolExecutor(max_workers=len(steps)) as pool:
            futures = [pool.submit(self._step, name, action) for name, action in steps.items()]
            while wait(futures, timeout=HEARTBEAT_S if reports else None).not_done:
                self.say(f"still running: {self._describe_running()}")
        for future in futures:
            future.result()

    def _step(self, name: str, action: Callable[[], object]) -> None:
        begun = self._clock()
        with self._lock:
            self._running[name] = begun
        self.say(f"{name} ...")
        try:
            action()
        except BaseException:
            self.say(f"{name}: FAILED after {self._clock() - begun:.1f} s")
            raise
        else:
            self.say(f"{name}: done in {self._clock() - begun:.1f} s")
        finally:
            with self._lock:
                del self._running[name]

    def _describe_running(self) -> str:
        now = self._clock()
        with self._lock:
            return ", ".join(f"{n} ({now - since:.0f} s)" for n, since in self._running.items())
