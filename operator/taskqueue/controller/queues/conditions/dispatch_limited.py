"""DispatchLimited: whether Tasks wait for nothing but a rate limit; only where there are any."""

from __future__ import annotations

from taskqueue.model.queue import Condition, QueueConfig

_TYPE = "DispatchLimited"


def dispatch_limited(config: QueueConfig, limited_by: str) -> tuple[Condition, ...]:
    """Return DispatchLimited of a TaskQueue with rate limits; ``limited_by``: the name of one."""
    limits = () if config.flow is None else config.flow.rate_limits
    if not limits:
        return ()
    found = next((one for one in limits if one.name == limited_by), None)
    if found is None:
        return (Condition(_TYPE, False, "None", "no rate limit holds all waiting Tasks back"),)
    each = " of each fairness key" if found.per_key else ""
    return (
        Condition(
            _TYPE,
            True,
            "RateLimited",
            f"Tasks wait because the rate limit {found.name} of spec.flow lets {found.attempts} "
            f"attempts{each} pass in {found.period_seconds} s: they follow at this rate",
        ),
    )
