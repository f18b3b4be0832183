"""How long to wait before connecting again: exponential with jitter, without any I/O.

The jitter keeps the clients of a restarted broker from coming back all at the same moment.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

#: Bound of the first delay, in seconds.
FIRST_SECONDS = 0.2

#: No delay is longer than this, in seconds.
LIMIT_SECONDS = 10.0

#: Each bound is this much of the one before.
FACTOR = 2.0


def delays(random: Callable[[], float]) -> Iterator[float]:
    """Yield the delays of one outage, without end; take a new iterator after each success.

    Args:
        random: gives numbers in [0, 1), as `random.random` does.

    Yields:
        Seconds in [bound / 2, bound), the bound growing from 0.2 s by 2 up to 10 s.
    """
    bound = FIRST_SECONDS
    while True:
        yield bound * (0.5 + 0.5 * random())
        bound = min(bound * FACTOR, LIMIT_SECONDS)
