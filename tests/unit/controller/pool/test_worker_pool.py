"""The pool's size is put in place whatever became of its template; it shrinks by the drained."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import pytest

from taskqueue.controller.pool.autoscaler import Load
from taskqueue.controller.pool.drainer import WorkerObservations
from taskqueue.controller.pool.poll_backoff import FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS
from taskqueue.controller.pool.worker_pool import WorkerPool
from taskqueue.controller.pool.worker_registry import WorkerView
from taskqueue.kubernetes.client import ApiClient, ApiError
from taskqueue.kubernetes.deployments import PoolState
from taskqueue.kubernetes.pods import COST_ANNOTATION
from taskqueue.model.queue import ClusterRef, QueueConfig, ScaleTargetRef
from taskqueue.model.scaling import BacklogTarget, ScalingPolicy
from taskqueue.model.worker import WorkerState

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
        self.refusal: ApiError | None = None
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
        if self.refusal is not None:
            raise self.refusal
        self.applied.append(body["spec"]["replicas"])
        status = {"availableReplicas": body["spec"]["replicas"]}
        return {"metadata": {"generation": 1}, "spec": body["spec"], "status": status}


class Stage:
    """A pool beside its cluster, and time that passes only when told."""

    def __init__(self) -> None:
        self.cluster, self.now = FakeCluster(), 100.0
        self.told: list[str] = []
        self.seen: set[str] = set()
        self.claimed = ""
        self.pool = WorkerPool(
            cast(ApiClient, self.cluster),
            clock=lambda: 1_800_000_000 + self.now,
            order_drain=self.told.append,
            on_pods=self.seen.update,
            claimant=lambda config: self.claimed if config.scale_target else "",
            monotonic=lambda: self.now,
        )
        self.observe(2)

    def observe(self, size: int, *, available: int | None = None, message: str = "") -> None:
        self.pool.observed(
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
        crew: WorkerObservations = NOBODY,
        secret: tuple[str, str] | None = None,
    ) -> None:
        await self.pool.reconcile(config, Load(backlog=backlog), crew, secret=secret)
        self.now += FIRST_PAUSE_SECONDS


@pytest.fixture
def stage() -> Stage:
    return Stage()


def crew(
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
    stage: Stage,
) -> None:
    for backlog in (2, 4, 4):
        await stage.reconcile(backlog)
    assert (stage.cluster.applied, stage.cluster.sizes) == ([2], [4])


async def test_a_deployment_that_is_gone_is_made_anew_at_the_size_decided_on(stage: Stage) -> None:
    stage.pool.observed(None)
    await stage.reconcile(7)
    assert (stage.cluster.applied, stage.cluster.sizes) == ([7], [])


async def test_a_changed_template_does_not_shrink_the_pool_by_itself(stage: Stage) -> None:
    stage.cluster.add_pods("a", "b")
    await stage.reconcile(1, crew=crew({"a": READY, "b": READY}, busy=("a", "b")))
    assert (stage.cluster.applied, stage.cluster.sizes) == ([2], [])


async def test_a_withdrawn_template_takes_its_workers_along_once_they_have_drained(
    stage: Stage,
) -> None:
    stage.cluster.add_pods("a", "b")
    withdrawn = replace(CONFIG, template=None)
    await stage.reconcile(5, withdrawn, crew({"a": READY, "b": READY}, busy=("a",)))
    assert (sorted(stage.told), stage.cluster.sizes) == (["a", "b"], [])
    await stage.reconcile(5, withdrawn, crew({"a": DRAINING, "b": STOPPED}, now=stage.now))
    assert stage.cluster.sizes == [1]
    stage.observe(1)
    del stage.cluster.pods["b"]
    await stage.reconcile(5, withdrawn, crew({"a": STOPPED}, now=stage.now))
    assert stage.cluster.sizes == [1, 0]


async def test_the_former_pool_is_resized_while_a_changed_template_is_refused(
    stage: Stage,
) -> None:
    stage.cluster.refusal = ApiError(422, "Invalid", "no such field")
    await stage.reconcile(7)
    assert stage.cluster.sizes == [7]
    assert stage.pool.refused(CONFIG)
    workers, _ = stage.pool.conditions(CONFIG)
    assert (workers.status, workers.reason) == (False, "InvalidTemplate")


OF_CLUSTER = replace(CONFIG, connection_secret="", rabbitmq_cluster=ClusterRef("broker", "rabbit"))


async def test_a_pool_waits_for_the_secret_of_a_rabbitmq_cluster(stage: Stage) -> None:
    here = replace(OF_CLUSTER, rabbitmq_cluster=ClusterRef("shop", "rabbit"))
    await stage.reconcile(3, here)
    # What is there is sized all the same.
    assert (stage.cluster.applied, stage.cluster.sizes) == ([], [3])
    await stage.reconcile(3, here, secret=("shop", "rabbit-default-user"))
    await stage.reconcile(3, here, secret=("shop", "rabbit-default-user"))
    assert stage.cluster.applied == [3]
    await stage.reconcile(3, here, secret=("shop", "renamed"))
    assert stage.cluster.applied == [3, 3]


async def test_workers_of_another_namespace_than_the_cluster_need_an_address_of_their_own(
    stage: Stage,
) -> None:
    await stage.reconcile(3, OF_CLUSTER, secret=("broker", "rabbit-default-user"))
    assert stage.cluster.applied == []
    workers, _ = stage.pool.conditions(OF_CLUSTER)
    assert (workers.status, workers.reason) == (False, "InvalidTemplate")
    assert "TASKQUEUE_BROKER_URI" in workers.message


# Shrinking.


async def test_a_worker_is_told_drained_and_marked_before_the_size_is_lowered(
    stage: Stage,
) -> None:
    stage.cluster.add_pods("busy", "idle")
    await stage.reconcile(1, crew=crew({"busy": READY, "idle": READY}, busy=("busy",)))
    assert (stage.told, stage.cluster.sizes) == (["idle"], [])
    assert stage.seen == {"busy", "idle"}
    assert "waits for idle" in stage.pool.explanation
    await stage.reconcile(1, crew=crew({"busy": READY, "idle": DRAINING}, busy=("busy",)))
    assert (stage.told, stage.cluster.sizes) == (["idle"], [])
    await stage.reconcile(
        1, crew=crew({"busy": READY, "idle": STOPPED}, busy=("busy",), now=stage.now)
    )
    assert stage.cluster.sizes == [1]
    assert COST_ANNOTATION in stage.cluster.pods["idle"]["metadata"]["annotations"]
    assert "annotations" not in stage.cluster.pods["busy"]["metadata"]


async def test_a_worker_that_does_not_answer_is_told_again(stage: Stage) -> None:
    stage.cluster.add_pods("a", "b")
    silent = crew({"a": READY, "b": READY})
    for _ in range(20):
        await stage.reconcile(1, crew=silent)
    assert stage.told == ["a", "a"] or stage.told == ["b", "b"]
    assert stage.cluster.sizes == []


async def test_a_drained_worker_that_is_wanted_again_is_replaced(stage: Stage) -> None:
    stage.cluster.add_pods("a", "b")
    await stage.reconcile(2, crew=crew({"a": READY, "b": STOPPED}, now=stage.now))
    assert (stage.cluster.deleted, stage.cluster.sizes) == (["b"], [])


async def test_a_paused_pool_is_shrunk_the_same_way(stage: Stage) -> None:
    stage.cluster.add_pods("a", "b")
    config = replace(CONFIG, scaling=ScalingPolicy(paused_replicas=0))
    working = crew({"a": READY, "b": READY}, busy=("a", "b"))
    await stage.reconcile(9, config, crew=working)
    assert (sorted(stage.told), stage.cluster.sizes) == (["a", "b"], [])
    assert stage.pool.desired == 0
    await stage.reconcile(9, config, crew=crew({"a": STOPPED, "b": STOPPED}, now=stage.now))
    assert stage.cluster.sizes == [0]


async def test_a_settled_pool_costs_no_requests(stage: Stage) -> None:
    for _ in range(5):
        await stage.reconcile(2, crew=crew({"a": READY, "b": READY}))
    assert stage.cluster.lists == 0


async def test_pods_are_not_listed_at_each_wake(stage: Stage) -> None:
    stage.cluster.add_pods("a", "b")
    for _ in range(20):
        await stage.pool.reconcile(CONFIG, Load(backlog=1), crew({"a": READY, "b": READY}))
    assert stage.cluster.lists == 1


async def test_a_worker_that_has_just_stopped_is_looked_at_at_once(stage: Stage) -> None:
    stage.cluster.add_pods("a", "b")
    load = Load(backlog=1)
    await stage.pool.reconcile(CONFIG, load, crew({"a": READY, "b": READY}))
    (picked,) = stage.told
    stopped = {"a": READY, "b": READY} | {picked: STOPPED}
    for _ in range(3):
        await stage.pool.reconcile(CONFIG, load, crew(stopped, now=stage.now))
    assert (stage.cluster.lists, stage.cluster.sizes) == (2, [1])


async def test_pods_that_do_not_change_are_looked_at_less_and_less_often(stage: Stage) -> None:
    stage.cluster.add_pods("a", "b")
    busy = crew({"a": READY, "b": DRAINING}, busy=("a", "b"))
    for _ in range(120):  # a minute
        await stage.reconcile(1, crew=busy)
    assert 10 <= stage.cluster.lists <= 60 / LONGEST_PAUSE_SECONDS + 5


async def test_an_operator_that_may_not_look_after_pods_says_so_and_goes_on(stage: Stage) -> None:
    stage.cluster.forbidden = True
    stage.cluster.add_pods("a", "b")
    await stage.reconcile(1, crew=crew({"a": READY, "b": READY}))
    assert "manifests/base/rbac.yaml" in stage.pool.explanation
    await stage.reconcile(5, crew=crew({"a": READY, "b": READY}))
    assert stage.cluster.sizes == [5]


# What spec.workers.scaleTargetRef names.

REF = ScaleTargetRef(api_version="apps/v1", kind="Deployment", name="encoders")
REFERRING = replace(CONFIG, template=None, scale_target=REF)


async def test_nothing_is_decided_while_a_workload_is_not_known(stage: Stage) -> None:
    stage.pool.observed(None)
    stage.cluster.scale = None
    await stage.reconcile(0, REFERRING)
    assert stage.pool.decision is None
    workers, scaling = stage.pool.conditions(REFERRING)
    assert (workers.reason, scaling.reason) == ("ScaleTargetNotFound", "ScaleTargetNotFound")
    stage.cluster.scale = 10
    stage.now += 10
    await stage.reconcile(None, REFERRING)
    assert stage.pool.explanation.startswith("10 held: the backlog is unknown")
    assert stage.pool.selector(REFERRING) == "app=encoder"


async def test_a_workload_taken_over_begins_with_its_own_size(stage: Stage) -> None:
    await stage.reconcile(2)
    stage.cluster.scale = 10
    await stage.reconcile(None, REFERRING)
    assert stage.pool.desired == 10


async def test_a_workload_of_somebody_else_is_left_alone(stage: Stage) -> None:
    stage.claimed = "it is already sized by TaskQueue p: name another one"
    stage.pool.observed(None)
    stage.cluster.scale = 10
    await stage.reconcile(0, REFERRING)
    workers, _ = stage.pool.conditions(REFERRING)
    assert (workers.reason, workers.message) == ("ScaleTargetUnusable", stage.claimed)
    assert stage.cluster.sizes == []


async def test_pods_of_a_workload_are_looked_at_also_when_it_is_settled(stage: Stage) -> None:
    stage.pool.observed(None)
    stage.cluster.scale = 2
    stage.cluster.add_pods("a", "b")
    for _ in range(8):
        await stage.reconcile(2, REFERRING)
    workers, _ = stage.pool.conditions(REFERRING)
    assert (workers.status, workers.reason) == (True, "Available")
    stage.cluster.add_pods("a", "b", waiting="CrashLoopBackOff")
    for _ in range(30):
        await stage.reconcile(2, REFERRING)
    workers, _ = stage.pool.conditions(REFERRING)
    assert (workers.status, workers.reason) == (False, "CrashLoopBackOff")


# Trouble.


async def test_a_failing_pool_says_why_and_does_not_grow(stage: Stage) -> None:
    await stage.reconcile(2)
    stage.cluster.add_pods("a", "b", waiting="ImagePullBackOff")
    stage.observe(2, available=0)
    await stage.reconcile(2)
    await stage.reconcile(9)
    workers, _ = stage.pool.conditions(CONFIG)
    assert (workers.status, workers.reason) == (False, "ImagePullBackOff")
    assert "no such image" in workers.message
    assert stage.cluster.sizes == []
    assert stage.pool.explanation.startswith("2 is all that can be had")
    stage.cluster.add_pods("a", "b")
    stage.observe(2)
    await stage.reconcile(9)
    await stage.reconcile(9)
    assert stage.cluster.sizes == [9]
    stage.observe(9)
    workers, _ = stage.pool.conditions(CONFIG)
    assert (workers.status, workers.reason) == (True, "Available")


async def test_pods_refused_by_a_quota_are_not_asked_for_again_and_again(stage: Stage) -> None:
    stage.cluster.add_pods("a", "b")
    full = "pods is forbidden: exceeded quota: tight"
    await stage.reconcile(6)
    tries: list[int] = []
    for _ in range(400):  # 200 s
        if len(stage.cluster.sizes) > len(tries):
            tries = list(stage.cluster.sizes)
        size = tries[-1]
        stage.observe(size, available=2, message=full if size > 2 else "")
        await stage.reconcile(6)
        workers, _ = stage.pool.conditions(CONFIG)
        assert (workers.status, workers.reason) == (False, "QuotaExceeded")
    assert tries == [6, 2] * 5  # after 10, 20, 40 and 60 s


async def test_an_unknown_backlog_changes_nothing(stage: Stage) -> None:
    await stage.reconcile(None)
    _, scaling = stage.pool.conditions(CONFIG)
    assert (scaling.status, scaling.reason) == (False, "BacklogUnknown")
    assert stage.cluster.sizes == []


async def test_workers_elsewhere_are_not_sized(stage: Stage) -> None:
    elsewhere = replace(CONFIG, template=None)
    stage.pool.observed(None)
    await stage.reconcile(5, elsewhere)
    assert (stage.cluster.applied, stage.cluster.sizes) == ([], [])
    workers, scaling = stage.pool.conditions(elsewhere)
    assert (workers.status, workers.reason) == (None, "WorkersElsewhere")
    assert (scaling.status, scaling.reason) == (False, "WorkersElsewhere")
