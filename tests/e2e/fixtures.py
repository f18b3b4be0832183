"""Fixtures for tests against the operator in the cluster: the harness first of all."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping

import pytest

from tests.conftest import Cluster, Kubectl, RabbitMQ
from tests.e2e.api import Api
from tests.e2e.harness import Harness
from tests.e2e.scenario_runner import Stage
from tests.e2e.table import Row


@pytest.fixture(scope="session")
def api(cluster: Cluster) -> Api:
    """A client of the API server."""
    return Api(cluster.kubeconfig)


@pytest.fixture(scope="module")
def harness(api: Api, kubectl: Kubectl, rabbitmq: RabbitMQ) -> Iterator[Harness]:
    """A namespace for the tests of one module; at the end no finished Task may have changed."""
    harness = Harness(api, kubectl, rabbitmq)
    yield harness
    try:
        harness.assert_ends_are_final()
    finally:
        harness.close()


@pytest.fixture(scope="module")
def stage(request: pytest.FixtureRequest, harness: Harness) -> Iterator[Stage]:
    """The rows of the table that a module tests and the command line asks for, under way."""
    items = [item for item in request.session.items if item.path == request.path]
    rows = [row for item in items if isinstance(row := _params(item).get("row"), Row)]
    stage = Stage(harness, rows)
    stage.play()
    yield stage
    stage.close()


def _params(item: pytest.Item) -> Mapping[str, object]:
    return getattr(getattr(item, "callspec", None), "params", {})


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Report with each failure the state of the harness and what the operator logged.

    Lifecycle cases report their failures themselves.
    """
    report = yield
    harness = getattr(item, "funcargs", {}).get("harness")
    told = report.when != "call" or "row" in _params(item)
    if report.failed and not told and isinstance(harness, Harness):
        report.sections.append(("the harness", harness.describe()))
    return report
