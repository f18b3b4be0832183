"""What is checked before anything is done: origin, rate, body; and how the gateway ends."""

from __future__ import annotations

import socket
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskqueue.gateway.guards import RateLimit
from tests.unit.gateway.harness import NAMESPACE, OWN, TOKEN, RunningGateway, Scene, new_task


@given(
    burst=st.integers(1, 20),
    per_second=st.floats(0.5, 50),
    steps=st.lists(st.tuples(st.floats(0, 5), st.sampled_from([b"a", b"b"])), max_size=60),
)
def test_no_caller_gets_more_than_its_rate_and_none_waits_for_another(
    burst: int, per_second: float, steps: list[tuple[float, bytes]]
) -> None:
    now = 0.0
    limit = RateLimit(per_second, burst, lambda: now)
    passed: dict[bytes, list[float]] = {b"a": [], b"b": []}
    for delay, caller in steps:
        now += delay
        alone = len(passed[caller]) < burst
        wait = limit.wait_of(caller)
        assert wait >= 0
        assert not (alone and wait)
        if not wait:
            passed[caller].append(now)
    for times in passed.values():
        for start, at in enumerate(times):
            for count, later in enumerate(times[start:], 1):
                assert count <= burst + (later - at) * per_second + 1e-6


def test_a_caller_that_sends_too_much_is_told_how_long_to_wait(scene: Scene) -> None:
    gateway = scene.gateway(requests_per_second=0.01, burst=2)
    scene.api.allow("other", NAMESPACE, ("list", "tasks"))
    answers = [gateway.tasks("GET") for _ in range(3)]
    assert [each.status_code for each in answers] == [200, 200, 429]
    assert int(answers[-1].headers["Retry-After"]) > 0
    assert gateway.tasks("GET", token="other").status_code == 200
    assert gateway.request("GET", "/healthz").status_code == 200
    gateway.stop()


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Sec-Fetch-Site": "same-origin"}, 201),
        ({"Sec-Fetch-Site": "none"}, 201),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Content-Type": "text/plain"}, 415),
    ],
)
def test_pages_of_other_sites_cannot_write(
    gateway: RunningGateway, headers: dict[str, str], status: int
) -> None:
    answer = gateway.tasks("POST", json=new_task(), headers=headers)
    assert answer.status_code == status, answer.text


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_above_the_limit_is_not_read(scene: Scene, chunked: bool) -> None:
    gateway = scene.gateway(body_bytes=1000)
    data: Any = iter([b" " * 400] * 10) if chunked else b" " * 1001
    answer = gateway.tasks("POST", data=data, headers={"Content-Type": "application/json"})
    assert answer.status_code == 413
    assert "1000 bytes" in answer.json()["detail"]
    gateway.stop()


def test_a_desk_serves_its_own_machine_only(scene: Scene) -> None:
    gateway = scene.gateway(desk=True)
    path = f"/v1/namespaces/{NAMESPACE}/tasks"
    assert gateway.request("GET", path, token=None).status_code == 200
    assert scene.api.requests[-1][2] == OWN
    assert gateway.request("GET", path).status_code == 200
    assert scene.api.requests[-1][2] == TOKEN
    for host in ("evil.example", "localhost.evil.example", f"evil.example:{gateway.port}"):
        answer = gateway.request("GET", path, token=None, headers={"Host": host})
        assert answer.status_code == 421
    gateway.stop()


def test_a_gateway_that_drains_is_not_ready_and_ends_waits(scene: Scene) -> None:
    gateway = scene.gateway()
    name = gateway.tasks("POST", json=new_task()).json()["metadata"]["name"]
    assert gateway.request("GET", "/readyz").status_code == 200

    async def drain() -> None:
        gateway.services.draining.set()

    scene.run(drain())
    assert gateway.request("GET", "/readyz").status_code == 503
    assert gateway.tasks("GET", f"/{name}?wait=300s").json()["status"]["phase"] == "Pending"
    gateway.stop()
    with socket.socket() as closed:
        assert closed.connect_ex(("127.0.0.1", gateway.port)) != 0
