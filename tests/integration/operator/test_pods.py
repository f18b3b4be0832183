"""Pods and sizes against a real API server: what is read, what is written, which pod goes."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from taskqueue.controller.pool.drain_plan import GOES_NEXT, PICKED
from taskqueue.kubernetes.client import ApiClient, load_access
from taskqueue.kubernetes.pods import delete_pod, list_pods, set_deletion_cost
from taskqueue.kubernetes.scale import ScaleTarget, TargetUnusable
from taskqueue.model.pod import Pod
from taskqueue.model.queue import ScaleTargetRef
from tests.conftest import Cluster, Kubectl

pytestmark = pytest.mark.cluster

SELECTOR = "app=w"
GROUP = "scale-tests.taskqueue.dev"


@pytest.fixture
async def client(cluster: Cluster) -> AsyncIterator[ApiClient]:
    client = ApiClient(await load_access(str(cluster.kubeconfig)))
    yield client
    await client.close()


def workload(
    kind: str, replicas: int, *, container: dict[str, Any] | None = None, **pod: Any
) -> dict[str, Any]:
    worker = {
        "name": "worker",
        "image": "taskqueue-operator:dev",
        "imagePullPolicy": "Never",
        "command": ["sleep", "600"],
        **(container or {}),
    }
    return {
        "apiVersion": "apps/v1",
        "kind": kind,
        "metadata": {"name": "w"},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": "w"}},
            "template": {
                "metadata": {"labels": {"app": "w"}},
                "spec": {"terminationGracePeriodSeconds": 0, "containers": [worker], **pod},
            },
        },
    }


def create(kubectl: Kubectl, namespace: str, body: Any) -> None:
    kubectl.ok("create", "-n", namespace, "-f", "-", input=json.dumps(body))


async def pods_when(
    client: ApiClient, namespace: str, holds: Callable[[tuple[Pod, ...]], bool]
) -> tuple[Pod, ...]:
    """Return the pods as soon as they are as asked for."""
    pods: tuple[Pod, ...] = ()
    try:
        async with asyncio.timeout(90):
            while not holds(pods):
                await asyncio.sleep(0.1)
                pods = await list_pods(client, namespace, SELECTOR)
    except TimeoutError:
        pytest.fail(f"the pods stay {pods}")
    return pods


def up(count: int) -> Callable[[tuple[Pod, ...]], bool]:
    return lambda pods: (
        len(pods) == count and all(pod.active and pod.started and pod.ready for pod in pods)
    )


async def test_pods_are_read_marked_and_deleted(
    client: ApiClient, kubectl: Kubectl, namespace: str
) -> None:
    create(kubectl, namespace, workload("Deployment", 2))
    one, other = await pods_when(client, namespace, up(2))
    assert one.owner == other.owner != ""
    assert one.assigned
    assert one.running_since is not None
    assert one.running_since >= one.created > 1.7e9
    assert (one.cost, one.restarts, one.trouble) == (0, 0, None)

    await set_deletion_cost(client, namespace, one, PICKED)
    marked = await pods_when(client, namespace, lambda pods: any(pod.cost for pod in pods))
    assert {pod.name: pod.cost for pod in marked} == {one.name: PICKED, other.name: 0}
    await set_deletion_cost(client, namespace, one, None)
    await pods_when(client, namespace, lambda pods: not any(pod.cost for pod in pods))

    # Another pod of that name, or none: nothing is written, and nothing is wrong.
    former = Pod(name=one.name, uid="00000000-0000-0000-0000-000000000000")
    gone = Pod(name="w-gone", uid="00000000-0000-0000-0000-000000000000")
    for pod in (former, gone):
        await set_deletion_cost(client, namespace, pod, PICKED)
        await delete_pod(client, namespace, pod)
    raw = await client.get(f"/api/v1/namespaces/{namespace}/pods/{one.name}")
    assert "deletionTimestamp" not in raw["metadata"]
    assert not raw["metadata"].get("annotations")

    await delete_pod(client, namespace, one)
    replaced = await pods_when(
        client,
        namespace,
        lambda pods: up(2)(pods) and one.uid not in {pod.uid for pod in pods},
    )
    assert other.uid in {pod.uid for pod in replaced}


async def test_the_controller_removes_the_marked_ones_in_the_order_of_their_marks(
    client: ApiClient, kubectl: Kubectl, namespace: str
) -> None:
    create(kubectl, namespace, workload("Deployment", 4))
    pods = await pods_when(client, namespace, up(4))
    first, second, *rest = sorted(pods, key=lambda pod: (pod.created, pod.name))
    await set_deletion_cost(client, namespace, second, PICKED)
    await set_deletion_cost(client, namespace, first, GOES_NEXT)
    await pods_when(client, namespace, lambda pods: sum(pod.cost < 0 for pod in pods) == 2)
    target = await ScaleTarget.find(client, namespace, ref("Deployment"))
    await target.resize(3)
    left = await pods_when(client, namespace, up(3))
    assert {pod.uid for pod in left} == {pod.uid for pod in (second, *rest)}
    await target.resize(2)
    left = await pods_when(client, namespace, up(2))
    assert {pod.uid for pod in left} == {pod.uid for pod in rest}


async def test_a_pod_that_is_not_ready_goes_before_a_marked_one(
    client: ApiClient, kubectl: Kubectl, namespace: str
) -> None:
    # Ready once somebody has made a file: told to one of them.
    probe = {"exec": {"command": ["cat", "/tmp/ready"]}, "periodSeconds": 1}  # noqa: S108
    body = workload("Deployment", 2, container={"readinessProbe": probe})
    create(kubectl, namespace, body)
    pods = await pods_when(
        client, namespace, lambda pods: len(pods) == 2 and all(pod.started for pod in pods)
    )
    ready, _ = pods
    kubectl.ok("exec", "-n", namespace, ready.name, "--", "touch", "/tmp/ready")  # noqa: S108
    await set_deletion_cost(client, namespace, ready, GOES_NEXT)
    await pods_when(
        client,
        namespace,
        lambda pods: any(pod.ready and pod.cost == GOES_NEXT for pod in pods),
    )
    await (await ScaleTarget.find(client, namespace, ref("Deployment"))).resize(1)
    left = await pods_when(client, namespace, up(1))
    assert [pod.uid for pod in left] == [ready.uid]


@pytest.mark.parametrize(
    ("changes", "reason", "text"),
    [
        ({"container": {"image": "nobody/has-it:1"}}, "ErrImageNeverPull", "container worker: "),
        ({"container": {"image": "Not An Image"}}, "InvalidImageName", "Not An Image"),
        (
            {"container": {"command": ["sh", "-c", "exit 3"]}},
            "CrashLoopBackOff",
            "worker ended with code 3",
        ),
        ({"nodeSelector": {"nobody": "has-it"}}, "Unschedulable", "nodes are available"),
        (
            {"container": {"envFrom": [{"secretRef": {"name": "nobody-has-it"}}]}},
            "CreateContainerConfigError",
            'secret "nobody-has-it" not found',
        ),
    ],
)
async def test_a_pod_says_what_is_wrong_with_it(
    client: ApiClient,
    kubectl: Kubectl,
    namespace: str,
    changes: dict[str, Any],
    reason: str,
    text: str,
) -> None:
    create(kubectl, namespace, workload("Deployment", 1, **changes))
    [pod] = await pods_when(
        client,
        namespace,
        lambda pods: any(pod.trouble is not None and pod.trouble.reason == reason for pod in pods),
    )
    assert pod.trouble is not None
    assert text in pod.trouble.message
    assert not pod.started


def ref(kind: str, api_version: str = "apps/v1", name: str = "w") -> ScaleTargetRef:
    return ScaleTargetRef(api_version=api_version, kind=kind, name=name)


async def test_a_stateful_set_gives_its_highest(
    client: ApiClient, kubectl: Kubectl, namespace: str
) -> None:
    body = workload("StatefulSet", 3)
    body["spec"] |= {
        "serviceName": "w",
        "ordinals": {"start": 4},
        "podManagementPolicy": "Parallel",
    }
    create(kubectl, namespace, body)
    pods = await pods_when(client, namespace, up(3))
    assert sorted(pod.ordinal or 0 for pod in pods) == [4, 5, 6]
    target = await ScaleTarget.find(client, namespace, ref("StatefulSet"))
    assert target.ordered
    assert await target.first_ordinal() == 4
    scale = await target.read()
    assert (scale.replicas, scale.current, scale.selector) == (3, 3, SELECTOR)
    await target.resize(1)
    left = await pods_when(client, namespace, up(1))
    assert [pod.name for pod in left] == ["w-4"]


@pytest.fixture
def pool_kind(kubectl: Kubectl) -> Iterator[str]:
    """A kind of its own with a scale subresource."""
    schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    crd = {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"puddles.{GROUP}"},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {"plural": "puddles", "singular": "puddle", "kind": "Puddle"},
            "versions": [
                {
                    "name": "v1",
                    "served": True,
                    "storage": True,
                    "schema": {"openAPIV3Schema": schema},
                    "subresources": {
                        "scale": {
                            "specReplicasPath": ".spec.size",
                            "statusReplicasPath": ".status.size",
                            "labelSelectorPath": ".status.selector",
                        }
                    },
                }
            ],
        },
    }
    kubectl.ok("create", "-f", "-", input=json.dumps(crd))
    kubectl.ok("wait", "--for=condition=Established", "--timeout=30s", f"crd/puddles.{GROUP}")
    yield "Puddle"
    kubectl.ok("delete", f"crd/puddles.{GROUP}", "--wait=false")


async def test_any_kind_with_a_scale_subresource_can_be_resized(
    client: ApiClient, kubectl: Kubectl, namespace: str, pool_kind: str
) -> None:
    version = f"{GROUP}/v1"
    create(
        kubectl,
        namespace,
        {
            "apiVersion": version,
            "kind": pool_kind,
            "metadata": {"name": "w"},
            "spec": {"size": 2},
            "status": {"size": 1, "selector": SELECTOR},
        },
    )
    target = await ScaleTarget.find(client, namespace, ref(pool_kind, version))
    assert not target.ordered
    scale = await target.read()
    assert (scale.replicas, scale.current, scale.selector) == (2, 1, SELECTOR)
    await target.resize(5)
    assert (await target.read()).replicas == 5
    size = kubectl.ok("get", "-n", namespace, f"puddles.{GROUP}/w", "-o", "jsonpath={.spec.size}")
    assert size == "5"
    with pytest.raises(TargetUnusable, match="refuses the size"):
        await target.resize(-1)


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        (ref("Deployment", name="nobody"), "ScaleTargetNotFound"),
        (ref("Nothing"), "ScaleTargetUnknown"),
        (ref("Deployment", "nowhere.example/v1"), "ScaleTargetUnknown"),
        (ref("ConfigMap", "v1"), "ScaleTargetUnusable"),
        (ref("Namespace", "v1"), "ScaleTargetUnusable"),
    ],
)
async def test_what_cannot_be_scaled_says_what_to_do(
    client: ApiClient, namespace: str, target: ScaleTargetRef, reason: str
) -> None:
    with pytest.raises(TargetUnusable) as told:
        await (await ScaleTarget.find(client, namespace, target)).read()
    assert told.value.reason == reason
