"""The API server behind an API proxy, and what clients of the proxy need."""

from __future__ import annotations

import base64
import ssl
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from devcluster import certificates

#: The API server's name in pods.
SERVICE_NAME = "kubernetes.default.svc"


@dataclass(frozen=True)
class Upstream:
    """An API server: its URL, and TLS with and without a client certificate."""

    url: str
    with_certificate: ssl.SSLContext | None = None
    without_certificate: ssl.SSLContext | None = None

    @classmethod
    def of(cls, kubeconfig: Path) -> Upstream:
        """Return the API server of a kubeconfig's current context."""
        config = yaml.safe_load(kubeconfig.read_text())
        context = _named(config["contexts"], config["current-context"])["context"]
        cluster = _named(config["clusters"], context["cluster"])["cluster"]
        user = _named(config["users"], context["user"])["user"]
        authority = base64.b64decode(cluster["certificate-authority-data"]).decode()
        contexts = [ssl.create_default_context(cadata=authority) for _ in range(2)]
        with tempfile.TemporaryDirectory() as folder:
            certificate, key = Path(folder, "crt"), Path(folder, "key")
            certificate.write_bytes(base64.b64decode(user["client-certificate-data"]))
            key.write_bytes(base64.b64decode(user["client-key-data"]))
            contexts[0].load_cert_chain(certificate, key)
        return cls(cluster["server"].rstrip("/"), *contexts)


def kubeconfig_of(url: str, authority: str | None, token: str) -> dict[str, Any]:
    """Return a kubeconfig.

    Args:
        url: of the server.
        authority: certificate of the server's authority; None: the server speaks no TLS.
        token: of its user.
    """
    cluster: dict[str, str] = {"server": url}
    if authority:
        encoded = base64.b64encode(authority.encode()).decode()
        cluster["certificate-authority-data"] = encoded
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "proxy", "cluster": cluster}],
        "users": [{"name": "proxy", "user": {"token": token}}],
        "contexts": [{"name": "proxy", "context": {"cluster": "proxy", "user": "proxy"}}],
        "current-context": "proxy",
    }


def server_tls(address: str) -> tuple[ssl.SSLContext, str]:
    """Return a server's TLS context, and the certificate of its authority.

    Args:
        address: of the server, which is also trusted under `SERVICE_NAME`.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        identity = certificates.Identity("proxy", "api-proxy", addresses=[address, SERVICE_NAME])
        certificates.issue(folder, [identity])
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / "proxy.crt", folder / "proxy.key")
        return context, (folder / "ca.crt").read_text()


def _named(entries: list[dict[str, Any]], name: str) -> dict[str, Any]:
    return next(entry for entry in entries if entry["name"] == name)
