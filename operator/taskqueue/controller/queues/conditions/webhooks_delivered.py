"""WebhooksDelivered: whether ends of Tasks reach a TaskQueue's webhooks; absent without one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from taskqueue.controller.queues.conditions.sink_state import MANY_WAITING, SinkState
from taskqueue.model.queue import Condition

_TYPE = "WebhooksDelivered"


@dataclass(frozen=True, slots=True)
class WebhookState:
    """How one webhook is.

    Attributes:
        name: of the webhook.
        state: of its sender.
        waiting: ends in its outbox; None: unknown.
    """

    name: str
    state: SinkState
    waiting: int | None

    def describe(self) -> str:
        """Return what is the matter with it, or that it works."""
        what = self.state.message or "ends are sent"
        if self.state.connected is None:
            what = "the operator is connecting"
        if self.waiting is not None and self.waiting > (
            MANY_WAITING if self.state.connected else 0
        ):
            what += f"; {self.waiting} ends wait"
        return f"{self.name}: {what}"


def webhooks_delivered(states: Iterable[WebhookState], *, is_behind: bool) -> tuple[Condition, ...]:
    """Return WebhooksDelivered, or nothing where there is no webhook.

    The first webhook with the worst state gives status and reason; the message has all that are
    not as they should be.

    Args:
        states: of all webhooks.
        is_behind: ends may be in no outbox, such as because one was full.
    """
    found = list(states)
    if not found:
        return ()
    worst = min(found, key=lambda one: _RANK[one.state.connected, one.state.reason == "Delivered"])
    troubled = [one for one in found if one.state.reason != "Delivered"]
    text = "; ".join(one.describe() for one in troubled or found)
    if is_behind:
        text += (
            "; ends may be missing, such as because an outbox was full: finished Tasks stay until "
            "they are in one"
        )
    return (Condition(_TYPE, worst.state.connected, worst.state.reason, text),)


#: By status, and whether all is well: the worst first.
_RANK = {
    (False, False): 0,
    (None, False): 1,
    (True, False): 2,
    (True, True): 3,
}
