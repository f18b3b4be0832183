"""The schemas of the resources, served for the tests of admission."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from taskqueue.api.crds import DEFINITIONS
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


@pytest.fixture
def api(kubectl: Kubectl, namespace: str, schemas: None) -> Api:
    return Api(kubectl, namespace)
