"""A client certificate is used where no directory can be written, and leaves no key behind."""

from __future__ import annotations

import os
import shutil
import ssl
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from devcluster.certificates import Identity, issue
from taskqueue.amqp.connection import tls_context
from taskqueue.amqp.parameters import BrokerConfigurationError, BrokerParameters

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="files in memory"),
    pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certificates")
    issue(folder, [Identity("one", "one"), Identity("two", "two")])
    return folder


@pytest.fixture
def parameters(folder: Path) -> BrokerParameters:
    return BrokerParameters(
        host="mq",
        port=5671,
        username="u",
        password="p",
        tls=True,
        ca_certificate=(folder / "ca.crt").read_text(),
        client_certificate=(folder / "one.crt").read_text(),
        client_key=(folder / "one.key").read_text(),
    )


def open_files() -> list[str]:
    paths = (f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd"))
    return [os.readlink(path) for path in paths if os.path.lexists(path)]


def test_no_directory_is_written_to(
    parameters: BrokerParameters, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise OSError("read-only file system")

    for name in ("NamedTemporaryFile", "TemporaryDirectory", "mkdtemp", "mkstemp"):
        monkeypatch.setattr(tempfile, name, refuse)
    assert isinstance(tls_context(parameters), ssl.SSLContext)
    assert not any("memfd" in path for path in open_files())


def test_a_key_of_another_certificate_is_refused(
    parameters: BrokerParameters, folder: Path
) -> None:
    other = replace(parameters, client_key=(folder / "two.key").read_text())
    with pytest.raises(BrokerConfigurationError, match=r"keys tls\.crt and tls\.key are not"):
        tls_context(other)


def test_an_encrypted_key_is_refused_and_nobody_is_asked_for_its_password(
    parameters: BrokerParameters, folder: Path
) -> None:
    command = ["openssl", "pkcs8", "-topk8", "-passout", "pass:x", "-in", str(folder / "one.key")]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert "ENCRYPTED" in done.stdout
    with pytest.raises(BrokerConfigurationError, match=r"keys tls\.crt and tls\.key are not"):
        tls_context(replace(parameters, client_key=done.stdout))
