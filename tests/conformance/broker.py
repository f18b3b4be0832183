"""Finds the RabbitMQ to test a worker on."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
from typing import Any

from devcluster import programs
from devcluster.paths import KUBECONFIG
from tests.integration.amqp.endpoint import Endpoint

#: NodePorts of devcluster/rabbitmq.
_AMQP_PORT, _MANAGEMENT_PORT = 30672, 31672


class NoBroker(Exception):
    """No RabbitMQ was found; the text says what to do."""


def find_broker() -> Endpoint:
    """Return the broker of TASKQUEUE_TEST_RABBITMQ, else that of the development cluster.

    Raises:
        NoBroker: there is neither, or the cluster does not answer.
    """
    uri = os.environ.get("TASKQUEUE_TEST_RABBITMQ")
    if uri:
        return Endpoint.from_uri(uri)
    if not KUBECONFIG.exists():
        raise NoBroker(
            "found no RabbitMQ to test on: set TASKQUEUE_TEST_RABBITMQ to "
            "amqp://user:password@host:port?management_port=15672, or start the development "
            "cluster (make deploy)"
        )
    data = _kubectl("secret/rabbitmq", "--namespace=rabbitmq")["data"]
    nodes = _kubectl("nodes")["items"]
    return Endpoint(
        host=next(
            one["address"] for one in nodes[0]["status"]["addresses"] if one["type"] == "InternalIP"
        ),
        port=_AMQP_PORT,
        management_port=_MANAGEMENT_PORT,
        username=base64.b64decode(data["username"]).decode(),
        password=base64.b64decode(data["password"]).decode(),
    )


def _kubectl(*arguments: str) -> Any:
    own = programs.kubectl()
    kubectl = str(own) if own.exists() else shutil.which("kubectl") or "kubectl"
    try:
        done = subprocess.run(
            [kubectl, f"--kubeconfig={KUBECONFIG}", "get", *arguments, "--output=json"],
            capture_output=True,
            text=True,
            check=True,
            timeout=30,
        )
    except (OSError, subprocess.SubprocessError) as error:
        reason = getattr(error, "stderr", "") or str(error)
        raise NoBroker(
            f"cannot read the address of RabbitMQ from the development cluster: {reason.strip()}"
        ) from error
    return json.loads(done.stdout)
