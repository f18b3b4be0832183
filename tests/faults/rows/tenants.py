"""Section C: one tenant neither speaks for another, nor sees what is not his."""

from __future__ import annotations

import asyncio
import base64
import json
import struct
import time
from typing import Any

from taskqueue.amqp.connection import connect
from taskqueue.amqp.parameters import BrokerParameters
from taskqueue.amqp.publisher import Publisher
from taskqueue.contract import heartbeat
from taskqueue.contract.heartbeat import Heartbeat
from taskqueue.contract.names import DIRECT_EXCHANGE, HEARTBEATS_EXCHANGE, HEARTBEATS_QUEUE
from taskqueue.kubernetes.worker_secret import ROTATED_ANNOTATION
from taskqueue.model.worker import WorkerState
from taskqueue.timestamps import to_rfc3339
from tests.e2e.api import Body
from tests.e2e.harness import OPERATOR, OPERATOR_NAMESPACE
from tests.faults.rows import row
from tests.faults.rows.edits import first_attempt, hold
from tests.faults.rows.site import PATIENCE, Site, holds_within
from tests.fuzz import field_tables as tables
from tests.integration.amqp.messages import properties

_FENCE = 2**63 - 1
#: How long a forged heartbeat has to take effect.
_EFFECT_SECONDS = 20.0


def _pods(site: Site) -> list[str]:
    return sorted(pod["metadata"]["uid"] for pod in site.harness.pods())


def queue_status(site: Site) -> Body:
    """Return the status of TaskQueue q."""
    status: Body = site.at.api.get(site.harness.path("taskqueues", "q"))["status"]
    return status


def restricted(site: Site, **container: Any) -> Body:
    """Return the pod template as Kubernetes' profile "restricted" wants it."""
    template = site.template()
    own = template["spec"]["containers"][0]
    own |= {
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        **container,
    }
    own["volumeMounts"].append({"name": "scratch", "mountPath": "/tmp"})  # noqa: S108 - of the pod
    template["spec"]["volumes"].append({"name": "scratch", "emptyDir": {}})
    return template


@row(
    "C1",
    "heartbeats sent in another virtual host, whose TaskQueue is the attacker's: busy 100,000 at "
    "the victim's queue, and stopped for its pod",
    "the victim's pool stays as it is, with the same pod",
)
def _forged_heartbeats(site: Site) -> str:
    site.queue(scaling={"maxReplicas": 5})
    site.harness.registered(1)
    other = f"{site.namespace}-other"
    site.harness.broker_api("PUT", f"vhosts/{other}", {"default_queue_type": "quorum"})
    try:
        everything = {"configure": ".*", "write": ".*", "read": ".*"}
        user = site.at.rabbitmq.username
        site.harness.broker_api("PUT", f"permissions/{other}/{user}", everything)
        site.harness.secret("other", vhost=other)
        elsewhere = {"connectionSecret": {"name": "other"}}
        site.harness.queue("spy", broker=elsewhere, workers={"template": None})
        site.harness.condition("BrokerConnected", "True", "Connected", "spy")
        before = _pods(site)
        (pod,) = (found["metadata"]["name"] for found in site.harness.pods())
        end = time.monotonic() + _EFFECT_SECONDS
        while time.monotonic() < end:
            asyncio.run(_forge(site, other, pod))
            status = queue_status(site)
            assert status["desiredReplicas"] == 1, f"{status['desiredReplicas']} are wanted"
            time.sleep(1)
        assert _pods(site) == before, "the victim's pod was replaced"
        return f"1 worker, the same pod; {site.works()}"
    finally:
        site.harness.delete_queue("spy")
        site.harness.broker_api("DELETE", f"vhosts/{other}")


async def _forge(site: Site, virtual_host: str, pod: str) -> None:
    """Send heartbeats about TaskQueue q in a virtual host that it does not use."""
    connection = await connect(
        BrokerParameters(
            host=site.at.rabbitmq.host,
            port=site.at.rabbitmq.port,
            username=site.at.rabbitmq.username,
            password=site.at.rabbitmq.password,
            virtual_host=virtual_host,
        ),
        name="faults",
    )
    publisher = await Publisher.open(connection)
    for name, state, busy in ((pod, WorkerState.STOPPED, 0), ("x", WorkerState.READY, 100_000)):
        forged = Heartbeat(
            namespace=site.namespace,
            queue="q",
            pod=name,
            node="",
            cpus=1,
            slots=1,
            handlers=(),
            running=(),
            state=state,
            busy=busy,
        )
        body = heartbeat.encode(forged)
        # By the exchange, and past its bindings.
        for exchange, key in ((HEARTBEATS_EXCHANGE, forged.routing_key), ("", HEARTBEATS_QUEUE)):
            await publisher.publish_and_wait(exchange, key, body, properties())
    await connection.close()


# Credentials.


def _permit_credentials(site: Site) -> None:
    """Let the operator write Secrets in the row's namespace, as docs/operations.md says."""
    site.at.kubectl.ok(
        *("create", "rolebinding", "taskqueue-operator-credentials", "-n", site.namespace),
        "--clusterrole=taskqueue-operator-credentials",
        f"--serviceaccount={OPERATOR_NAMESPACE}:{OPERATOR}",
    )


def _managed(site: Site, *, slots: int = 1, template: Body | None = None) -> None:
    """Create TaskQueue q, whose workers have a broker user of their own."""
    _permit_credentials(site)
    address = "http://rabbitmq.rabbitmq.svc.cluster.local:15672"
    site.harness.secret("rabbit", vhost=site.vhost, managementUri=address)
    site.harness.queue(
        scaling={"minReplicas": 1, "maxReplicas": 1},
        workers={
            "concurrency": slots,
            "template": template or restricted(site),
            "credentials": {"type": "Managed", "rotationSeconds": 3600},
        },
    )
    site.harness.condition("CredentialsReady", "True", "Managed", seconds=PATIENCE)
    site.harness.ready(seconds=PATIENCE)


def _worker_login(site: Site) -> tuple[str, str]:
    data = site.at.api.get(site.harness.core("secrets", "q-worker"))["data"]
    user, password = (base64.b64decode(data[key]).decode() for key in ("username", "password"))
    return user, password


@row(
    "C2",
    "a handler and a program that print what they find in their environment, in /proc of every "
    "process and in the files of the broker's Secret; credentials Managed",
    "no password, neither the operator's nor the worker's; it works with its own user",
)
def _looks_around(site: Site) -> str:
    program = ["worker", "broken", "--command", f"program={_LOOK}"]
    _managed(site, template=restricted(site, args=program))
    user, password = _worker_login(site)
    assert user != site.at.rabbitmq.username
    seen = []
    for handler in ("look_around", "program"):
        status = site.end(handler, payload={})
        assert status["phase"] == "Succeeded", f"{handler}: {status}"
        text = json.dumps(status["result"])
        for secret, whose in ((site.at.rabbitmq.password, "operator"), (password, "worker")):
            assert secret not in text, f"{handler} has found the {whose}'s password"
        found = status["result"]
        seen.append(f"{handler}: nothing in {found['read']} files, {found['refused']} refused")
    assert not site.harness.broker_api("GET", f"users/{user}")["tags"]
    return "; ".join(seen)


#: The same for a handler and a program.
_LOOK = "python3 /handlers/look.py"


@row(
    "C3",
    "a direct message with tq-fence 2^63-1 and all other headers of a Task's",
    "the handler has no fence",
)
def _forged_fence(site: Site) -> str:
    site.queue()
    entries = [
        (b"tq-version", b"I\x00\x00\x00\x01"),
        (b"tq-fence", b"l" + struct.pack(">q", _FENCE)),
        (b"tq-token", tables.long_string(b"S", b"k1.forged")),
        *(
            (name, tables.long_string(b"S", text.encode()))
            for name, text in (
                (b"tq-namespace", site.namespace),
                (b"tq-queue", "q"),
                (b"tq-task", "forged"),
            )
        ),
        *((name, b"I\x00\x00\x00\x01") for name in (b"tq-attempt", b"tq-max-attempts")),
        *((name, b"I\x00\x00\x00\x03") for name in (b"tq-epoch", b"tq-max-deliveries")),
        (b"tq-timeout-seconds", b"I\x00\x00\x00\x1e"),
    ]
    values = {
        tables.HEADERS: tables.table(entries),
        tables.SHORT_STRINGS["type"]: tables.short(b"show_fence"),
        tables.SHORT_STRINGS["correlation_id"]: tables.short(b"uid-1"),
    }
    site.publish(DIRECT_EXCHANGE, site.key, tables.encoded_properties(values), b"{}")
    shown = holds_within(PATIENCE, lambda: "fence is" in site.harness.worker_log())
    assert shown, "the message was not run"
    log = site.harness.worker_log()
    assert str(_FENCE) not in log, "the handler got the forged fence"
    return f"fence is None; {site.works()}"


@row(
    "C8",
    "managed credentials rotate while an attempt runs; later the TaskQueue is deleted",
    "it goes on in the same pod; new connections are another user; the former password is refused, "
    "and no user is left",
)
def _rotation(site: Site) -> str:
    _managed(site, slots=2)
    before, first = _pods(site), _worker_login(site)
    hold(site, "long")
    _rotate(site, 10_001)
    assert holds_within(120, lambda: _worker_login(site) != first), "nothing is rotated"
    second = _worker_login(site)
    assert second[0] != first[0]
    site.works("meanwhile")
    _rotate(site, 400)
    revoked = holds_within(120, lambda: not _logs_in(site, *first))
    assert revoked, "the former password is still accepted"
    assert _logs_in(site, *second), "the new one is not"
    status = first_attempt(site, "long")
    site.harness.condition("WorkersAvailable", "True", "Available")
    assert _pods(site) == before, "a pod was replaced"
    site.harness.delete_queue("q")
    left = [user["name"] for user in site.harness.broker_api("GET", "users")]
    assert not {first[0], second[0]} & set(left), f"users are left: {left}"
    return f"{status}; the former password is refused; no user is left"


def _rotate(site: Site, age: float) -> None:
    """Let the credentials be so many seconds old."""
    rotated = {ROTATED_ANNOTATION: to_rfc3339(time.time() - age)}
    path = site.harness.core("secrets", "q-worker")
    site.at.api.patch(path, {"metadata": {"annotations": rotated}})
    # Another spec is looked at now, and not within a minute.
    seconds = 3600 + round(age) % 1000
    site.harness.change_queue(workers={"credentials": {"rotationSeconds": seconds}})


def _logs_in(site: Site, user: str, password: str) -> bool:
    async def attempt() -> bool:
        parameters = BrokerParameters(
            host=site.at.rabbitmq.host,
            port=site.at.rabbitmq.port,
            username=user,
            password=password,
            virtual_host=site.vhost,
        )
        try:
            await (await connect(parameters, name="faults")).close()
        except Exception:
            return False
        return True

    return asyncio.run(attempt())
