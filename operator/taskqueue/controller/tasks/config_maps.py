"""Reads ConfigMaps: once for all who ask at the same time, or a moment later."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field

from taskqueue.kubernetes.client import ApiClient, ApiError

#: (namespace, name) of a ConfigMap.
ConfigMapKey = tuple[str, str]

#: For how long what was read is given to others who ask, in seconds.
SHARED_SECONDS = 2.0
#: Characters that are kept so, at most: ConfigMaps have up to a million each.
_KEPT_LENGTH = 8 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class ConfigMap:
    """A ConfigMap as it was read.

    Attributes:
        version: changes with its content; "" while it does not exist.
        data: text by key.
    """

    version: str = ""
    data: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def length(self) -> int:
        """Characters of all its texts."""
        return sum(map(len, self.data.values()))


class ConfigMaps:
    """Reads ConfigMaps, and keeps each for `SHARED_SECONDS`.

    Args:
        client: for the API server.
    """

    def __init__(self, client: ApiClient) -> None:
        self._client = client
        self._reads: dict[ConfigMapKey, asyncio.Task[ConfigMap]] = {}
        #: With the time until which each is given to others; the oldest first.
        self._kept: OrderedDict[ConfigMapKey, tuple[float, ConfigMap]] = OrderedDict()
        self._length = 0

    async def read(self, key: ConfigMapKey) -> ConfigMap:
        """Return a ConfigMap as it was a moment ago at most.

        Raises:
            ApiError: it cannot be read. One that does not exist is no error.
        """
        loop = asyncio.get_running_loop()
        self._drop_old(loop.time(), room=0)
        kept = self._kept.get(key)
        if kept is not None:
            return kept[1]
        reading = self._reads.get(key)
        if reading is None:
            reading = self._reads[key] = loop.create_task(self._read(key), name="ConfigMap")
        return await asyncio.shield(reading)

    async def _read(self, key: ConfigMapKey) -> ConfigMap:
        namespace, name = key
        try:
            raw = await self._client.get(f"/api/v1/namespaces/{namespace}/configmaps/{name}")
            version = raw.get("metadata", {}).get("resourceVersion", "there")
            found = ConfigMap(version, raw.get("data") or {})
        except ApiError as error:
            if error.status != 404:
                raise
            found = ConfigMap()
        finally:
            del self._reads[key]
        now = asyncio.get_running_loop().time()
        self._drop_old(now, room=found.length)
        self._kept[key] = (now + SHARED_SECONDS, found)
        self._length += found.length
        return found

    def _drop_old(self, now: float, *, room: int) -> None:
        while self._kept:
            key, (until, kept) = next(iter(self._kept.items()))
            if now < until and self._length + room <= _KEPT_LENGTH:
                return
            del self._kept[key]
            self._length -= kept.length
