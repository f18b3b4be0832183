"""Sets no limit to its unsettled deliveries."""

from __future__ import annotations

from taskqueue.amqp.channel import Channel
from taskqueue.worker.command_consumer import PREFETCH as COMMAND_PREFETCH
from tests.conformance.broken import start

_set_prefetch = Channel.set_prefetch


async def _set_none(self: Channel, count: int) -> None:
    # A stream cannot be consumed without a limit, so commands keep theirs.
    await _set_prefetch(self, count if count == COMMAND_PREFETCH else 0)


if __name__ == "__main__":
    Channel.set_prefetch = _set_none  # type: ignore[method-assign]
    start()
