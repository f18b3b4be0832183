"""The access matrix, against the API server in memory."""

from __future__ import annotations

import pytest

from tests.unit.gateway.access_matrix import Operation, all_rights, check, operations, reading
from tests.unit.gateway.harness import NAMESPACE, OWN, RunningGateway, Scene

OPERATIONS = list(operations(NAMESPACE))


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda each: each.name)
def test_every_operation_asks_for_the_rights_it_names(
    scene: Scene, gateway: RunningGateway, operation: Operation
) -> None:
    rights = all_rights(NAMESPACE)
    callers = {
        "elsewhere": ("other", rights),
        "reader": (NAMESPACE, reading(rights)),
        "full": (NAMESPACE, rights),
        "nothing": (NAMESPACE, set()),
        **{
            f"all-but-{'-'.join(each).replace('/', '.')}": (NAMESPACE, rights - {each})
            for each in operation.rights
        },
    }
    for token, (namespace, granted) in callers.items():
        scene.api.allow(token, namespace, *granted)
        answer = gateway.request(operation.method, operation.path, token=token, json=operation.body)
        here = granted if namespace == NAMESPACE else set()
        check(operation, answer.status_code, _json(answer.text and answer.json()), granted=here)


def _json(found: object) -> dict[str, object]:
    return found if isinstance(found, dict) else {}


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda each: each.name)
@pytest.mark.parametrize("token", [None, "unknown", "a b", "x" * 20_000])
def test_no_operation_answers_a_caller_that_nobody_knows(
    gateway: RunningGateway, operation: Operation, token: str | None
) -> None:
    answer = gateway.request(operation.method, operation.path, token=token, json=operation.body)
    if token is not None and len(token) > 16_384 and answer.status_code == 400:
        return  # the header is longer than the server reads
    assert answer.status_code == 401, answer.text
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert answer.json()["detail"]


@pytest.mark.parametrize("name", ["sendMessage", "getResult", "searchHistory"])
def test_what_the_gateway_itself_may_not_do_is_no_refusal_of_the_caller(
    scene: Scene, gateway: RunningGateway, name: str
) -> None:
    (operation,) = (each for each in OPERATIONS if each.name == name)
    granted = scene.api.rights.pop(OWN)
    try:
        for known in (True, False):  # it may nothing; its token is not valid any more
            if known:
                scene.api.rights[OWN] = {}
            answer = gateway.request(operation.method, operation.path, json=operation.body)
            assert answer.status_code == 502, answer.text
            assert answer.json()["reason"] == "GatewayForbidden"
            scene.api.rights.pop(OWN, None)
    finally:
        scene.api.rights[OWN] = granted
