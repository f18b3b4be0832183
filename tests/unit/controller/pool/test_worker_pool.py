"""The pool is resized even if its template was rejected, and loses drained workers only."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import pytest

from taskqueue.controller.pool.autoscaler import Load
from taskqueue.controller.pool.disconnected import CONNECT_SECONDS
from taskqueue.controller.pool.poll_backoff import FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS
from taskqueue.controller.pool.pool_members import WorkerObservations
from taskqueue.controller.pool.worker_pool import WorkerPool
from taskqueue.controller.pool.worker_registry import WorkerView
from taskqueue.kubernetes.client import ApiClient, ApiError
from taskqueue.kubernetes.deployments import PoolState
from taskqueue.kubernetes.pods import COST_ANNOTATION
from taskqueue.model.queue import (
    ClusterRef,
    CredentialsPolicy,
    CredentialsType,
    QueueConfig,
    ScaleTargetRef,
)
from taskqueue.model.scaling import BacklogTarget, ScalingPolicy
from taskqueue.model.task import Policy
from taskqueue.model.worker import WorkerState
from taskqueue.timestamps import to_rfc3339

CONFIG = QueueConfig(
    namespace="shop",
    name="q",
    uid="u",
    generation=1,
    connection_secret="rabbit",
    template={"spec": {"containers": [{"name": "main"}]}},
    scaling=ScalingPolicy(
        target=BacklogTarget(1), stabilization_seconds=0, idle_seconds_before_zero=0
    ),
)
NOBODY = WorkerObservations(views={}, unused=1000.0, listened=1000.0)


class FakeCluster:
    """An API server with one Deployment, whose pods are as the test says."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.applied: list[int] = []
        self.environment: dict[str, str | None] = {}
        self.refusal: ApiError | None = None
        #: What was written to the ConfigMap, and why it is refused.
        self.limits: list[dict[str, str]] = []
        self.limits_refusal: ApiError | None = None
        #: Grace periods of the applied templates.
        self.grace: list[int] = []
        self.pods: dict[str, dict[str, Any]] = {}
        self.deleted: list[str] = []
        self.lists = 0
        self.forbidden = False
        #: Of Deployment encoders; None: there is none.
        self.scale: int | None = None

    def add_pods(self, *names: str, waiting: str = "") -> None:
        for name in names:
            state: dict[str, Any] = {"running": {"startedAt": "2026-01-01T00:00:00Z"}}
            if waiting:
                state = {"waiting": {"reason": waiting, "message": "no such image"}}
            self.pods[name] = {
                "metadata": {
                    "name": name,
                    "uid": f"uid-{name}",
                    "creationTimestamp": "2026-01-01T00:00:00Z",
                    "ownerReferences": [{"uid": "rs", "controller": True}],
                },
                "spec": {"nodeName": "n"},
                "status": {
                    "phase": "Pending" if waiting else "Running",
                    "conditions": [{"type": "Ready", "status": str(not waiting)}],
                    "containerStatuses": [{"name": "main", "restartCount": 0, "state": state}],
                },
            }

    async def get(self, path: str, **params: str) -> dict[str, Any]:
        if path == "/apis/apps/v1":
            names = {"deployments": "Deployment", "deployments/scale": "Scale"}
            return {
                "resources": [
                    {"name": name, "kind": kind, "namespaced": True} for name, kind in names.items()
                ]
            }
        if path.endswith("/deployments/encoders/scale"):
            if self.scale is None:
                raise ApiError(404, "NotFound", "no")
            status = {"replicas": self.scale, "selector": "app=encoder"}
            return {"spec": {"replicas": self.scale}, "status": status}
        assert path.endswith("/pods")
        assert params["labelSelector"] in ("taskqueue.dev/queue=q", "app=encoder")
        if self.forbidden:
            raise ApiError(403, "Forbidden", "pods is forbidden")
        self.lists += 1
        return {"items": list(self.pods.values())}

    async def merge(self, path: str, body: Any) -> dict[str, Any]:
        metadata = self.pods[path.rpartition("/")[2]]["metadata"]
        metadata["annotations"] = body["metadata"]["annotations"]
        return {}

    async def request(self, method: str, path: str, *, body: Any, **_: Any) -> dict[str, Any]:
        if method == "DELETE":
            self.deleted.append(path.rpartition("/")[2])
        else:
            assert path.endswith("/scale")
            self.sizes.append(body["spec"]["replicas"])
        return {}

    async def apply(self, path: str, body: Any, *, manager: str) -> dict[str, Any]:
        if path.endswith("/configmaps/q-worker"):
            if self.limits_refusal is not None:
                raise self.limits_refusal
            self.limits.append(body["data"])
            return {}
        if self.refusal is not None:
            raise self.refusal
        self.grace.append(body["spec"]["template"]["spec"]["terminationGracePeriodSeconds"])
        self.applied.append(body["spec"]["replicas"])
        (container,) = body["spec"]["template"]["spec"]["containers"]
        self.environment = {each["name"]: each.get("value") for each in container["env"]}
        status = {"availableReplicas": body["spec"]["replicas"]}
        return {"metadata": {"generation": 1}, "spec": body["spec"], "status": status}


class PoolCase:
    """A pool and its cluster, with a clock of the test's own."""

    def __init__(self) -> None:
        self.cluster, self.now = FakeCluster(), 100.0
        self.commanded: list[str] = []
        self.seen: set[str] = set()
        self.conflict = ""
        self.pool = WorkerPool(
            cast(ApiClient, self.cluster),
            clock=lambda: 1_800_000_000 + self.now,
            send_drain=self.commanded.append,
            installation="team-a",
            on_pods=self.seen.update,
            sizing_conflict=lambda config: self.conflict if config.scale_target else "",
            monotonic=lambda: self.now,
        )
        self.observe(2)

    def observe(self, size: int, *, available: int | None = None, message: str = "") -> None:
        self.pool.on_deployment_state(
            PoolState(
                desired=size,
                replicas=size,
                available=size if available is None else available,
                message=message,
            )
        )

    async def reconcile(
        self,
        backlog: int | None,
        config: QueueConfig = CONFIG,
        observations: WorkerObservations = NOBODY,
        secret: tuple[str, str] | None = None,
    ) -> None:
        await self.pool.reconcile(config, Load(backlog=backlog), observations, secret=secret)
        self.now += FIRST_PAUSE_SECONDS


@pytest.fixture
def case() -> PoolCase:
    return PoolCase()


def observed(
    states: Mapping[str, WorkerState], *, now: float = 100.0, busy: tuple[str, ...] = ()
) -> WorkerObservations:
    views = {
        pod: WorkerView(
            pod=pod,
            slots=1,
            busy=int(pod in busy),
            running=int(pod in busy),
            state=state,
            seen=now,
        )
        for pod, state in states.items()
    }
    return WorkerObservations(views=views, unused=0.0, listened=1000.0)


READY, DRAINING, STOPPED = WorkerState.READY, WorkerState.DRAINING, WorkerState.STOPPED


async def test_a_template_is_applied_once_and_a_size_alone_goes_through_scale(
    case: PoolCase,
) -> None:
    for backlog in (2, 4, 4):
        await case.reconcile(backlog)
    assert (case.cluster.applied, case.cluster.sizes) == ([2], [4])


async def test_workers_know_the_installation(case: PoolCase) -> None:
    await case.reconcile(2)
    assert case.cluster.environment["TASKQUEUE_INSTALLATION"] == "team-a"


async def test_a_deleted_deployment_is_created_again_at_the_decided_size(case: PoolCase) -> None:
    case.pool.on_deployment_state(None)
    await case.reconcile(7)
    assert (case.cluster.applied, case.cluster.sizes) == ([7], [])


async def test_a_changed_template_does_not_shrink_the_pool_by_itself(case: PoolCase) -> None:
    case.cluster.add_pods("a", "b")
    await case.reconcile(1, observations=observed({"a": READY, "b": READY}, busy=("a", "b")))
    assert (case.cluster.applied, case.cluster.sizes) == ([2], [])


async def test_a_withdrawn_template_takes_its_workers_along_once_they_have_drained(
    case: PoolCase,
) -> None:
    case.cluster.add_pods("a", "b")
    withdrawn = replace(CONFIG, template=None)
    await case.reconcile(5, withdrawn, observed({"a": READY, "b": READY}, busy=("a",)))
    assert (sorted(case.commanded), case.cluster.sizes) == (["a", "b"], [])
    await case.reconcile(5, withdrawn, observed({"a": DRAINING, "b": STOPPED}, now=case.now))
    assert case.cluster.sizes == [1]
    case.observe(1)
    del case.cluster.pods["b"]
    await case.reconcile(5, withdrawn, observed({"a": STOPPED}, now=case.now))
    assert case.cluster.sizes == [1, 0]


async def test_the_former_pool_is_resized_while_a_changed_template_is_refused(
    case: PoolCase,
) -> None:
    case.cluster.refusal = ApiError(422, "Invalid", "no such field")
    await case.reconcile(7)
    assert case.cluster.sizes == [7]
    assert case.pool.is_refused(CONFIG)
    workers, _ = case.pool.conditions(CONFIG)
    assert (workers.status, workers.reason) == (False, "InvalidTemplate")


OF_CLUSTER = replace(CONFIG, connection_secret="", rabbitmq_cluster=ClusterRef("broker", "rabbit"))


async def test_a_pool_waits_for_the_secret_of_a_rabbitmq_cluster(case: PoolCase) -> None:
    here = replace(OF_CLUSTER, rabbitmq_cluster=ClusterRef("shop", "rabbit"))
    await case.reconcile(3, here)
    # What is there is sized all the same.
    assert (case.cluster.applied, case.cluster.sizes) == ([], [3])
    await case.reconcile(3, here, secret=("shop", "rabbit-default-user"))
    await case.reconcile(3, here, secret=("shop", "rabbit-default-user"))
    assert case.cluster.applied == [3]
    await case.reconcile(3, here, secret=("shop", "renamed"))
    assert case.cluster.applied == [3, 3]


@pytest.mark.parametrize("kind", [CredentialsType.SECRET, CredentialsType.MANAGED])
@pytest.mark.parametrize("config", [CONFIG, OF_CLUSTER])
async def test_a_pool_waits_for_credentials_of_its_own(
    case: PoolCase, config: QueueConfig, kind: CredentialsType
) -> None:
    own = replace(config, credentials=CredentialsPolicy(type=kind))
    await case.reconcile(3, own)
    assert (case.cluster.applied, case.cluster.sizes) == ([], [3])
    await case.reconcile(3, own, secret=("shop", "own"))
    assert case.cluster.applied == [3]
    assert "TASKQUEUE_BROKER_HOST" not in case.cluster.environment


async def test_workers_of_another_namespace_than_the_cluster_need_an_address_of_their_own(
    case: PoolCase,
) -> None:
    await case.reconcile(3, OF_CLUSTER, secret=("broker", "rabbit-default-user"))
    assert case.cluster.applied == []
    workers, _ = case.pool.conditions(OF_CLUSTER)
    assert (workers.status, workers.reason) == (False, "InvalidTemplate")
    assert "TASKQUEUE_BROKER_URI" in workers.message


# Shrinking.


async def test_a_worker_is_drained_and_marked_before_the_size_is_lowered(
    case: PoolCase,
) -> None:
    case.cluster.add_pods("busy", "idle")
    await case.reconcile(1, observations=observed({"busy": READY, "idle": READY}, busy=("busy",)))
    assert (case.commanded, case.cluster.sizes) == (["idle"], [])
    assert case.seen == {"busy", "idle"}
    assert "waits for idle" in case.pool.explanation
    await case.reconcile(
        1, observations=observed({"busy": READY, "idle": DRAINING}, busy=("busy",))
    )
    assert (case.commanded, case.cluster.sizes) == (["idle"], [])
    await case.reconcile(
        1, observations=observed({"busy": READY, "idle": STOPPED}, busy=("busy",), now=case.now)
    )
    assert case.cluster.sizes == [1]
    assert COST_ANNOTATION in case.cluster.pods["idle"]["metadata"]["annotations"]
    assert "annotations" not in case.cluster.pods["busy"]["metadata"]


async def test_drain_command_is_repeated_for_a_worker_that_does_not_answer(case: PoolCase) -> None:
    case.cluster.add_pods("a", "b")
    silent = observed({"a": READY, "b": READY})
    for _ in range(20):
        await case.reconcile(1, observations=silent)
    assert case.commanded == ["a", "a"] or case.commanded == ["b", "b"]
    assert case.cluster.sizes == []


async def test_a_drained_worker_that_is_wanted_again_is_replaced(case: PoolCase) -> None:
    case.cluster.add_pods("a", "b")
    await case.reconcile(2, observations=observed({"a": READY, "b": STOPPED}, now=case.now))
    assert (case.cluster.deleted, case.cluster.sizes) == (["b"], [])


async def test_a_paused_pool_is_shrunk_the_same_way(case: PoolCase) -> None:
    case.cluster.add_pods("a", "b")
    config = replace(CONFIG, scaling=ScalingPolicy(paused_replicas=0))
    working = observed({"a": READY, "b": READY}, busy=("a", "b"))
    await case.reconcile(9, config, observations=working)
    assert (sorted(case.commanded), case.cluster.sizes) == (["a", "b"], [])
    assert case.pool.desired == 0
    await case.reconcile(
        9, config, observations=observed({"a": STOPPED, "b": STOPPED}, now=case.now)
    )
    assert case.cluster.sizes == [0]


async def test_a_settled_pool_costs_no_requests(case: PoolCase) -> None:
    for _ in range(5):
        await case.reconcile(2, observations=observed({"a": READY, "b": READY}))
    assert case.cluster.lists == 0


async def test_pods_are_not_listed_at_each_reconcile(case: PoolCase) -> None:
    case.cluster.add_pods("a", "b")
    for _ in range(20):
        await case.pool.reconcile(CONFIG, Load(backlog=1), observed({"a": READY, "b": READY}))
    assert case.cluster.lists == 1


async def test_pods_are_listed_at_once_when_a_worker_has_stopped(case: PoolCase) -> None:
    case.cluster.add_pods("a", "b")
    load = Load(backlog=1)
    await case.pool.reconcile(CONFIG, load, observed({"a": READY, "b": READY}))
    (picked,) = case.commanded
    stopped = {"a": READY, "b": READY} | {picked: STOPPED}
    for _ in range(3):
        await case.pool.reconcile(CONFIG, load, observed(stopped, now=case.now))
    assert (case.cluster.lists, case.cluster.sizes) == (2, [1])


async def test_pods_are_listed_less_and_less_often_while_nothing_changes(case: PoolCase) -> None:
    case.cluster.add_pods("a", "b")
    busy = observed({"a": READY, "b": DRAINING}, busy=("a", "b"))
    for _ in range(120):  # a minute
        await case.reconcile(1, observations=busy)
    assert 10 <= case.cluster.lists <= 60 / LONGEST_PAUSE_SECONDS + 5


async def test_forbidden_pods_are_reported_and_the_pool_is_still_sized(case: PoolCase) -> None:
    case.cluster.forbidden = True
    case.cluster.add_pods("a", "b")
    await case.reconcile(1, observations=observed({"a": READY, "b": READY}))
    assert "manifests/base/rbac.yaml" in case.pool.explanation
    await case.reconcile(5, observations=observed({"a": READY, "b": READY}))
    assert case.cluster.sizes == [5]


# What spec.workers.scaleTargetRef names.

REF = ScaleTargetRef(api_version="apps/v1", kind="Deployment", name="encoders")
REFERRING = replace(CONFIG, template=None, scale_target=REF)


async def test_nothing_is_decided_while_a_workload_is_not_known(case: PoolCase) -> None:
    case.pool.on_deployment_state(None)
    case.cluster.scale = None
    await case.reconcile(0, REFERRING)
    assert case.pool.decision is None
    workers, scaling = case.pool.conditions(REFERRING)
    assert (workers.reason, scaling.reason) == ("ScaleTargetNotFound", "ScaleTargetNotFound")
    case.cluster.scale = 10
    case.now += 10
    await case.reconcile(None, REFERRING)
    assert case.pool.explanation.startswith("10 held: the backlog is unknown")
    assert case.pool.selector(REFERRING) == "app=encoder"


async def test_a_workload_taken_over_begins_with_its_own_size(case: PoolCase) -> None:
    await case.reconcile(2)
    case.cluster.scale = 10
    await case.reconcile(None, REFERRING)
    assert case.pool.desired == 10


async def test_a_workload_of_somebody_else_is_left_alone(case: PoolCase) -> None:
    case.conflict = "it is already sized by TaskQueue p: name another one"
    case.pool.on_deployment_state(None)
    case.cluster.scale = 10
    await case.reconcile(0, REFERRING)
    workers, _ = case.pool.conditions(REFERRING)
    assert (workers.reason, workers.message) == ("ScaleTargetUnusable", case.conflict)
    assert case.cluster.sizes == []


async def test_pods_of_a_referenced_workload_are_listed_even_when_it_is_settled(
    case: PoolCase,
) -> None:
    case.pool.on_deployment_state(None)
    case.cluster.scale = 2
    case.cluster.add_pods("a", "b")
    for _ in range(8):
        await case.reconcile(2, REFERRING)
    workers, _ = case.pool.conditions(REFERRING)
    assert (workers.status, workers.reason) == (True, "Available")
    case.cluster.add_pods("a", "b", waiting="CrashLoopBackOff")
    for _ in range(30):
        await case.reconcile(2, REFERRING)
    workers, _ = case.pool.conditions(REFERRING)
    assert (workers.status, workers.reason) == (False, "CrashLoopBackOff")


# Trouble.


async def test_a_failing_pool_says_why_and_does_not_grow(case: PoolCase) -> None:
    await case.reconcile(2)
    case.cluster.add_pods("a", "b", waiting="ImagePullBackOff")
    case.observe(2, available=0)
    await case.reconcile(2)
    await case.reconcile(9)
    workers, _ = case.pool.conditions(CONFIG)
    assert (workers.status, workers.reason) == (False, "ImagePullBackOff")
    assert "no such image" in workers.message
    assert case.cluster.sizes == []
    assert case.pool.explanation.startswith("2 is all that can be had")
    case.cluster.add_pods("a", "b")
    case.observe(2)
    await case.reconcile(9)
    await case.reconcile(9)
    assert case.cluster.sizes == [9]
    case.observe(9)
    workers, _ = case.pool.conditions(CONFIG)
    assert (workers.status, workers.reason) == (True, "Available")


async def test_pods_refused_by_a_quota_are_not_asked_for_again_and_again(case: PoolCase) -> None:
    case.cluster.add_pods("a", "b")
    full = "pods is forbidden: exceeded quota: tight"
    await case.reconcile(6)
    tries: list[int] = []
    for _ in range(400):  # 200 s
        if len(case.cluster.sizes) > len(tries):
            tries = list(case.cluster.sizes)
        size = tries[-1]
        case.observe(size, available=2, message=full if size > 2 else "")
        await case.reconcile(6)
        workers, _ = case.pool.conditions(CONFIG)
        assert (workers.status, workers.reason) == (False, "QuotaExceeded")
    assert tries == [6, 2] * 5  # after 10, 20, 40 and 60 s


async def test_an_unknown_backlog_changes_nothing(case: PoolCase) -> None:
    await case.reconcile(None)
    _, scaling = case.pool.conditions(CONFIG)
    assert (scaling.status, scaling.reason) == (False, "BacklogUnknown")
    assert case.cluster.sizes == []


async def test_workers_elsewhere_are_not_sized(case: PoolCase) -> None:
    elsewhere = replace(CONFIG, template=None)
    case.pool.on_deployment_state(None)
    await case.reconcile(5, elsewhere)
    assert (case.cluster.applied, case.cluster.sizes) == ([], [])
    workers, scaling = case.pool.conditions(elsewhere)
    assert (workers.status, workers.reason) == (None, "WorkersElsewhere")
    assert (scaling.status, scaling.reason) == (False, "WorkersElsewhere")


async def test_an_edit_of_the_limits_leaves_the_template_and_never_lowers_the_grace() -> None:
    case = PoolCase()
    for seconds, deliveries in ((300, 3), (20, 5), (600, 5)):
        policy = Policy(attempt_timeout_seconds=seconds, max_deliveries=deliveries)
        await case.reconcile(1, replace(CONFIG, policy=policy))
    assert [tuple(limits.values()) for limits in case.cluster.limits] == [
        ("300", "3"),
        ("20", "5"),
        ("600", "5"),
    ]
    assert case.cluster.grace == [330, 330, 630]


async def test_a_pool_does_not_wait_for_the_permission_to_write_limits() -> None:
    case = PoolCase()
    case.cluster.limits_refusal = ApiError(403, "Forbidden", "configmaps is forbidden")
    await case.reconcile(1)
    assert case.cluster.applied
    case.cluster.limits_refusal = None
    case.now += 5
    await case.reconcile(1)
    assert case.cluster.limits, "tried again without a change of the TaskQueue"


# Workers without a connection to the broker.


def connected(*pods: str, consumers: int, listened: float = 1000.0) -> WorkerObservations:
    seen = observed(dict.fromkeys(pods, READY), now=1e9)
    return replace(seen, consumers=consumers, listened=listened)


async def test_workers_that_the_broker_does_not_let_in_are_named_until_they_are_back(
    case: PoolCase,
) -> None:
    case.cluster.add_pods("a", "b")
    well = connected("a", "b", consumers=2)
    await case.reconcile(2, observations=well)
    assert case.cluster.lists == 0
    refused = connected(consumers=0)
    await case.reconcile(2, observations=refused)
    workers, _ = case.pool.conditions(CONFIG)
    assert (workers.status, workers.reason) == (False, "WorkersDisconnected")
    assert "pod a and 1 more runs and has no connection" in workers.message
    assert "kubectl logs -n shop a" in workers.message
    assert "Secret shop/rabbit" in workers.message
    await case.reconcile(2, observations=connected("a", consumers=1))
    workers, _ = case.pool.conditions(CONFIG)
    assert "pod b runs" in workers.message
    await case.reconcile(2, observations=well)
    workers, _ = case.pool.conditions(CONFIG)
    assert (workers.status, workers.reason) == (True, "Available")
    lists = case.cluster.lists
    for _ in range(20):
        await case.reconcile(2, observations=well)
    assert case.cluster.lists == lists


async def test_a_pool_with_lost_workers_is_not_held_back(case: PoolCase) -> None:
    case.cluster.add_pods("a", "b")
    await case.reconcile(2, observations=connected(consumers=0))
    await case.reconcile(9, observations=connected(consumers=0))
    assert case.cluster.sizes == [9], "new workers may have other credentials"


@pytest.mark.parametrize(
    "unknown",
    [
        connected(consumers=2),
        connected(consumers=0, listened=20.0),
        replace(connected(consumers=0), consumers=None),
    ],
    ids=["they send no heartbeats", "the operator has just connected", "not counted"],
)
@pytest.mark.parametrize(("available", "reason"), [(2, "Available"), (1, "Growing")])
async def test_a_worker_is_not_called_disconnected_where_that_is_not_known(
    case: PoolCase, unknown: WorkerObservations, available: int, reason: str
) -> None:
    case.cluster.add_pods("a", "b")
    await case.reconcile(2, observations=unknown)
    case.observe(2, available=available)
    for _ in range(20):
        await case.reconcile(2, observations=unknown)
    workers, _ = case.pool.conditions(CONFIG)
    assert (workers.status, workers.reason) == (True, reason)
    assert bool(case.cluster.lists) == (available < 2), "listed for another reason only"


@pytest.mark.parametrize("ahead", [0.0, 30.0], ids=["the same clock", "a clock ahead"])
async def test_a_container_has_time_to_connect(case: PoolCase, ahead: float) -> None:
    case.cluster.add_pods("a", "b")
    started = to_rfc3339(1_800_000_000 + case.now + ahead)
    (status,) = case.cluster.pods["b"]["status"]["containerStatuses"]
    status["state"]["running"]["startedAt"] = started
    lost = connected("a", consumers=1)
    for _ in range(int((CONNECT_SECONDS + ahead - 10.0) / FIRST_PAUSE_SECONDS)):
        await case.reconcile(2, observations=lost)
        workers, _ = case.pool.conditions(CONFIG)
        assert workers.status is True
    for _ in range(int(20.0 / FIRST_PAUSE_SECONDS)):
        await case.reconcile(2, observations=lost)
    workers, _ = case.pool.conditions(CONFIG)
    assert (workers.status, workers.reason) == (False, "WorkersDisconnected")
