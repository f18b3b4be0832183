"""TLS: the broker's certificate is verified, ours is shown, and failures say what to do."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from taskqueue.amqp.channel import BrokerUnavailable
from taskqueue.amqp.connection import connect
from taskqueue.amqp.parameters import BrokerConfigurationError, BrokerParameters
from tests.faults.relay import relay_to

pytestmark = pytest.mark.broker


@dataclass(frozen=True)
class Certificate:
    """A self-signed certificate: its own authority."""

    certificate: Path
    key: Path

    @property
    def text(self) -> str:
        return self.certificate.read_text()


def make_certificate(folder: Path, name: str, alternative: str) -> Certificate:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    made = Certificate(folder / f"{name}.crt", folder / f"{name}.key")
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2"
    options = [
        *("-subj", f"/CN={name}"),
        *("-addext", f"subjectAltName={alternative}"),
        *("-addext", "keyUsage=critical,digitalSignature,keyCertSign"),
        *("-out", str(made.certificate)),
        *("-keyout", str(made.key)),
    ]
    subprocess.run([*command.split(), *options], check=True, capture_output=True)
    return made


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("tls"), "server", "IP:127.0.0.1")


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("tls"), "client", "DNS:client")


def server_context(certificate: Certificate) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate.certificate, certificate.key)
    return context


async def test_a_trusted_broker(parameters: BrokerParameters, server: Certificate) -> None:
    async with relay_to(parameters, tls=server_context(server)) as (_, relayed):
        connection = await connect(
            replace(relayed, tls=True, ca_certificate=server.text), name="test"
        )
        assert await (await connection.channel()).declare_queue("q") == 0
        await connection.close()


async def test_an_unknown_authority(parameters: BrokerParameters, server: Certificate) -> None:
    async with relay_to(parameters, tls=server_context(server)) as (_, relayed):
        with pytest.raises(BrokerUnavailable, match=r"not trusted: put its authority into ca\.crt"):
            await connect(replace(relayed, tls=True), name="test")


async def test_another_host_name(parameters: BrokerParameters, client: Certificate) -> None:
    async with relay_to(parameters, tls=server_context(client)) as (_, relayed):
        with pytest.raises(BrokerUnavailable, match="use a host name the certificate has"):
            await connect(replace(relayed, tls=True, ca_certificate=client.text), name="test")


async def test_a_client_certificate(
    parameters: BrokerParameters, server: Certificate, client: Certificate
) -> None:
    context = server_context(server)
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(client.certificate)
    async with relay_to(parameters, tls=context) as (_, relayed):
        without = replace(relayed, tls=True, ca_certificate=server.text)
        with pytest.raises(
            BrokerUnavailable, match=r"TLS failed|wants TLS or a client certificate"
        ):
            await connect(without, name="test")
        connection = await connect(
            replace(without, client_certificate=client.text, client_key=client.key.read_text()),
            name="test",
        )
        await connection.close()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ca_certificate": "nonsense"}, r"key ca\.crt is not a PEM certificate"),
        (
            {"client_certificate": "nonsense", "client_key": "nonsense"},
            r"keys tls\.crt and tls\.key are not a PEM certificate",
        ),
    ],
    ids=["ca.crt", "tls.crt"],
)
async def test_unreadable_certificates_are_named(change: dict[str, str], message: str) -> None:
    parameters = BrokerParameters(host="mq", port=1, username="op", password="x", tls=True)
    with pytest.raises(BrokerConfigurationError, match=message):
        await connect(replace(parameters, **change), name="test")  # type: ignore[arg-type]
