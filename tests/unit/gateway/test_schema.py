"""What schemathesis makes of the OpenAPI document: no request it can think of breaks the contract.

Left out, with the reason:

* ``positive_data_acceptance``: the API server has rules that a schema cannot say (CEL, labels), and
  objects that do not exist are 404.
* ``unsupported_method``: Starlette answers HEAD and OPTIONS as it does anywhere.
* ``negative_data_rejection``: query parameters are text, so that ``limit=1`` and ``limit="1"`` are
  the same; bodies have tests of their own in test_tasks.
"""

from __future__ import annotations

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import CHECKS

from taskqueue.gateway.app import make_api
from tests.unit.gateway.harness import TOKEN, RunningGateway

_LEFT_OUT = ("positive_data_acceptance", "unsupported_method", "negative_data_rejection")


@pytest.fixture(scope="module")
def document(gateway: RunningGateway) -> Any:
    schema = schemathesis.openapi.from_url(f"{gateway.url}/openapi.json")
    schema.config.update(base_url=gateway.url)
    return schema


def left_out() -> list[Any]:
    return [check for check in CHECKS.get_all() if check.__name__ in _LEFT_OUT]


HEADERS = {"Authorization": f"Bearer {TOKEN}"}
OPERATIONS = [
    (path, method)
    for path, methods in make_api().openapi()["paths"].items()
    for method in methods
    if not path.endswith("/events")  # a stream ends with its Task only; test_task_events has it
]


@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_no_request_breaks_the_contract(document: Any, path: str, method: str) -> None:
    @given(case=document[path][method].as_strategy())
    @settings(max_examples=4, deadline=None, suppress_health_check=list(HealthCheck))
    def send(case: Any) -> None:
        case.call_and_validate(headers=HEADERS, excluded_checks=left_out())

    send()


@pytest.mark.long
def test_no_sequence_of_requests_breaks_the_contract(document: Any) -> None:
    class Machine(document.as_state_machine()):  # type: ignore[misc]
        def get_call_kwargs(self, case: Any) -> dict[str, Any]:
            return {"headers": HEADERS}

        def validate_response(self, response: Any, case: Any, **more: Any) -> None:
            case.validate_response(response, excluded_checks=left_out())

    Machine.run(
        settings=settings(
            max_examples=1000,
            stateful_step_count=6,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        )
    )
