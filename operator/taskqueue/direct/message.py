"""Messages without a Task, as a producer publishes them: no token, the queue's own defaults."""

from __future__ import annotations

import time
import uuid

from taskqueue.amqp.properties import BasicProperties
from taskqueue.contract.names import APP_ID, CONTENT_TYPE_JSON


def direct_properties(*, handler: str | None, correlation_id: str | None) -> BasicProperties:
    """Return the properties of one publish of a JSON object; every call makes a new message id.

    Args:
        handler: a worker's handler; None: its default handler.
        correlation_id: repeated in the event that tells the message's end.
    """
    return BasicProperties(
        content_type=CONTENT_TYPE_JSON,
        type=handler,
        message_id=uuid.uuid4().hex,
        correlation_id=correlation_id,
        delivery_mode=2,
        timestamp=int(time.time()),
        app_id=APP_ID,
    )
