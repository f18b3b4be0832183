"""An API server in memory, and a gateway in front of it, for all tests of a module."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.unit.gateway.harness import RunningGateway, Scene


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    scene = Scene()
    yield scene
    scene.close()


@pytest.fixture(scope="module")
def gateway(scene: Scene) -> Iterator[RunningGateway]:
    gateway = scene.gateway()
    yield gateway
    gateway.stop()
