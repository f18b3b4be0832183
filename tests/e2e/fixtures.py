"""The lab as a fixture, for tests of the operator and of the whole."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping

import pytest

from tests.conftest import Cluster, Kubectl, RabbitMQ
from tests.e2e.api import Api
from tests.e2e.harness import Lab
from tests.e2e.scenario_runner import Stage
from tests.e2e.table import Row


@pytest.fixture(scope="session")
def api(cluster: Cluster) -> Api:
    """A client of the API server."""
    return Api(cluster.kubeconfig)


@pytest.fixture(scope="module")
def lab(api: Api, kubectl: Kubectl, rabbitmq: RabbitMQ) -> Iterator[Lab]:
    """A namespace for the tests of one module; at the end no finished Task may have changed."""
    lab = Lab(api, kubectl, rabbitmq)
    yield lab
    try:
        lab.assert_ends_are_final()
    finally:
        lab.close()


@pytest.fixture(scope="module")
def stage(request: pytest.FixtureRequest, lab: Lab) -> Iterator[Stage]:
    """The rows of the table that a module tests and the command line asks for, under way."""
    items = [item for item in request.session.items if item.path == request.path]
    rows = [row for item in items if isinstance(row := _params(item).get("row"), Row)]
    stage = Stage(lab, rows)
    stage.play()
    yield stage
    stage.close()


def _params(item: pytest.Item) -> Mapping[str, object]:
    return getattr(getattr(item, "callspec", None), "params", {})


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Tell with each failure how the lab looks and what the operator said; rows tell it shorter."""
    report = yield
    lab = getattr(item, "funcargs", {}).get("lab")
    told = report.when != "call" or "row" in _params(item)
    if report.failed and not told and isinstance(lab, Lab):
        report.sections.append(("the lab", lab.describe()))
    return report
