"""Properties of direct messages: no token, so a worker applies the queue's defaults."""

from __future__ import annotations

import time
import uuid

from taskqueue.amqp.properties import BasicProperties
from taskqueue.contract.names import APP_ID, CONTENT_TYPE_JSON


def direct_properties(*, handler: str | None, correlation_id: str | None) -> BasicProperties:
    """Return the properties for one publish of a JSON object, with a new message id.

    Args:
        handler: a worker's handler; None: its default handler.
        correlation_id: repeated in the completion event of the message.
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
