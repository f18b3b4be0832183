"""The receiver of docs/guides/webhooks.md, as it stands there, gets what the operator sends."""

from __future__ import annotations

import asyncio
import base64
import os
import socket
import sys
import time
from contextlib import closing

from taskqueue.contract.completion import task_completion
from taskqueue.controller.completions.webhook_client import (
    WebhookClient,
    WebhookFailure,
    WebhookTrouble,
)
from taskqueue.controller.completions.webhook_networks import WebhookNetworks
from taskqueue.controller.completions.webhook_signature import SigningSecrets, webhook_id
from taskqueue.model.task import Phase, Task, TaskSpec, TaskState
from tests.e2e.guides import blocks

SECRET = "whsec_" + base64.b64encode(b"k" * 32).decode()
OTHER = "whsec_" + base64.b64encode(b"o" * 32).decode()


def body() -> bytes:
    task = Task(
        namespace="shop",
        name="resize-1",
        uid="uid",
        generation=1,
        created=1.0,
        spec=TaskSpec(queue="work", handler="greet"),
    )
    status = TaskState(
        phase=Phase.SUCCEEDED, attempts=1, completion_time=1.0, result={"greeting": "Grüße"}
    )
    return task_completion(task, status).encode()


async def test_the_receiver_of_the_guide_prints_an_end_once_and_refuses_what_is_forged() -> None:
    (block,) = blocks("webhooks.md", "python")
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    program = block.text.replace("8000", str(port))
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        program,
        env=os.environ | {"WEBHOOK_SECRET": SECRET},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    client = WebhookClient(WebhookNetworks.parse("127.0.0.0/8"), at_once=1)

    async def send(secrets: str) -> WebhookFailure | None:
        now, event_id = int(time.time()), webhook_id("uid.1")
        headers = {
            "webhook-id": event_id,
            "webhook-timestamp": str(now),
            "webhook-signature": SigningSecrets.parse(secrets).sign(event_id, now, body()),
        }
        return await client.post(f"http://127.0.0.1:{port}/", body(), headers, timeout_seconds=30)

    try:
        while await send(SECRET) == WebhookFailure(WebhookTrouble.UNREACHABLE):  # noqa: ASYNC110
            await asyncio.sleep(0.1)
        assert await send(f"{OTHER} {SECRET}") is None
        assert await send(OTHER) == WebhookFailure(WebhookTrouble.REFUSED, 401)
    finally:
        await client.close()
        process.terminate()
        output, _ = await process.communicate()
    assert output.decode() == "shop/resize-1 Succeeded {'greeting': 'Grüße'}\n"
