"""A TaskBatch inside the operator: frozen values, no I/O, times as seconds since the epoch."""

from __future__ import annotations

from dataclasses import dataclass, field

from taskqueue.model.task import NO_OVERRIDES, PayloadSource, Phase, PolicyOverrides


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """A TaskBatch object as last seen, without its items.

    Attributes, as far as the object's fields do not explain them:
        generation: of the object.
        overrides: retry and time settings of its items.
        count: of items that have no payload but their index; None: they have payloads.
        items_from: a key of a ConfigMap that has the items; None: they are in the object.
        parallelism: items under way at once at most; None: as many as the workers need.
        max_failed: items that may fail; None: any number, and the batch fails if one does.
        deleting: it has a deletionTimestamp.
    """

    namespace: str
    name: str
    uid: str
    generation: int
    created: float
    queue: str
    handler: str
    overrides: PolicyOverrides = NO_OVERRIDES
    count: int | None = None
    items_from: PayloadSource | None = None
    parallelism: int | None = None
    max_failed: int | None = None
    priority: int = 0
    suspend: bool = False
    cancel: bool = False
    active_deadline_seconds: int | None = None
    ttl_seconds: int | None = None
    deleting: bool = False

    @property
    def path(self) -> str:
        """``namespace/name``, as logs and messages name it."""
        return f"{self.namespace}/{self.name}"

    @property
    def queue_key(self) -> tuple[str, str]:
        """(namespace, name) of its TaskQueue."""
        return (self.namespace, self.queue)


@dataclass(frozen=True, slots=True)
class ItemErrors:
    """Items that failed with errors of one type: how many, the lowest of them, a message."""

    type: str
    count: int
    indexes: tuple[int, ...]
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchRecord:
    """What is on record of the items of a batch.

    Attributes:
        total: of items.
        begun: items below this index have begun.
        open: those of them that have not ended, as `controller.batches.index_set` writes them.
        succeeded: how many did.
        failures: how many failed.
        retried: attempts beyond the first.
        epoch: the highest of any item.
        failed: the items that failed, written likewise; None: too long.
        failed_ranges: the first of these for people.
        failed_ranges_cut: whether that leaves some out.
        errors: why they failed.
    """

    total: int
    begun: int = 0
    open: str = ""
    succeeded: int = 0
    failures: int = 0
    retried: int = 0
    epoch: int = 0
    failed: str | None = ""
    failed_ranges: str = ""
    failed_ranges_cut: bool = False
    errors: tuple[ItemErrors, ...] = ()

    @property
    def ended(self) -> int:
        """Items that have succeeded or failed."""
        return self.succeeded + self.failures


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchState:
    """What is, or will be, in a TaskBatch's status.

    Attributes, as far as the resource's fields do not explain them:
        record: of its items; None: how many there are is not known yet.
        active: items that are with the broker or a worker.
        digest: of the items it began with.
        resumed_time: when the last suspension ended.
    """

    phase: Phase = Phase.PENDING
    reason: str = ""
    message: str = ""
    record: BatchRecord | None = None
    active: int = 0
    digest: str = ""
    start_time: float | None = None
    completion_time: float | None = None
    resumed_time: float | None = None
    observed_generation: int = field(default=-1, compare=False)

    @property
    def cancelled(self) -> int:
        """Items of a batch that is over that neither succeeded nor failed."""
        if not self.phase.terminal or self.record is None:
            return 0
        return self.record.total - self.record.ended
