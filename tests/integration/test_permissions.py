"""What the API server lets the operator do: what its code asks for, verb by verb, and nothing else.

The API server is asked about every verb of every resource that it has, as of a decision of its own:
roles that somebody binds to the ServiceAccount, or to all, count too.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest

from devcluster.paths import CHECKOUT
from tests.conftest import Cluster, Kubectl
from tests.e2e import namespaced
from tests.e2e.api import Api

pytestmark = pytest.mark.cluster

VERBS = ("get", "list", "watch", "create", "update", "patch", "delete", "deletecollection")
#: Verbs that give more than a request.
POWERS = {
    "roles": ("bind", "escalate"),
    "clusterroles": ("bind", "escalate"),
    "serviceaccounts": ("impersonate",),
    "users": ("impersonate",),
    "groups": ("impersonate",),
}


class Right(NamedTuple):
    """A verb of a resource of an API group."""

    group: str
    resource: str
    verb: str


def rights(group: str, resource: str, **modules: str) -> dict[Right, str]:
    """Return rights, each with the module that uses it."""
    return {Right(group, resource, verb): module for verb, module in modules.items()}


#: In each namespace that is served: what the code asks for, and where.
SERVED: Mapping[Right, str] = {
    **rights(
        "taskqueue.dev",
        "tasks",
        get="controller/tasks/task_controller.py",
        list="kubernetes/informer.py",
        watch="kubernetes/informer.py",
        create="controller/schedules/run_creator.py",
        patch="controller/schedules/run_creator.py",
        delete="controller/tasks/ttl.py",
    ),
    **rights("taskqueue.dev", "tasks/status", patch="kubernetes/status_updater.py"),
    **rights(
        "taskqueue.dev",
        "taskbatches",
        get="controller/batches/batch_controller.py",
        list="kubernetes/informer.py",
        watch="kubernetes/informer.py",
        delete="controller/batches/finished_batches.py",
    ),
    **rights("taskqueue.dev", "taskbatches/status", patch="kubernetes/status_updater.py"),
    **rights(
        "taskqueue.dev",
        "taskschedules",
        get="controller/schedules/run_creator.py",
        list="kubernetes/informer.py",
        watch="kubernetes/informer.py",
    ),
    **rights("taskqueue.dev", "taskschedules/status", patch="kubernetes/status_updater.py"),
    **rights(
        "taskqueue.dev",
        "taskqueues",
        get="kubernetes/finalizers.py",
        list="controller/queues/queue_list.py",
        watch="controller/handlers.py",
        patch="kubernetes/finalizers.py",
    ),
    **rights("taskqueue.dev", "taskqueues/status", patch="controller/queues/claims.py"),
    **rights(
        "apps",
        "deployments",
        list="kubernetes/informer.py",
        watch="kubernetes/informer.py",
        create="kubernetes/deployments.py",
        patch="kubernetes/deployments.py",
    ),
    **rights("apps", "statefulsets", get="kubernetes/scale.py"),
    **rights("apps", "deployments/scale", get="kubernetes/scale.py", patch="kubernetes/scale.py"),
    **rights("apps", "statefulsets/scale", get="kubernetes/scale.py", patch="kubernetes/scale.py"),
    **rights("apps", "replicasets/scale", get="kubernetes/scale.py", patch="kubernetes/scale.py"),
    **rights(
        "",
        "pods",
        list="kubernetes/pods.py",
        patch="kubernetes/pods.py",
        delete="kubernetes/pods.py",
    ),
    **rights("", "secrets", get="kubernetes/broker_secret.py"),
    **rights(
        "",
        "configmaps",
        get="controller/tasks/config_maps.py",
        create="kubernetes/direct_limits.py",
        patch="kubernetes/direct_limits.py",
    ),
    **rights(
        "events.k8s.io", "events", create="kubernetes/event_api.py", patch="kubernetes/event_api.py"
    ),
    **rights("rabbitmq.com", "rabbitmqclusters", get="kubernetes/broker_secret.py"),
}

#: In the operator's own namespace. The Lease of a cluster-wide one is given by its name.
OWN: Mapping[Right, str] = {
    **rights("", "secrets", get="kubernetes/token_secret.py", create="kubernetes/token_secret.py"),
    **rights(
        "",
        "configmaps",
        get="controller/tasks/command_record.py",
        create="controller/tasks/command_record.py",
        patch="controller/tasks/command_record.py",
    ),
    **rights(
        "coordination.k8s.io",
        "leases",
        get="kubernetes/lease.py",
        create="kubernetes/lease.py",
        update="kubernetes/lease.py",
    ),
}
#: In a namespace whose TaskQueues may have managed credentials of workers.
MANAGED: Mapping[Right, str] = rights(
    "", "secrets", create="kubernetes/worker_secret.py", patch="kubernetes/worker_secret.py"
)
LEASE_BY_NAME = {Right("coordination.k8s.io", "leases", verb) for verb in ("get", "update")}


@pytest.mark.parametrize("module", sorted({*SERVED.values(), *OWN.values(), *MANAGED.values()}))
def test_a_right_is_for_a_module_that_there_is(module: str) -> None:
    assert (CHECKOUT / "operator" / "taskqueue" / module).is_file()


class Reviews:
    """Asks the API server what ServiceAccounts may do."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._all = set(self._discover())
        #: What every ServiceAccount may do.
        self._everybodys = self._allowed("default", "nobody", "", self._all)

    def allowed(self, operator: str, namespace: str) -> set[Right]:
        """Return what an operator may do in a namespace; "": in all of them, and outside."""
        account = namespaced.SERVICE_ACCOUNT
        # What everybody may do is asked about once.
        asked = self._all - self._everybodys | set(SERVED)
        return self._allowed(operator, account, namespace, asked)

    def may(self, operator: str, right: Right, namespace: str, name: str = "") -> bool:
        """Return whether an operator may use a right, of an object perhaps."""
        return self._ask(operator, namespaced.SERVICE_ACCOUNT, namespace, right, name)

    def _allowed(
        self, operator: str, account: str, namespace: str, asked: Iterable[Right]
    ) -> set[Right]:
        every = list(asked)
        with ThreadPoolExecutor(4) as pool:
            answers = pool.map(
                lambda right: self._ask(operator, account, namespace, right, ""), every
            )
            return {right for right, is_allowed in zip(every, answers, strict=True) if is_allowed}

    def _ask(self, operator: str, account: str, namespace: str, right: Right, name: str) -> bool:
        resource, _, subresource = right.resource.partition("/")
        spec = {
            "user": f"system:serviceaccount:{operator}:{account}",
            "groups": [
                "system:serviceaccounts",
                f"system:serviceaccounts:{operator}",
                "system:authenticated",
            ],
            "resourceAttributes": {
                "group": right.group,
                "resource": resource,
                "subresource": subresource,
                "verb": right.verb,
                "namespace": namespace,
                "name": name,
            },
        }
        path = "/apis/authorization.k8s.io/v1/subjectaccessreviews"
        answer = self._api.request("POST", path, {"spec": spec})
        return bool(answer["status"]["allowed"])

    def _discover(self) -> Iterator[Right]:
        lists = [("", "/api/v1")]
        for group in self._api.get("/apis")["groups"]:
            # Tests serve groups of their own meanwhile, which may vanish.
            if not group["name"].endswith(".taskqueue.dev"):
                version = group["preferredVersion"]["groupVersion"]
                lists.append((group["name"], f"/apis/{version}"))
        for name, path in lists:
            for resource in self._api.get(path)["resources"]:
                for verb in (*VERBS, *POWERS.get(resource["name"], ())):
                    yield Right(name, resource["name"], verb)
        for resource_name, verbs in POWERS.items():
            yield from (Right("", resource_name, verb) for verb in verbs)


@pytest.fixture(scope="module")
def reviews(cluster: Cluster) -> Reviews:
    return Reviews(Api(cluster.kubeconfig))


def test_a_cluster_wide_operator_may_do_what_it_needs_in_all_namespaces(reviews: Reviews) -> None:
    assert reviews.allowed("taskqueue-system", "") == set(SERVED)


def test_a_cluster_wide_operator_may_do_a_little_more_in_its_own_namespace(
    reviews: Reviews,
) -> None:
    own = "taskqueue-system"
    assert reviews.allowed(own, own) == (set(SERVED) | set(OWN)) - LEASE_BY_NAME
    for right in LEASE_BY_NAME:
        assert reviews.may(own, right, own, "taskqueue-operator")
        assert not reviews.may(own, right, own, "kube-scheduler")


@pytest.fixture(scope="module")
def installed(kubectl: Kubectl, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The prefix of the namespaces of a namespaced installation that serves two of them."""
    folder: Path = tmp_path_factory.mktemp("namespaced")
    prefix = f"rights-{uuid.uuid4().hex[:6]}"
    names = [f"{prefix}-{which}" for which in ("operator", "served", "managed", "other")]
    for name in names:
        kubectl.ok("create", "namespace", name)
    overlay = folder / "overlay"
    namespaced.write_overlay(overlay, operator=names[0], served=names[1:3], managed=[names[2]])
    objects = namespaced.rendered(kubectl, overlay)
    assert {one["kind"] for one in objects} == {
        "ServiceAccount",
        "Role",
        "RoleBinding",
        "Deployment",
        "PodDisruptionBudget",
    }
    namespaced.apply_rights(kubectl, objects)
    yield prefix
    for name in names:
        kubectl.ok("delete", "namespace", name, "--wait=false")


def test_a_namespaced_operator_has_these_rights_where_it_serves_only(
    reviews: Reviews, installed: str
) -> None:
    operator = f"{installed}-operator"
    assert reviews.allowed(operator, f"{installed}-served") == set(SERVED)
    assert reviews.allowed(operator, f"{installed}-managed") == set(SERVED) | set(MANAGED)
    assert reviews.allowed(operator, operator) == set(OWN)
    assert reviews.allowed(operator, f"{installed}-other") == set()
    assert reviews.allowed(operator, "") == set()


def test_the_manifest_of_a_namespaced_operator_can_be_installed(
    kubectl: Kubectl, installed: str, tmp_path: Path
) -> None:
    overlay = tmp_path / "overlay"
    names = [f"{installed}-operator", f"{installed}-served"]
    namespaced.write_overlay(overlay, operator=names[0], served=[names[1]])
    kubectl.ok("apply", "--dry-run=server", "-k", str(overlay))
    (deployment,) = (
        one for one in namespaced.rendered(kubectl, overlay) if one["kind"] == "Deployment"
    )
    pod = deployment["spec"]["template"]["spec"]
    assert "priorityClassName" not in pod
    values = {one["name"]: one for one in pod["containers"][0]["env"]}
    assert values["TASKQUEUE_WATCH_NAMESPACES"]["value"] == names[1]
    for name in ("POD_NAMESPACE", "TASKQUEUE_INSTALLATION"):
        assert values[name]["valueFrom"] == {"fieldRef": {"fieldPath": "metadata.namespace"}}


@pytest.fixture(scope="module")
def people(kubectl: Kubectl) -> Iterator[str]:
    """A namespace with ServiceAccounts that have Kubernetes' roles view, edit and admin."""
    kubectl.ok("apply", "-k", str(CHECKOUT / "manifests" / "roles"))
    name = f"people-{uuid.uuid4().hex[:6]}"
    kubectl.ok("create", "namespace", name)
    for role in ("view", "edit", "admin"):
        account = f"--serviceaccount={name}:{role}"
        kubectl.ok("-n", name, "create", "rolebinding", role, f"--clusterrole={role}", account)
    yield name
    kubectl.ok("delete", "namespace", name, "--wait=false")


@pytest.mark.parametrize(
    ("verb", "resource", "roles"),
    [
        ("get", "tasks", {"view", "edit", "admin"}),
        ("watch", "taskqueues", {"view", "edit", "admin"}),
        ("create", "tasks", {"edit", "admin"}),
        ("delete", "taskqueues", {"edit", "admin"}),
        ("patch", "taskqueues/scale", {"edit", "admin"}),
        ("patch", "taskqueues/status", {"admin"}),
        ("patch", "tasks/status", set()),
    ],
)
def test_the_roles_of_kubernetes_have_ours(
    kubectl: Kubectl, people: str, verb: str, resource: str, roles: set[str]
) -> None:
    resource, _, subresource = resource.partition("/")

    def may(role: str) -> bool:
        done = kubectl(
            "auth",
            "can-i",
            verb,
            f"{resource}.taskqueue.dev",
            *([f"--subresource={subresource}"] if subresource else []),
            "-n",
            people,
            f"--as=system:serviceaccount:{people}:{role}",
        )
        return done.returncode == 0

    assert {role for role in ("view", "edit", "admin") if may(role)} == roles
