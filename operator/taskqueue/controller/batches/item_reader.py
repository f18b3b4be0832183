"""Reads the items of a batch from where they are."""

from __future__ import annotations

from taskqueue.controller.batches.decisions import ITEMS_NOT_FOUND, Problem
from taskqueue.controller.batches.items import ListedItems, items_of_lines
from taskqueue.kubernetes.client import ApiClient, ApiError
from taskqueue.model.batch import Batch
from taskqueue.model.task import PayloadSource


async def read_items(
    client: ApiClient, batch: Batch, source: PayloadSource
) -> ListedItems | Problem:
    """Return the items of a ConfigMap, or why they are not there.

    Raises:
        InvalidItemsError: what is there can never be used.
    """
    name = f"ConfigMap {batch.namespace}/{source.config_map}"
    path = f"/api/v1/namespaces/{batch.namespace}/configmaps/{source.config_map}"
    try:
        data = (await client.get(path)).get("data") or {}
    except ApiError as error:
        text = "does not exist: create it" if error.status == 404 else f"cannot be read: {error}"
        return Problem(ITEMS_NOT_FOUND, f"spec.itemsFrom: {name} {text}")
    if source.key not in data:
        text = f"spec.itemsFrom: {name} has no key {source.key}: add it"
        return Problem(ITEMS_NOT_FOUND, text)
    return await items_of_lines(data[source.key], f"spec.itemsFrom: key {source.key} of {name}")
