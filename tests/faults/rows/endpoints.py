"""Section C: the addresses and certificates in a Secret, and what listens there."""

from __future__ import annotations

import base64
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import BaseRequestHandler, TCPServer, ThreadingTCPServer
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from devcluster.certificates import Identity, issue
from tests.e2e.harness import conditions
from tests.faults.relay import address_towards
from tests.faults.rows import row
from tests.faults.rows.site import PATIENCE, Site, holds_within
from tests.faults.rows.tenants import queue_status, restricted
from tests.integration.amqp.own_broker import manifests

#: What would be seen in a condition of whatever listens at an address.
_CANARY = "canary7f3a"


@row(
    "C4",
    "a RabbitMQ that speaks TLS only, and with clients that show a certificate of its authority",
    "the operator of the shipped manifest and its workers connect; a Task succeeds",
)
def _client_certificate(site: Site) -> str:
    name = "tls"
    with TemporaryDirectory() as text:
        folder = Path(text, "certificates")
        host = f"rabbitmq.{site.namespace}.svc.cluster.local"
        issue(folder, [Identity("server", "rabbitmq", addresses=(host,)), Identity("own", "own")])
        files = {path.name: path.read_text() for path in folder.iterdir()}
    server = {"ca.crt": files["ca.crt"], "tls.crt": files["server.crt"]}
    data = _encoded({**server, "tls.key": files["server.key"]})
    site.harness.create_core("secrets", "server", data=data)
    site.at.kubectl.ok("apply", "-f", "-", input=_with_tls(site))
    ready = ("statefulset/rabbitmq", "-n", site.namespace, "--timeout=120s")
    site.at.kubectl.ok("rollout", "status", *ready)
    login = {"host": host, "port": "5671", "vhost": "/"}
    without = {**login, "ca.crt": files["ca.crt"]}
    site.harness.secret(name, **without)
    template = restricted(site)
    site.harness.queue(
        broker={"connectionSecret": {"name": name}},
        scaling={"minReplicas": 1, "maxReplicas": 1},
        workers={"concurrency": 1, "template": template},
    )
    message = site.harness.condition("BrokerConnected", "False", "BrokerUnavailable")
    certificate = {"tls.crt": files["own.crt"], "tls.key": files["own.key"]}
    site.at.api.patch(site.harness.core("secrets", name), {"data": _encoded(certificate)})
    site.harness.ready(seconds=PATIENCE)
    assert "TLS" in message or "certificate" in message, f"without one it says {message}"
    status = site.end("echo", "secured", payload={"n": 1}, seconds=180)
    assert status["phase"] == "Succeeded", f"it ends as {status}"
    return "without a certificate it says so; with one a Task succeeds"


def _encoded(data: dict[str, str]) -> dict[str, str]:
    return {key: base64.b64encode(text.encode()).decode() for key, text in data.items()}


def _with_tls(site: Site) -> str:
    """Return manifests/rabbitmq for the row's namespace, with a listener for TLS and no other."""
    objects = list(yaml.safe_load_all(manifests(site.at.kubectl, site.namespace)))
    for one in objects:
        if one["kind"] == "ConfigMap":
            config = one["data"]["rabbitmq.conf"]
            plain = "listeners.tcp.default = 5672"
            assert plain in config
            one["data"]["rabbitmq.conf"] = config.replace(plain, _TLS_CONFIG)
        elif one["kind"] == "StatefulSet":
            spec = one["spec"]["template"]["spec"]
            spec["volumes"].append({"name": "tls", "secret": {"secretName": "server"}})
            container = spec["containers"][0]
            container["volumeMounts"].append({"name": "tls", "mountPath": "/tls"})
            (port,) = (each for each in container["ports"] if each["name"] == "amqp")
            port["containerPort"] = 5671
        elif one["kind"] == "Service":
            (port,) = (each for each in one["spec"]["ports"] if each["name"] == "amqp")
            port["port"] = 5671
    return yaml.safe_dump_all(objects)


_TLS_CONFIG = """listeners.tcp = none
listeners.ssl.default = 5671
ssl_options.cacertfile = /tls/ca.crt
ssl_options.certfile = /tls/tls.crt
ssl_options.keyfile = /tls/tls.key
ssl_options.verify = verify_peer
ssl_options.fail_if_no_peer_cert = true"""


# Foreign endpoints.


class _Endless(BaseHTTPRequestHandler):
    """Answers with as much JSON as anybody reads, and its own words in each place for words."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:  # the name is http.server's
        self.send_response(200, _CANARY)
        self.send_header("Content-Type", "application/json")
        self.send_header("Connection", "close")
        self.end_headers()
        try:
            self.wfile.write(b'{"items": [')
            while True:
                self.wfile.write(b'["' + _CANARY.encode() + b'"],' * 4096)
        except OSError:
            self.close_connection = True

    def log_message(self, format: str, *arguments: Any) -> None:
        """Say nothing."""


class _Threads(ThreadingTCPServer):
    """A server of another protocol."""

    daemon_threads = True


class _Banner(BaseRequestHandler):
    """Greets as a server of another protocol."""

    def handle(self) -> None:
        self.request.sendall(f"SSH-2.0-{_CANARY}\r\n".encode())
        while self.request.recv(4096):
            pass


@contextmanager
def _serving(server: TCPServer) -> Iterator[int]:
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.socket.getsockname()[1]
    finally:
        server.shutdown()
        server.server_close()


@row(
    "C5",
    "a managementUri, then the broker's own address, at a service that answers without end, or as "
    "SSH does",
    "a condition says so without a word of it; Tasks go on; the operator is not restarted",
    alone=True,
)
def _foreign_endpoints(site: Site) -> str:
    address = address_towards(site.at.rabbitmq.host)
    before = site.restarts()
    site.queue()
    site.works("before")
    with (
        _serving(ThreadingHTTPServer((address, 0), _Endless)) as endless,
        _serving(_Threads((address, 0), _Banner)) as banner,
    ):
        for number, port in enumerate((endless, banner)):
            uri = f"http://{address}:{port}"
            site.harness.secret("rabbit", vhost=site.vhost, managementUri=uri)
            _wait_said(site, uri)
            assert "unexpected answer" in _said(site), _said(site)
            site.works(f"meanwhile-{number}")
        site.harness.secret("rabbit", vhost=site.vhost, host=address, port=str(banner))
        _wait_said(site, "does not speak AMQP")
    site.harness.secret("rabbit", vhost=site.vhost)
    site.harness.ready(seconds=PATIENCE)
    restarts = site.restarts() - before
    assert not restarts, f"the operator's container was killed {restarts} times"
    return f"unexpected answer; does not speak AMQP; {site.works()}"


def _wait_said(site: Site, words: str) -> None:
    """Wait until a condition says this."""
    assert holds_within(90, lambda: words in _said(site)), f"no condition says {words}"


def _said(site: Site) -> str:
    """Return what all conditions say; fail if one quotes the service."""
    text = " ".join(each["message"] for each in conditions(queue_status(site)).values())
    assert _CANARY not in text, f"a condition quotes what listens there: {text}"
    return text


@row("C6", "a Task for a handler named .. with --http *=URL", "Blocked; the service is not asked")
def _parent_path(site: Site) -> str:
    service = {
        "name": "service",
        "image": site.at.image,
        "command": ["python3", "/handlers/paths.py"],
        "volumeMounts": [{"name": "handlers", "mountPath": "/handlers"}],
    }
    template = site.template(args=["worker", "--http", "*=http://127.0.0.1:8000/run"])
    template["spec"]["containers"].append(service)
    site.queue(template=template)
    status = site.end("below", payload={})
    assert status["phase"] == "Succeeded", f"a good Task ends as {status}"
    for number, handler in enumerate(("..", ".")):
        site.harness.task(f"parent-{number}", handler, payload={})
        site.harness.phase(f"parent-{number}", "Blocked", "Failed", seconds=PATIENCE)
    (pod,) = site.harness.pods()
    path = site.harness.core("pods", pod["metadata"]["name"], "log?container=service")
    asked = site.at.api.text(path).split()
    assert set(asked) == {"/run/below"}, f"the service was asked for {asked}"
    return f"{site.harness.phase('parent-0', 'Blocked', 'Failed')['phase']}; asked for {asked}"


@row("C7", "amqp:// together with ca.crt in the connection Secret", "refused, with what to do")
def _plain_with_authority(site: Site) -> str:
    site.queue()
    rabbit = site.at.rabbitmq
    uri = f"amqp://{rabbit.username}:{rabbit.password}@rabbitmq.rabbitmq.svc.cluster.local"
    plain: dict[str, Any] = dict.fromkeys(("host", "username", "password"))
    site.harness.secret("rabbit", **plain, **{"uri": f"{uri}/{site.vhost}", "ca.crt": "authority"})
    message = site.harness.condition("BrokerConnected", "False", "SecretInvalid")
    assert "write amqps://, or remove ca.crt" in message, message
    site.harness.secret("rabbit", vhost=site.vhost)
    site.harness.ready(seconds=PATIENCE)
    return f"SecretInvalid; corrected: {site.works()}"
