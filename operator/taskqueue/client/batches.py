"""TaskBatches for programs: create one, see how far it is, and wait for its end."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

from pydantic import ValidationError

from taskqueue.api.common import API_VERSION, GROUP, TASKBATCH_KIND, VERSION
from taskqueue.api.taskbatch import TaskBatchResourceSpec
from taskqueue.api.taskbatch_status import TaskBatchResourceStatus
from taskqueue.client.errors import BatchFailed, BatchGone, WaitTimeout
from taskqueue.client.requests import client_error, request_with_retries
from taskqueue.client.spec import ConfigMapKey, RetryOptions, payload_object
from taskqueue.exact_json import encode
from taskqueue.kubernetes.client import MERGE_PATCH, ApiError
from taskqueue.limits import INLINE_BYTES, INLINE_ITEMS

if TYPE_CHECKING:
    from taskqueue.client.access import ApiConnection
    from taskqueue.client.async_tasks import AsyncTaskClient

_ENDS = ("Succeeded", "Failed", "Cancelled")
#: From one look at a TaskBatch to the next, in seconds: its status is written once a second.
_SHORTEST_POLL, _LONGEST_POLL = 0.2, 2.0
_TEMPLATE_FIELDS = ("retry", "attempt_timeout_seconds", "max_deliveries")


class BatchOptions(TypedDict, total=False):
    """The fields of a TaskBatch's spec and of its template, in snake_case."""

    retry: RetryOptions | None
    attempt_timeout_seconds: int | None
    max_deliveries: int | None
    parallelism: int | None
    max_failed_items: int | None
    priority: int | None
    active_deadline_seconds: int | None
    ttl_seconds_after_finished: int | None
    suspend: bool | None


@dataclass(frozen=True, slots=True)
class BatchErrors:
    """Items that failed with errors of one type: how many, the lowest indexes, a message."""

    type: str
    count: int
    indexes: tuple[int, ...]
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchStatus:
    """How far a TaskBatch is.

    Attributes, as far as the fields of the status do not explain them:
        total: of items; None: not known yet.
        failed_indexes: the first items that failed, as ranges.
    """

    phase: str
    reason: str = ""
    message: str = ""
    total: int | None = None
    succeeded: int = 0
    failed: int = 0
    cancelled: int = 0
    active: int = 0
    retried: int = 0
    percent: int = 0
    failed_indexes: str = ""
    errors: tuple[BatchErrors, ...] = ()

    @property
    def finished(self) -> bool:
        """Whether it never changes again."""
        return self.phase in _ENDS

    def __str__(self) -> str:
        """Return it in one line, for people."""
        why = f", {self.reason}: {self.message}" if self.reason else ""
        total = "?" if self.total is None else self.total
        return f"{self.phase}{why} ({self.succeeded} + {self.failed} failed of {total} items)"


class AsyncBatchHandle:
    """A TaskBatch that was created or found; made by `AsyncBatches`.

    Attributes:
        namespace: of the TaskBatch.
        name: of the TaskBatch.
        uid: of the TaskBatch.
    """

    def __init__(self, batches: AsyncBatches, raw: Mapping[str, Any]) -> None:
        metadata = raw["metadata"]
        self._batches = batches
        self.namespace: str = metadata["namespace"]
        self.name: str = metadata["name"]
        self.uid: str = metadata["uid"]

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.namespace}/{self.name}>"

    async def status(self) -> BatchStatus:
        """Return its present status.

        Raises:
            BatchGone: it was deleted.
            Refused: the API server refused the request.
            Unavailable: the API server did not answer.
        """
        raw = await self._batches._get(self.namespace, self.name)
        if raw["metadata"]["uid"] != self.uid:
            raise BatchGone(f"TaskBatch {self.namespace}/{self.name} was deleted and made again")
        return _status_of(raw)

    async def wait(self, timeout: float | None = None) -> BatchStatus:  # noqa: ASYNC109
        """Wait until it has succeeded and return its status.

        Args:
            timeout: in seconds; None: no limit.

        Raises:
            BatchFailed: it has failed, or was cancelled.
            WaitTimeout: it has not ended in time.
            BatchGone, Refused, Unavailable: as `status`.
        """
        status, pause = None, _SHORTEST_POLL
        try:
            async with asyncio.timeout(timeout):
                while not (status := await self.status()).finished:
                    await asyncio.sleep(pause)
                    pause = min(pause * 1.5, _LONGEST_POLL)
        except TimeoutError:
            raise WaitTimeout(
                f"TaskBatch {self.namespace}/{self.name} has not ended within {timeout:g} s: it is "
                f"{status or 'not known'}",
                status=None,
            ) from None
        if status.phase != "Succeeded":
            text = f"TaskBatch {self.namespace}/{self.name} is {status}"
            raise BatchFailed(text, status=status)
        return status

    async def cancel(self) -> None:
        """Request its cancellation; no effect if it has ended.

        Raises:
            BatchGone, Refused, Unavailable: as `status`.
        """
        await self._batches._cancel(self)


class AsyncBatches:
    """TaskBatches over the Kubernetes API: `AsyncTaskClient.batches`."""

    def __init__(self, client: AsyncTaskClient) -> None:
        self._client = client

    async def create(
        self,
        queue: str,
        handler: str,
        items: Iterable[Any] | None = None,
        *,
        count: int | None = None,
        items_from: ConfigMapKey | None = None,
        name: str | None = None,
        namespace: str | None = None,
        labels: Mapping[str, str] | None = None,
        **spec: Unpack[BatchOptions],
    ) -> AsyncBatchHandle:
        """Create a TaskBatch.

        Args:
            queue: name of the TaskQueue.
            handler: name of the handler.
            items: payloads, each a dict, a pydantic model or a dataclass; at most 1,000.
            count: of items whose payload is their index, instead.
            items_from: name and key of a ConfigMap with JSON lines, instead.
            name: of the TaskBatch; default: the queue's name and a random suffix.
            namespace: of the TaskQueue and the TaskBatch; default: the client's.
            labels: of the TaskBatch.
            spec: the other fields of its spec, and of its template's, in snake_case.

        Raises:
            TypeError: an unknown argument, or an item that is not a JSON object.
            ValueError: an invalid value, too many items, or not exactly one of the three.
            Refused: the API server refused the request: one of that name exists, for one.
            Unavailable: the API server did not answer.
        """
        body = _manifest(queue, handler, items, count, items_from, spec)
        body["metadata"]["name"] = name or f"{queue}-{uuid.uuid4().hex[:10]}"
        body["metadata"]["labels"] = dict(labels or {})
        resolved = self._client._resolve_namespace(await self._client._open(), namespace)
        path = f"/apis/{GROUP}/{VERSION}/namespaces/{resolved}/taskbatches"
        made = await self._request("POST", path, "create", body["metadata"]["name"], body=body)
        return AsyncBatchHandle(self, made)

    async def get(self, name: str, *, namespace: str | None = None) -> AsyncBatchHandle:
        """Return a TaskBatch.

        Raises:
            BatchGone: it does not exist.
            Refused: the API server refused the request.
            Unavailable: the API server did not answer.
        """
        resolved = self._client._resolve_namespace(await self._client._open(), namespace)
        return AsyncBatchHandle(self, await self._get(resolved, name))

    async def _get(self, namespace: str, name: str) -> dict[str, Any]:
        return await self._request("GET", _path(namespace, name), "get", name)

    async def _cancel(self, batch: AsyncBatchHandle) -> None:
        # The uid is a precondition: the patch is refused for another TaskBatch of this name.
        body = {"metadata": {"uid": batch.uid}, "spec": {"cancel": True}}
        path = _path(batch.namespace, batch.name)
        if not (await batch.status()).finished:
            await self._request(
                "PATCH", path, "cancel", batch.name, body=body, content_type=MERGE_PATCH
            )

    async def _request(
        self, method: str, path: str, verb: str, name: str, **more: Any
    ) -> dict[str, Any]:
        connection: ApiConnection = await self._client._open()
        try:
            return await request_with_retries(
                connection.requests, method, path, patience_seconds=self._client._patience, **more
            )
        except ApiError as error:
            if error.status == 404 and method != "POST":
                raise BatchGone(f"TaskBatch {name} does not exist") from None
            raise client_error(error, f"{verb} TaskBatch {name}") from error


def _path(namespace: str, name: str) -> str:
    return f"/apis/{GROUP}/{VERSION}/namespaces/{namespace}/taskbatches/{name}"


def _manifest(
    queue: str,
    handler: str,
    items: Iterable[Any] | None,
    count: int | None,
    items_from: ConfigMapKey | None,
    options: Mapping[str, Any],
) -> dict[str, Any]:
    unknown = sorted(set(options) - set(BatchOptions.__annotations__))
    if unknown:
        raise TypeError(
            f"create() has no argument {', '.join(unknown)}: the fields are those of a TaskBatch's "
            f"spec and template in snake_case: {', '.join(BatchOptions.__annotations__)}"
        )
    if sum(one is not None for one in (items, count, items_from)) != 1:
        raise ValueError("create() needs exactly one of items, count and items_from")
    given = {key: value for key, value in options.items() if value is not None}
    template = {key: given.pop(key) for key in _TEMPLATE_FIELDS if key in given}
    fields: dict[str, Any] = {
        "queue": queue,
        "template": {"spec": {"handler": handler, **template}},
        **given,
    }
    if count is not None:
        fields["count"] = count
    if items_from is not None:
        fields["items_from"] = {"config_map_key_ref": items_from}
    if items is not None:
        fields["items"] = _inline(items)
    try:
        spec = TaskBatchResourceSpec.model_validate(fields)
    except ValidationError as error:
        found = "; ".join(
            f"{'.'.join(map(str, one['loc']))}: {one['msg']}"
            for one in error.errors(include_url=False, include_context=False)
        )
        raise ValueError(f"create() cannot make this TaskBatch: {found}") from error
    return {
        "apiVersion": API_VERSION,
        "kind": TASKBATCH_KIND,
        "metadata": {},
        "spec": spec.model_dump(mode="json", by_alias=True, exclude_unset=True),
    }


def _inline(items: Iterable[Any]) -> list[dict[str, Any]]:
    found = [payload_object(item) for item in items]
    if len(found) > INLINE_ITEMS or sum(len(encode(item)) for item in found) > INLINE_BYTES:
        raise ValueError(
            f"these are {len(found)} items: an object has at most {INLINE_ITEMS}, and "
            f"{INLINE_BYTES // 1024} KiB of them: put JSON lines into a ConfigMap, and give "
            "items_from"
        )
    return found


def _status_of(raw: Mapping[str, Any]) -> BatchStatus:
    status = TaskBatchResourceStatus.model_validate(raw.get("status") or {})
    return BatchStatus(
        phase=status.phase,
        reason=status.reason,
        message=status.message,
        total=status.total,
        succeeded=status.succeeded,
        failed=status.failed,
        cancelled=status.cancelled,
        active=status.active,
        retried=status.retried,
        percent=status.percent,
        failed_indexes=status.failed_indexes,
        errors=tuple(
            BatchErrors(one.type, one.count, one.indexes, one.message) for one in status.errors
        ),
    )
