"""A worker pool in miniature: controller, kubelets, workers and the operator that shrinks it.

Nothing happens by itself: a test says what happens next, in any order. What chance decides in a
cluster is decided against the plan here: of pods that are equal to the controller, a busy one goes,
and while a rollout lasts, with one pod more than there are replicas, the ReplicaSet that has one.
Some things are taken for granted, because no plan could do without them: from the list to the
controller's answer no pod becomes ready or unready, and none that was not listed starts; a worker
that was never heard has work only while its pod is ready; and what a worker had that was cut off
for `WORKER_LOST_SECONDS` is with others, as soon as it is not even ready.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count

from taskqueue.controller.pool.drain_plan import plan
from taskqueue.controller.pool.worker_registry import WorkerRegistry
from taskqueue.limits import WORKER_LOST_SECONDS
from taskqueue.model.pod import Pod
from taskqueue.model.worker import Worker, WorkerState

EPOCH = 1_800_000_000.25
BEAT_SECONDS = 10.0
LINGER_SECONDS = 60.0
SLOTS = 2


@dataclass
class Process:
    """A worker's process: what it has in hand, and what it has said."""

    mute: bool
    state: WorkerState = WorkerState.READY
    #: When each of its attempts was taken, in steps of the model.
    taken: list[int] = field(default_factory=list)
    connected: bool = True
    said: float = -math.inf
    stopped: float | None = None
    begun: int = 0


@dataclass
class ModelPod:
    """A pod; it is gone from the model as soon as it is being deleted."""

    name: str
    uid: str
    created: float
    made: int
    owner: str
    assigned: bool = False
    phase: str = "Pending"
    ready: bool = False
    cost: int = 0
    process: Process | None = None
    running_since: float | None = None

    @property
    def busy(self) -> bool:
        return self.process is not None and bool(self.process.taken)


class Pool:
    """See the module; ``replicas`` workers, started and idle, are there at first.

    Of these so many are ``mute``: they say nothing and can be told nothing. Workers that are not
    ``connected`` have started just now and have not registered yet.
    """

    def __init__(
        self, *, replicas: int, ordered: bool, mute: int = 0, connected: bool = True
    ) -> None:
        self.ordered = ordered
        self.now = 1_000.0
        self.step = 0
        self.replicas = self.target = replicas
        self.pods: dict[str, ModelPod] = {}
        self.registry = WorkerRegistry()
        self.heard_since = self.now
        self.lowered = 0
        self.removed_busy = 0
        self.recycled = 0
        self.waiting_for = ""
        #: The ReplicaSet that new pods are of; a rollout lasts while there are others.
        self.template = 0
        self.rolling_out = False
        #: The step of the list that the lowering to each size was planned from.
        self._planned: dict[int, int] = {}
        #: When a worker last had something in hand.
        self._used = self.now
        self._names = count()
        self._uids = count()
        self._writes: deque[Callable[[], None]] = deque()
        self._listed: set[str] = set()
        self._orders: deque[tuple[str, int]] = deque()
        self._beats: deque[tuple[str, int, WorkerState]] = deque()
        self.reconcile()
        for at, pod in enumerate(self.pods.values()):
            self.assign(pod)
            self.start(pod, mute=at < mute, connected=connected)
            pod.ready = True

    # What workers do.

    @property
    def processes(self) -> list[tuple[ModelPod, Process]]:
        return [(pod, pod.process) for pod in self.pods.values() if pod.process is not None]

    def take(self, pod: ModelPod, process: Process) -> None:
        if process.mute and not pod.ready:
            return
        if process.state is WorkerState.READY and process.connected and len(process.taken) < SLOTS:
            process.taken.append(self.step)

    def connect(self, pod: ModelPod, process: Process) -> None:
        """Connect a worker; it drops what the broker has given to others meanwhile."""
        if process.connected:
            return
        if self._given_to_others(pod, process):
            while process.taken:
                self.finish(pod, process)
        process.connected = True
        self.beat(pod, process)

    def disconnect(self, pod: ModelPod, process: Process) -> None:
        self.beat(pod, process)
        process.connected = False

    def _given_to_others(self, pod: ModelPod, process: Process) -> bool:
        cut_off = not process.connected and self.now - process.said > WORKER_LOST_SECONDS
        return cut_off and not process.mute and not pod.ready

    def finish(self, pod: ModelPod, process: Process) -> None:
        if process.taken:
            process.taken.pop()
            if not process.taken and process.state is WorkerState.DRAINING:
                self._stop(pod, process)

    def beat(self, pod: ModelPod, process: Process) -> None:
        if not process.mute and process.connected:
            process.said = self.now
            self._beats.append((pod.name, len(process.taken), process.state))

    def hear_order(self) -> None:
        """Bring the next order to its worker; one from before its process began is ignored."""
        if not self._orders:
            return
        name, sent = self._orders.popleft()
        pod = self.pods.get(name)
        if pod is None or pod.process is None or pod.process.mute or not pod.process.connected:
            return
        process = pod.process
        if process.begun > sent or process.state is not WorkerState.READY:
            return
        process.state = WorkerState.DRAINING
        self.beat(pod, process)
        if not process.taken:
            self._stop(pod, process)

    def _stop(self, pod: ModelPod, process: Process) -> None:
        process.state, process.stopped = WorkerState.STOPPED, self.now
        self.beat(pod, process)

    # What kubelet and controller do.

    def assign(self, pod: ModelPod) -> None:
        pod.assigned = True

    def start(self, pod: ModelPod, *, mute: bool, connected: bool = True) -> None:
        """Start the container; a worker not ``connected`` yet takes nothing."""
        may = self._settled or pod.uid in self._listed
        if pod.assigned and pod.process is None and may:
            pod.phase = "Running"
            pod.running_since = float(math.floor(EPOCH + self.now))
            pod.process = Process(mute=mute, connected=connected, begun=self.step)
            self.beat(pod, pod.process)

    def end(self, pod: ModelPod) -> None:
        """End the container; what it had in hand is somebody else's again."""
        pod.process, pod.running_since, pod.ready = None, None, False

    @property
    def _settled(self) -> bool:
        return not self._writes and not self._surplus()

    def set_ready(self, pod: ModelPod, ready: bool) -> None:
        if not self._settled or (pod.process is not None and pod.process.mute and pod.busy):
            return
        if pod.process is not None and self._given_to_others(pod, pod.process):
            pod.process.taken.clear()
        pod.ready = ready and pod.process is not None

    def reconcile(self) -> None:
        """Do what the controller does at one look."""
        for pod in self._surplus():
            lowered = int(pod.name.rpartition("-")[2]) if self.ordered else self.replicas
            self._remove(pod, planned=self._planned[lowered])
        while len(self.pods) < self._wanted:
            number = (
                next(at for at in count() if f"w-{at}" not in self.pods)
                if self.ordered
                else next(self._names)
            )
            name = f"w-{number}"
            created = float(math.floor(EPOCH + self.now))
            self.pods[name] = ModelPod(
                name, f"uid-{next(self._uids)}", created, self.step, self._owner
            )

    def _surplus(self) -> Sequence[ModelPod]:
        pods = list(self.pods.values())
        if self.ordered:
            return [pod for pod in pods if int(pod.name[2:]) >= self.replicas]
        pods.sort(
            key=lambda pod: (
                pod.assigned,
                pod.phase == "Running",
                pod.ready,
                pod.cost,
                not pod.busy,
            )
        )
        extra = max(len(pods) - self._wanted, 0)
        from_each = [
            sorted(pods, key=lambda pod: pod.owner != owner)[:extra]
            for owner in {pod.owner for pod in pods}
        ]
        return max(from_each, key=lambda gone: sum(pod.busy for pod in gone), default=[])

    @property
    def _wanted(self) -> int:
        return self.replicas + (self.rolling_out and self.replicas > 0)

    @property
    def _owner(self) -> str:
        return f"rs-{self.template}"

    def roll_out(self) -> None:
        """Begin a rollout, of a Deployment whose maxSurge is 1 and maxUnavailable 0."""
        if not self.ordered and not self.rolling_out and self.replicas and self._settled:
            self.reconcile()
            self.template += 1
            self.rolling_out = True
            self.reconcile()

    def roll(self) -> None:
        """Take an old pod away for a new one; its grace period is what protects its work."""
        if not self.rolling_out or not self._settled:
            return
        if len(self.pods) >= self._wanted > 0:
            del self.pods[(self._old or list(self.pods.values()))[-1].name]
        self.rolling_out = bool(self._old)

    @property
    def _old(self) -> list[ModelPod]:
        return [pod for pod in self.pods.values() if pod.owner != self._owner]

    def _remove(self, pod: ModelPod, *, planned: int) -> None:
        del self.pods[pod.name]
        if pod.process is not None and pod.busy and not self._given_to_others(pod, pod.process):
            self.removed_busy += 1
            assert min(pod.process.taken) > planned, f"{pod} worked when its removal was planned"

    # What the operator does.

    def hear(self) -> None:
        """Take all heartbeats that are under way."""
        while self._beats:
            name, busy, state = self._beats.popleft()
            worker = Worker(pod=name, node="n", cpus=1.0, slots=SLOTS, handlers=())
            self.registry.on_heartbeat(worker, running=busy, busy=busy, state=state, now=self.now)

    def change_leader(self) -> None:
        self._writes.clear()
        self.registry = WorkerRegistry()
        self.heard_since = self.now

    def look(self) -> None:
        """List and plan; what is to be written is written by `write`, one by one."""
        if self._writes:
            return
        planned = self.step
        if any(process.taken for _, process in self.processes):
            self._used = self.now
        listed = [
            Pod(
                name=pod.name,
                uid=pod.uid,
                owner=pod.owner,
                phase=pod.phase,
                ready=pod.ready,
                assigned=pod.assigned,
                running_since=pod.running_since,
                cost=pod.cost,
                created=pod.created,
            )
            for pod in self.pods.values()
        ]
        self._listed = {pod.uid for pod in listed}
        self.registry.on_pods_listed([pod.name for pod in listed])
        shrink = plan(
            listed,
            self.registry.views,
            replicas=self.replicas,
            target=self.target,
            unused=self.now - self._used,
            listened=self.now - self.heard_since,
            now=self.now,
            wall=EPOCH + self.now,
            ordered=self.ordered,
        )
        self.waiting_for = shrink.waiting_for
        assert min(self.replicas, self.target) <= shrink.replicas
        assert shrink.replicas <= max(self.replicas, self.target)
        assert bool(shrink.waiting_for) is (shrink.replicas > self.target)
        if self.target >= self.replicas and not self.ordered:
            assert not shrink.drain
            assert all(mark.cost is None for mark in shrink.mark)
        for name in shrink.drain:
            self._writes.append(partial(self._order, name))
        for mark in shrink.mark:
            self._writes.append(partial(self._mark, mark.pod, mark.cost))
        if shrink.replicas != self.replicas:
            self._writes.append(partial(self._resize, shrink.replicas, planned))
        for pod in shrink.recycle:
            self._writes.append(partial(self._recycle, pod, planned))

    @property
    def writes(self) -> int:
        """How many writes of the last plan are to be made."""
        return len(self._writes)

    def write(self) -> None:
        """Make the next of them."""
        if self._writes:
            self._writes.popleft()()

    def _order(self, name: str) -> None:
        self._orders.append((name, self.step))

    def _mark(self, listed: Pod, cost: int | None) -> None:
        pod = self.pods.get(listed.name)
        if pod is not None and pod.uid == listed.uid:
            pod.cost = cost or 0

    def _resize(self, replicas: int, planned: int) -> None:
        for size in range(replicas, self.replicas):
            self._planned[size] = planned
            self.lowered += 1
        self.replicas = replicas

    def _recycle(self, listed: Pod, planned: int) -> None:
        pod = self.pods.get(listed.name)
        if pod is not None and pod.uid == listed.uid:
            self.recycled += 1
            self._remove(pod, planned=planned)

    # Time.

    def advance(self, seconds: float) -> None:
        """Let time pass; a heartbeat arrives within the moment it was sent in."""
        self.hear()
        self.now += seconds
        for pod, process in self.processes:
            if process.stopped is not None and self.now - process.stopped >= LINGER_SECONDS:
                self.end(pod)
            elif self.now - process.said >= BEAT_SECONDS:
                self.beat(pod, process)
        self.hear()
        self.registry.pop_lost(self.now)

    def second(self) -> None:
        """Let all that is due within a second happen."""
        self.step += 1
        self.advance(1.0)
        self.reconcile()
        for pod in list(self.pods.values()):
            self.assign(pod)
            self.start(pod, mute=False)
        self.hear()
        self.look()
        while self._writes:
            self.write()
        while self._orders:
            self.hear_order()
        self.reconcile()
