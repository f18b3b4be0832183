"""Handlers submit what they take, and nothing else."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskqueue import Context, InvalidPayload, task, typed_task
from taskqueue.client import AsyncTaskClient, TaskClient
from taskqueue.worker.sdk import HandlerRegistry, decorators


@dataclass
class Resize:
    url: str
    width: int = 100


class FakeClient:
    """Records what is submitted."""

    def __init__(self) -> None:
        self.submitted: list[tuple[str, str, Any, dict[str, Any]]] = []

    def submit(self, queue: str, handler: str, payload: Any, **more: Any) -> str:
        self.submitted.append((queue, handler, payload, more))
        return "handle"

    @property
    def real(self) -> TaskClient:
        return cast(TaskClient, self)


class FakeAsyncClient(FakeClient):
    async def submit(  # type: ignore[override]
        self, queue: str, handler: str, payload: Any, **more: Any
    ) -> str:
        return super().submit(queue, handler, payload, **more)


@pytest.fixture(autouse=True)
def registry(monkeypatch: pytest.MonkeyPatch) -> HandlerRegistry:
    fresh = HandlerRegistry()
    monkeypatch.setattr(decorators, "registry", fresh)
    monkeypatch.delenv("TASKQUEUE_QUEUE", raising=False)
    return fresh


def test_a_model_is_submitted_to_the_handlers_queue() -> None:
    @task(queue="thumbnails")
    def resize(image: Resize, ctx: Context) -> int:
        return image.width

    client = FakeClient()
    resize.submit(Resize("a.png"), client=client.real, priority=5)
    resize.submit(Resize("b.png", 7), queue="other", client=client.real, name="b")
    assert client.submitted == [
        ("thumbnails", "resize", {"url": "a.png", "width": 100}, {"priority": 5}),
        ("other", "resize", {"url": "b.png", "width": 7}, {"name": "b"}),
    ]


async def test_a_model_is_submitted_on_the_loop() -> None:
    @task("crop")
    async def anything(payload: dict[str, Any]) -> None: ...

    client = FakeAsyncClient()
    await anything.submit_async(
        {"a": 1}, queue="thumbnails", client=cast(AsyncTaskClient, client), labels={"x": "y"}
    )
    assert client.submitted == [("thumbnails", "crop", {"a": 1}, {"labels": {"x": "y"}})]


@given(
    st.dictionaries(st.sampled_from(["url", "width", "more"]), st.integers(0, 9) | st.text("abc"))
)
def test_what_the_handler_would_refuse_is_not_submitted(payload: dict[str, Any]) -> None:
    def resize(image: Resize) -> None: ...

    submitted, client = typed_task._submittable(resize, None, "q"), FakeClient()
    try:
        submitted.submit(payload, client=client.real)
    except InvalidPayload:
        assert not client.submitted
    else:
        assert isinstance(payload["url"], str)
        assert client.submitted == [("q", "resize", payload, {})]


def test_types_of_payloads_are_those_of_the_handler() -> None:
    @task
    def resize(image: Resize) -> int:
        return image.width

    with pytest.raises(TypeError):
        resize.submit(3, queue="q", client=FakeClient().real)  # type: ignore[arg-type]
    width: int = resize(Resize("a"))
    assert width == 100


def test_a_queue_must_be_named_and_a_worker_has_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    @task
    def resize(payload: dict[str, Any]) -> None: ...

    client = FakeClient()
    with pytest.raises(TypeError, match=r"give queue=, or mark the handler with @task\(queue"):
        resize.submit({}, client=client.real)
    monkeypatch.setenv("TASKQUEUE_QUEUE", "own")
    resize.submit({}, client=client.real)
    assert client.submitted == [("own", "resize", {}, {})]


def test_what_has_a_submit_keeps_it_and_what_takes_none_is_registered(
    registry: HandlerRegistry,
) -> None:
    class Handler:
        def submit(self) -> str:
            return "mine"

        def __call__(self, payload: dict[str, Any]) -> None: ...

        def method(self, payload: dict[str, Any]) -> None: ...

    own = task(name="own")(Handler())
    task(name="bound")(Handler().method)
    assert cast(Handler, own).submit() == "mine"
    assert list(registry) == ["own", "bound"]


def test_the_default_client_of_a_loop_is_one_and_ends_with_it() -> None:
    clients: list[AsyncTaskClient] = []

    async def twice() -> None:
        clients.extend([await typed_task._async_client(), await typed_task._async_client()])

    asyncio.run(twice())
    asyncio.run(twice())
    assert clients[0] is clients[1] is not clients[2] is clients[3]
    assert all(client._closed for client in clients)
