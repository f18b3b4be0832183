"""The schemas of the resources, served for the tests of admission."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator

import pytest

from taskqueue.api.crds import DEFINITIONS
from tests.e2e.api import Api as ApiServer
from tests.integration.admission import TEST_GROUP, Api, Kubectl, served


@pytest.fixture(scope="session")
def schemas(kubectl: Kubectl) -> Iterator[None]:
    """The generated CRDs, served under the tests' own group while the tests run."""
    names = []
    for definition in DEFINITIONS:
        crd = served(definition, TEST_GROUP)
        names.append(f"crd/{crd['metadata']['name']}")
        done = kubectl("apply", "--server-side", "-f", "-", input=json.dumps(crd))
        assert done.returncode == 0, done.stderr
    done = kubectl("wait", "--for=condition=Established", "--timeout=30s", *names)
    assert done.returncode == 0, done.stderr
    yield
    done = kubectl("delete", *names, "--timeout=60s")
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def api_of_module(kubectl: Kubectl, api_server: ApiServer, schemas: None) -> Iterator[Api]:
    """A namespace for a module: to make and to end one costs more than a test of admission."""
    name = f"test-{uuid.uuid4().hex[:10]}"
    made = {"metadata": {"name": name}}
    api_server.request("POST", "/api/v1/namespaces", made)
    yield Api(kubectl, name, api_server)
    api_server.request("DELETE", f"/api/v1/namespaces/{name}")


@pytest.fixture
def api(api_of_module: Api) -> Iterator[Api]:
    """The API server, seen from a namespace in which nothing is."""
    yield api_of_module
    api_of_module.clear()
