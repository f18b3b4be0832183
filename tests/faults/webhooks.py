"""``python -m tests.faults.webhooks``: every end reaches a receiver that fails and goes away.

Tasks end while their receiver answers 500 to a share of what it gets, and refuses all connections
for a while. It verifies each signature with the library of Standard Webhooks, and counts: each Task
must be accepted, each event with one id and one body however often it comes, and nothing unsigned.

The operator of the cluster is replaced by this checkout's. Exit code 1: something of that is not
so.
"""

from __future__ import annotations

import argparse
import base64
import os
import socket
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from devcluster import images
from devcluster.cluster import open_cluster
from devcluster.paths import DEFAULT_NAME, KUBECONFIG
from tests.commits import sources
from tests.e2e.harness import Harness
from tests.faults.install import install, settle
from tests.faults.rows.site import Installation
from tests.integration.webhooks.receiver import WebhookReceiver

_IMAGE = f"taskqueue-operator:faults-{DEFAULT_NAME}"
_DEPLOYMENT = ("-n", "taskqueue-system", "deployment/taskqueue-operator")


def _wait_until(holds: Callable[[], bool], what: str, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"not {what} within {seconds:g} s"
        time.sleep(0.5)


def _try(at: Installation, options: argparse.Namespace) -> list[str]:
    harness = Harness(at.api, at.kubectl, at.rabbitmq)
    secret = "whsec_" + base64.b64encode(os.urandom(32)).decode()
    with socket.create_connection((at.rabbitmq.host, at.rabbitmq.port), timeout=30) as connection:
        receiver = WebhookReceiver(secret, connection.getsockname()[0], seed=options.seed)
    receiver.failing = options.failing
    try:
        harness.create_core("secrets", "signing", stringData={"secret": secret})
        signing = {"name": "signing", "key": "secret"}
        harness.queue(
            notifications=[{"name": "hook", "url": receiver.url, "signingSecretKeyRef": signing}],
            scaling={"minReplicas": 2, "maxReplicas": 2},
            workers={"concurrency": 8},
        )
        harness.condition("WebhooksDelivered", "True", "Delivered", seconds=options.patience)
        return _send(harness, receiver, options)
    finally:
        receiver.stop()
        harness.close()


def _send(harness: Harness, receiver: WebhookReceiver, options: argparse.Namespace) -> list[str]:
    names = [f"t-{number:05}" for number in range(options.tasks)]
    begin = time.monotonic()
    with ThreadPoolExecutor(8) as pool:
        creating = [pool.submit(harness.task, name) for name in names]
        _wait_until(
            lambda: len(receiver.accepted) >= options.tasks / 4, "a quarter sent", options.patience
        )
        _say(begin, receiver, "the receiver goes away")
        receiver.stop()
        time.sleep(options.away)
        receiver.start()
        _say(begin, receiver, "it is there again")
        for one in creating:
            one.result()
    wanted = {f"{harness.namespace}/{name}" for name in names}

    def found() -> set[str]:
        return {str(event["subject"]) for event in list(receiver.events.values())}

    try:
        _wait_until(lambda: len(receiver.accepted) >= len(names), "all sent", options.patience)
    except AssertionError as error:
        print(error)
    _say(begin, receiver, "over")
    wrong = [f"{subject} was not accepted" for subject in sorted(wanted - found())]
    wrong += [f"{subject} is of no Task" for subject in sorted(found() - wanted)]
    if len(receiver.events) != len(found()):
        wrong.append("a Task's end came with two ids")
    wrong += [
        f"{message_id} came with {len(bodies)} bodies"
        for message_id, bodies in receiver.bodies.items()
        if len(bodies) > 1
    ]
    if receiver.forged:
        wrong.append(f"{receiver.forged} requests whose signature is not right")
    return wrong


def _say(begin: float, receiver: WebhookReceiver, what: str) -> None:
    again = sum(receiver.accepted.values()) - len(receiver.accepted)
    print(
        f"{time.monotonic() - begin:6.0f} s: {what}: {len(receiver.accepted)} accepted, "
        f"{again} of them again, {receiver.refused} answered with 500",
        flush=True,
    )


def main() -> int:
    """Try it, print what is wrong, and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.faults.webhooks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--tasks", type=int, default=5000, help="(default: 5000)")
    parser.add_argument(
        "--failing", type=float, default=0.3, help="share that is answered with 500"
    )
    parser.add_argument("--away", type=float, default=60, help="seconds (default: 60)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--patience", type=float, default=1800, help="seconds until all is over")
    options = parser.parse_args()
    with sources(None) as tree:
        images.build_operator(_IMAGE, tree)
        cluster = open_cluster(DEFAULT_NAME, KUBECONFIG, with_images=False)
        at = install(cluster, _IMAGE, tree)
        networks = "TASKQUEUE_WEBHOOK_NETWORKS=public,10.0.0.0/8,172.16.0.0/12"
        at.kubectl.ok("set", "env", *_DEPLOYMENT, networks)
        settle(at.kubectl)
        wrong = _try(at, options)
    for line in wrong[:40]:
        print(f"WRONG: {line}")
    print(f"{len(wrong)} differences")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
