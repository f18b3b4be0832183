"""Tasks and TaskQueues in every state, for the checks of GitOps tools."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import Kubectl
from tests.e2e.api import Api as ApiServer
from tests.e2e.fixtures import api, harness, pytest_runtest_makereport
from tests.integration.gitops import kstatus_program
from tests.integration.gitops.states import STATES, Seen, put_into_states

__all__ = ["api", "harness", "pytest_runtest_makereport"]


@pytest.fixture(scope="session")
def kstatus() -> Path:
    """The program that judges objects by kstatus."""
    compiler = kstatus_program.go()
    if compiler is None:
        pytest.skip("kstatus is built with Go, and there is no `go` on PATH: install Go")
    return kstatus_program.build(compiler)


@pytest.fixture(scope="package")
def seen(kubectl: Kubectl, api_server: ApiServer, schemas: None) -> Seen:
    """The object of every state by its name, as the API server returns it."""
    return put_into_states(kubectl, api_server, STATES)
