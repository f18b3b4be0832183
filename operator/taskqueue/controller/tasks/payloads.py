"""Has the payload of each Task at hand when it is published, and few others.

A payload is kept as far as the cache's budget goes when the informer shows its Task. What is not
there any more is read again, right before the Task is dispatched; so are the ConfigMaps of
spec.payloadFrom, always. Each attempt gets what they hold then.

A ConfigMap that is missing or wrong keeps the Task waiting, and is read again after pauses that
grow, once for all Tasks that wait for it: it may come later, or be corrected. A Task that cannot be
read itself waits likewise; its namespace's reads pause.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from taskqueue.controller.metrics import PAYLOAD_READS
from taskqueue.controller.tasks.batch_items import BatchItems, NoBatches
from taskqueue.controller.tasks.config_maps import ConfigMap, ConfigMapKey, ConfigMaps
from taskqueue.controller.tasks.payload_cache import PayloadCache
from taskqueue.controller.tasks.read_pool import ReadPool, Spawn
from taskqueue.exact_json import decode, decode_own, encode
from taskqueue.jsonable import NotJsonError
from taskqueue.kubernetes.client import ApiClient, ApiError
from taskqueue.kubernetes.task_codec import read_payload, task_path
from taskqueue.limits import PAYLOAD_BYTES, PAYLOAD_CACHE_BYTES
from taskqueue.model.task import PayloadSource, Task

#: How long until a ConfigMap that is missing or wrong is read again, in seconds: the first time,
#: and at most.
RETRY_SECONDS, LONGEST_RETRY_SECONDS = 5.0, 60.0
#: Payloads that are put together at once, and ConfigMaps that are read again at once.
_LOADS_AT_ONCE, _RETRIES_AT_ONCE = 16, 4
#: Of merged payloads whose Tasks wait for their concurrency keys to be recorded, in bytes.
_MERGED_BYTES = 16 * 1024 * 1024
#: Of the texts that one payload is merged from, in characters: what is merged takes many times as
#: much memory.
SOURCES_LENGTH = 4 * PAYLOAD_BYTES
#: How long until a Task is read again whose object is not there: the informer is about to say so.
_GONE_SECONDS = 5.0

#: Namespace, name and uid of a Task.
_LoadKey = tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class _Problem:
    """Why a payload cannot be put together.

    Attributes:
        text: which source gives no object, why, and what to do.
        config_map: the one to blame; None: the Task itself cannot be read.
        version: of the ConfigMap as it was read; None: it could not be.
    """

    text: str
    config_map: ConfigMapKey | None
    version: str | None


class _UnresolvedError(Exception):
    """A source gives no object."""

    def __init__(self, text: str, config_map: ConfigMapKey, version: str | None) -> None:
        super().__init__(text)
        # Thousands of Tasks may have the same.
        self.problem = _Problem(sys.intern(text), config_map, version)


class _InvalidError(Exception):
    """A payload that can never be published; the text says why, and what to do."""


class Payloads:
    """The payloads of unfinished Tasks, by uid; see the module.

    Args:
        client: for the API server.
        task_of: the unfinished Task of a uid, if there is one.
        spawn: runs reads beside everything else.
        on_loaded: called with the uid of a Task whose payload is at hand now.
        on_error_changed: called with the uids of Tasks that `error` says something else of.
        on_invalid: called with the uid of a Task whose payload can never be published, and why.
        budget: bytes of payloads to keep.
    """

    def __init__(
        self,
        client: ApiClient,
        *,
        task_of: Callable[[str], Task | None],
        spawn: Spawn,
        on_loaded: Callable[[str], None],
        on_error_changed: Callable[[Sequence[str]], None],
        on_invalid: Callable[[str, str], None],
        budget: int = PAYLOAD_CACHE_BYTES,
    ) -> None:
        #: Has the payloads of items of TaskBatches, which are all at hand.
        self.items: BatchItems = NoBatches()
        self._client = client
        self._task_of = task_of
        self._on_loaded = on_loaded
        self._on_error_changed = on_error_changed
        self._on_invalid = on_invalid
        self._own = PayloadCache(budget)
        self._merged = PayloadCache(_MERGED_BYTES)
        self._config_maps = ConfigMaps(client)
        self._problems: dict[str, _Problem] = {}
        #: The Tasks that wait for each ConfigMap.
        self._waiters: dict[ConfigMapKey, set[str]] = {}
        self._loads: ReadPool[_LoadKey] = ReadPool(
            self._load,
            what="payloads",
            at_once=_LOADS_AT_ONCE,
            longest_seconds=_GONE_SECONDS,
            spawn=spawn,
        )
        self._retries: ReadPool[ConfigMapKey] = ReadPool(
            self._retry,
            what="ConfigMaps",
            at_once=_RETRIES_AT_ONCE,
            longest_seconds=LONGEST_RETRY_SECONDS,
            spawn=spawn,
        )

    def offer(self, uid: str, payload: bytes) -> None:
        """Take the payload of a new Task; it is kept if there is room."""
        self._own.offer(uid, payload)

    def is_at_hand(self, task: Task) -> bool:
        """Return whether a Task's payload can be published now."""
        if task.index is not None:
            return True
        return task.uid in (self._merged if task.spec.payload_from else self._own)

    def load(self, task: Task) -> None:
        """Have a payload at hand soon: then ``on_loaded`` is called, unless there is an error."""
        self._loads.request((task.namespace, task.name, task.uid))

    def body(self, task: Task) -> bytes:
        """Return the payload to publish, a JSON object in UTF-8.

        Raises:
            LookupError: it is not at hand.
        """
        if task.index is not None:
            return self.items.payload(task)
        payload = (self._merged if task.spec.payload_from else self._own).get(task.uid)
        if payload is None:
            raise LookupError(f"the payload of Task {task.path} is not at hand: load it first")
        return payload

    def digest(self, task: Task) -> str:
        """Return the beginning of the SHA-256 of a merged payload; "": there is none at hand."""
        merged = self._merged.get(task.uid) if task.spec.payload_from else None
        return "" if merged is None else sha256(merged).hexdigest()[:16]

    def error(self, uid: str) -> str | None:
        """Return why a payload cannot be put together, as far as known; None: it may be."""
        problem = self._problems.get(uid)
        return None if problem is None else problem.text

    def mark_published(self, uid: str) -> None:
        """Take note that a payload is with the broker: a retry alone needs it again."""
        self._merged.discard(uid)
        self._own.mark_published(uid)

    def discard(self, task: Task) -> None:
        """Keep nothing of a Task that is not dispatched any more."""
        self._own.discard(task.uid)
        self._merged.discard(task.uid)
        self._forget_problem(task.uid)

    async def _load(self, key: _LoadKey) -> float | None:
        """Have a payload at hand, or its error."""
        uid = key[2]
        task = self._task_of(uid)
        if task is None or self.is_at_hand(task):
            self._finish_load(uid)
            return None
        own, was_unread = self._own.get(uid), False
        if own is None:
            own = await self._read_own(task)
            if own is None:
                return _GONE_SECONDS if self._task_of(uid) is not None else None
            was_unread = self._forget_problem(uid)
            if self._task_of(uid) is not None:
                self._own.put(uid, own)
        if task.spec.payload_from:
            try:
                merged = await self._merge(task, own)
            except _UnresolvedError as error:
                self._take_problem(uid, error.problem)
                return None
            except _InvalidError as error:
                self._on_invalid(uid, str(error))
                return None
            if self._task_of(uid) is not None:
                self._merged.put(uid, merged)
        if was_unread:
            self._on_error_changed([uid])
        self._finish_load(uid)
        return None

    def _finish_load(self, uid: str) -> None:
        if self._task_of(uid) is not None:
            self._on_loaded(uid)

    async def _read_own(self, task: Task) -> bytes | None:
        """Return the payload of a Task as the API server has it; None: the Task is gone.

        Raises:
            ApiError: it cannot be read. The Task says so.
        """
        PAYLOAD_READS.inc()
        try:
            raw = await self._client.get(task_path(task.namespace, task.name))
        except ApiError as error:
            if error.status != 404:
                text = (
                    f"spec.payload: the operator cannot read this Task before its dispatch: {error}"
                )
                text += ": it tries again; if it is not allowed to, grant it get on Tasks"
                self._take_problem(task.uid, _Problem(text, None, None))
                raise
            return None
        return read_payload(raw) if raw["metadata"]["uid"] == task.uid else None

    # spec.payloadFrom.

    async def _merge(self, task: Task, own: bytes) -> bytes:
        """Return the sources' objects merged in order, and the Task's own payload on top.

        Raises:
            _UnresolvedError: a source gives no object.
            _InvalidError: what is merged is too large.
        """
        texts = [
            await self._text(task.namespace, source, _place(number))
            for number, source in enumerate(task.spec.payload_from)
        ]
        length = sum(len(text) for text, _ in texts)
        if length > SOURCES_LENGTH:
            raise _InvalidError(
                f"spec.payloadFrom: the texts it names have {length} characters, the limit is "
                f"{SOURCES_LENGTH}: keep the data elsewhere, put a reference to it into the "
                "payload, and create the Task again"
            )
        merged: dict[str, Any] = {}
        for number, (source, (text, found)) in enumerate(
            zip(task.spec.payload_from, texts, strict=True)
        ):
            merged |= _object(text, task.namespace, source, _place(number), found)
        try:
            body = encode(merged | decode_own(own), "payload")
        except NotJsonError as error:
            raise _InvalidError(
                f"spec.payloadFrom: merged, {error}; then create the Task again"
            ) from None
        problem = size_problem(len(body), merged=True)
        if problem:
            raise _InvalidError(problem)
        return body

    async def _text(
        self, namespace: str, source: PayloadSource, where: str
    ) -> tuple[str, ConfigMap]:
        key = (namespace, source.config_map)
        name = f"ConfigMap {namespace}/{source.config_map}"
        try:
            found = await self._config_maps.read(key)
        except ApiError as error:
            text = f"{where}: {name} cannot be read: {error}"
            raise _UnresolvedError(text, key, None) from None
        if not found.version:
            raise _UnresolvedError(f"{where}: {name} does not exist: create it", key, "")
        if source.key not in found.data:
            text = f"{where}: {name} has no key {source.key}: add it"
            raise _UnresolvedError(text, key, found.version)
        return found.data[source.key], found

    def _take_problem(self, uid: str, problem: _Problem) -> None:
        if self._task_of(uid) is None:
            return
        before = self.error(uid)
        self._forget_problem(uid)
        self._problems[uid] = problem
        if problem.config_map is not None:  # else the load is tried again
            self._waiters.setdefault(problem.config_map, set()).add(uid)
            self._retries.request_later(problem.config_map, RETRY_SECONDS)
        if problem.text != before:
            self._on_error_changed([uid])

    async def _retry(self, key: ConfigMapKey) -> float | None:
        """Read a ConfigMap again; have those Tasks tried that waited for another version of it."""
        if key not in self._waiters:
            return None
        found = await self._config_maps.read(key)
        waiters = self._waiters.get(key, ())
        woken = [uid for uid in waiters if self._problems[uid].version != found.version]
        for uid in woken:
            self._forget_problem(uid)
        self._on_error_changed(woken)
        return RETRY_SECONDS if key in self._waiters else None

    def _forget_problem(self, uid: str) -> bool:
        """Forget why a payload could not be put together; return whether there was a reason."""
        problem = self._problems.pop(uid, None)
        if problem is not None and problem.config_map is not None:
            waiters = self._waiters[problem.config_map]
            waiters.discard(uid)
            if not waiters:
                del self._waiters[problem.config_map]
        return problem is not None


def size_problem(size: int, *, merged: bool = False) -> str:
    """Return why a payload of so many bytes cannot be published; "": it can."""
    if size <= PAYLOAD_BYTES:
        return ""
    how = ", merged with what spec.payloadFrom names," if merged else ""
    return (
        f"spec.payload{how} has {size} bytes, the limit is {PAYLOAD_BYTES}: keep the data "
        "elsewhere, put a reference to it into the payload, and create the Task again"
    )


def _place(number: int) -> str:
    return f"spec.payloadFrom[{number}]"


def _object(
    text: str, namespace: str, source: PayloadSource, where: str, found: ConfigMap
) -> dict[str, Any]:
    """Return the object that a text is.

    Raises:
        _UnresolvedError: it is none.
    """
    key = (namespace, source.config_map)
    what = f"{where}: key {source.key} of ConfigMap {namespace}/{source.config_map}"
    try:
        parsed = decode(text)
    except ValueError as error:
        problem = f"{what} is not valid JSON ({error}): fix it"
        raise _UnresolvedError(problem, key, found.version) from None
    if not isinstance(parsed, dict):
        problem = f"{what} is not a JSON object: put {{...}} there"
        raise _UnresolvedError(problem, key, found.version)
    return parsed
