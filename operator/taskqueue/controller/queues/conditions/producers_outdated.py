"""ProducersOutdated: whether direct messages come by the exchange that is the operator's."""

from __future__ import annotations

from taskqueue.contract.names import DIRECT_EXCHANGE, WORK_EXCHANGE, routing_key
from taskqueue.model.queue import Condition, QueueConfig

_TYPE = "ProducersOutdated"
#: Without another such message for this long the condition is False again, in seconds.
CLEARED_SECONDS = 600.0


def producers_outdated(config: QueueConfig, seconds: float | None) -> Condition:
    """Return ProducersOutdated; the last such message ended ``seconds`` ago, None: none did."""
    if seconds is None or seconds > CLEARED_SECONDS:
        return Condition(_TYPE, False, "None", f"no direct message came by {WORK_EXCHANGE} lately")
    return Condition(
        _TYPE,
        True,
        "WorkExchangeUsed",
        f"direct messages come by the exchange {WORK_EXCHANGE}, where only the operator should "
        f"publish: let their producers publish to {DIRECT_EXCHANGE}, with the same key "
        f"{routing_key(*config.key)} (the clients of this project do so since they know it), then "
        f"take their write permission on {WORK_EXCHANGE} away",
    )
