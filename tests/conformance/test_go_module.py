"""The Go module of examples/go-worker: gofmt, go vet, go test."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.conformance import go

pytestmark = pytest.mark.skipif(go.go() is None, reason="Go is not installed")


def test_go_module_is_formatted() -> None:
    program = go.go()
    assert program
    gofmt = Path(program).resolve().with_name("gofmt")
    listed = subprocess.run([gofmt, "-l", "."], cwd=go.MODULE, capture_output=True, check=True)
    assert not listed.stdout.split()


def test_go_vet() -> None:
    go.call("vet", "./...")


def test_go_test() -> None:
    go.call("test", "./...")
