"""Waiting for something that has no way to tell us."""

import time
from collections.abc import Callable

from devcluster.commands import DevclusterError

#: Seconds between two looks.
_LOOK_S = 0.02


def wait_until(condition: Callable[[], bool], what: str, *, seconds: float = 30.0) -> None:
    """Return when the condition holds.

    Args:
        condition: asked again and again.
        what: what is waited for, for the error: "the node to end".
        seconds: how long.

    Raises:
        DevclusterError: it did not hold in time.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise DevclusterError(f"Waited {seconds:.0f} s for {what}, in vain.")
        time.sleep(_LOOK_S)
