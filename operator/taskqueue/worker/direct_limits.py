"""The limits of direct messages, which have no policy of their own.

The operator's pods have them in files, one a variable, that the kubelet replaces when the TaskQueue
changes. Without a file the variable of its name counts, as read at the start.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from taskqueue.logs import EventLog
from taskqueue.worker.settings import DIRECT_MAX_DELIVERIES, DIRECT_TIMEOUT, WorkerSettings
from taskqueue.worker.variables import SettingsError, Variable

log = EventLog("taskqueue.worker")

#: The files are read again after this, in seconds.
_READ_SECONDS = 1.0


class DirectLimits:
    """Holds how long a direct message may run, and how often it may be delivered.

    A file that is missing or wrong changes nothing.

    Args:
        settings: of the worker.
        clock: seconds that never jump.
    """

    def __init__(
        self, settings: WorkerSettings, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._directory = settings.limits_directory
        self._clock = clock
        self._values = (settings.direct_timeout_seconds, settings.direct_max_deliveries)
        self._next_read = clock()
        self._logged_error = ""

    def read(self) -> tuple[float, int]:
        """Return the time limit in seconds, and the number of deliveries, as they are now."""
        if self._directory and self._clock() >= self._next_read:
            self._next_read = self._clock() + _READ_SECONDS
            try:
                self._values = self._read_files()
                self._logged_error = ""
            except (OSError, SettingsError, UnicodeError) as error:
                self._log_once(str(error))
        return self._values

    def _read_files(self) -> tuple[float, int]:
        seconds, deliveries = self._values
        return (
            self._read_file(DIRECT_TIMEOUT, seconds),
            self._read_file(DIRECT_MAX_DELIVERIES, deliveries),
        )

    def _read_file(self, variable: Variable, otherwise: Any) -> Any:
        try:
            text = Path(self._directory, variable.name).read_text("utf-8").strip()
        except FileNotFoundError:
            return otherwise
        return variable.read(text)

    def _log_once(self, error: str) -> None:
        if error != self._logged_error:
            self._logged_error = error
            log.warning(
                "limits.read_failed", error=error, hint="direct messages keep the limits they had"
            )
