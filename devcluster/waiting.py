"""Polls for conditions without a notification."""

import time
from collections.abc import Callable

from devcluster.commands import DevclusterError

#: Seconds between two checks.
_POLL_S = 0.02


def wait_until(condition: Callable[[], bool], what: str, *, seconds: float = 30.0) -> None:
    """Return when the condition holds.

    Args:
        condition: called until it is true.
        what: completes "timed out waiting for", such as "the node to end".
        seconds: how long.

    Raises:
        DevclusterError: it did not hold in time.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise DevclusterError(f"Timed out after {seconds:.0f} s waiting for {what}.")
        time.sleep(_POLL_S)
