"""The wait before the next attempt."""

from __future__ import annotations

import math

from taskqueue.limits import LONGEST_RETRY_SECONDS
from taskqueue.model.task import RetryBackoff


def backoff_seconds(backoff: RetryBackoff, *, failed_attempts: int, random: float) -> float:
    """Return the wait after ``failed_attempts`` failed attempts, in seconds.

    ``initial x factor^(failed_attempts - 1)``, varied by up to ±jitter and never above
    max_seconds.

    Args:
        backoff: the policy.
        failed_attempts: at least 1.
        random: a number in [0, 1) that places the wait within the jitter.
    """
    if backoff.initial_seconds <= 0:
        return 0.0
    # In logarithms: factor ** attempts overflows a float for a Task retried a thousand times.
    exponent = math.log(backoff.initial_seconds) + (failed_attempts - 1) * math.log(
        max(backoff.factor, 1.0)
    )
    longest = backoff.max_seconds
    base = longest if exponent >= math.log(max(longest, 1e-9)) else math.exp(exponent)
    return min(longest, base * (1.0 + backoff.jitter * (2.0 * random - 1.0)))


def next_wait_seconds(
    backoff: RetryBackoff, *, failed_attempts: int, asked_seconds: float | None, random: float
) -> float:
    """Return the wait before the next attempt in seconds: the handler's, or the backoff.

    A wait the handler asked for is used as it is, up to a day.
    """
    if asked_seconds is not None and asked_seconds >= 0 and math.isfinite(asked_seconds):
        return min(asked_seconds, LONGEST_RETRY_SECONDS)
    return backoff_seconds(backoff, failed_attempts=failed_attempts, random=random)
