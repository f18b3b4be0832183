"""The OpenAPI document in docs/reference is that of the code, and says what callers need."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest

from taskqueue.gateway.app import make_api
from taskqueue.gateway.operation import ACCESS

COMMITTED = Path(__file__).resolve().parents[3] / "docs" / "reference" / "openapi.json"


def test_the_committed_document_is_that_of_the_code() -> None:
    document = make_api().openapi()
    document["info"]["version"] = "0"  # a release changes nothing else
    assert orjson.loads(COMMITTED.read_bytes()) == document, (
        "run: python -m taskqueue.gateway.openapi_file"
    )


@pytest.mark.parametrize(
    ("path", "method", "operation"),
    [
        (path, method, operation)
        for path, methods in make_api().openapi()["paths"].items()
        for method, operation in methods.items()
    ],
)
def test_every_operation_says_who_may_and_what_may_go_wrong(
    path: str, method: str, operation: dict[str, object]
) -> None:
    assert operation[ACCESS], path
    assert operation["description"]
    responses = operation["responses"]
    assert isinstance(responses, dict)
    assert {"401", "403", "404", "422", "429", "503"} <= responses.keys()
    assert any(status.startswith("2") for status in responses)


def test_the_document_is_openapi_3_1() -> None:
    assert make_api().openapi()["openapi"].startswith("3.1")
