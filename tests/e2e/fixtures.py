"""Fixtures for tests against the operator in the cluster: the harness first of all."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping

import pytest

from tests.conftest import Cluster, Kubectl, RabbitMQ
from tests.e2e.api import Api
from tests.e2e.case_runner import CaseRunner
from tests.e2e.harness import Harness
from tests.e2e.lifecycle_case import LifecycleCase


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
def case_runner(request: pytest.FixtureRequest, harness: Harness) -> Iterator[CaseRunner]:
    """Runs the lifecycle cases that a module has and the command line selects."""
    items = [item for item in request.session.items if item.path == request.path]
    cases = [case for item in items if isinstance(case := _params(item).get("case"), LifecycleCase)]
    runner = CaseRunner(harness, cases)
    runner.start()
    yield runner
    runner.close()


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
    described = report.when != "call" or "case" in _params(item)
    if report.failed and not described and isinstance(harness, Harness):
        report.sections.append(("the harness", harness.describe()))
    return report
