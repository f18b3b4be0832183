"""The lab as a fixture, for tests of the operator and of the whole."""

from __future__ import annotations

from collections.abc import Generator, Iterator

import pytest

from tests.conftest import Cluster, Kubectl, RabbitMQ
from tests.e2e.api import Api
from tests.e2e.lab import Lab


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


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Tell with each failure how the lab looks and what the operator said."""
    report = yield
    lab = getattr(item, "funcargs", {}).get("lab")
    if report.when == "call" and report.failed and isinstance(lab, Lab):
        report.sections.append(("the lab", lab.describe()))
    return report
