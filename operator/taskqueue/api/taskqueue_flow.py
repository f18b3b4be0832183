"""The parts of a TaskQueue's spec that say how its Tasks share, wait and exclude each other."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field
from pydantic.config import JsonDict

from taskqueue.api.common import (
    CONCURRENCY_KEY_MAX_LENGTH,
    DAY_SECONDS,
    DNS_LABEL_PATTERN,
    ApiModel,
    validations,
)
from taskqueue.limits import LABEL_LENGTH

OnConflict = Literal["Queue", "KeepNewest", "CancelRunning", "Reject"]
FairnessKeyType = Literal["Label"]
RateLimitScope = Literal["Queue", "PerKey"]

#: A label's name: an optional DNS prefix and a slash, and up to 63 characters.
LABEL_NAME_PATTERN = (
    r"^([a-z0-9]([-.a-z0-9]*[a-z0-9])?/)?[A-Za-z0-9]([-_.A-Za-z0-9]{0,61}[A-Za-z0-9])?$"
)
_LABEL_NAME_LENGTH = 253 + 1 + LABEL_LENGTH
_LABEL_VALUE_PATTERN = r"^([A-Za-z0-9]([-_.A-Za-z0-9]*[A-Za-z0-9])?)?$"
_OVERRIDES_MAX_ITEMS = 64
_WEIGHTS_MAX_ITEMS = 256
_RATE_LIMITS_MAX_ITEMS = 8
_MOST_WEIGHT = 1000


def _map_by(key: str) -> JsonDict:
    return {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": [key]}


class ConcurrencyOverride(ApiModel):
    """Another limit for the concurrency keys with a prefix."""

    key_prefix: str = Field(
        min_length=1,
        max_length=CONCURRENCY_KEY_MAX_LENGTH,
        description=(
            "Beginning of the keys that the limit is for, at most 253 characters. Of several that "
            "fit, the longest applies. Required."
        ),
    )
    per_key: int = Field(
        ge=1,
        le=1000,
        description=(
            "Maximum number of Tasks with the same key that are dispatched at a time, 1 to 1000. "
            "Required."
        ),
    )


class ConcurrencyLimits(ApiModel):
    """Limits on the Tasks of a queue that are dispatched at a time."""

    model_config = ConfigDict(
        json_schema_extra=validations(
            (
                '!has(self.onConflict) || self.onConflict == "Queue" || '
                "(self.perKey == 1 && (!has(self.overrides) || size(self.overrides) == 0))",
                "onConflict other than Queue lets one Task of a key run at a time: set perKey to 1 "
                "and remove overrides, or set onConflict to Queue",
                "onConflict",
            )
        )
    )

    per_key: int = Field(
        1,
        ge=1,
        le=1000,
        description=(
            "Maximum number of Tasks with the same spec.concurrencyKey that are dispatched at a "
            "time, 1 to 1000; 1 by default."
        ),
    )
    overrides: tuple[ConcurrencyOverride, ...] = Field(
        default_factory=tuple,
        max_length=_OVERRIDES_MAX_ITEMS,
        description=(
            "Other limits than perKey for keys with certain beginnings, at most 64. Empty by "
            "default."
        ),
        json_schema_extra=_map_by("keyPrefix"),
    )
    on_conflict: OnConflict = Field(
        "Queue",
        description=(
            "What becomes of Tasks whose key has as many others as may be dispatched. Queue, the "
            "default: they wait, by priority and age. KeepNewest: only the newest waits, older "
            "ones that are not dispatched end as Cancelled with reason Superseded. CancelRunning: "
            "as KeepNewest, and those that are dispatched end as well. Reject: they end as "
            "Cancelled with reason Rejected. All but Queue need perKey 1 and no overrides."
        ),
    )


class FairnessKey(ApiModel):
    """What says which Tasks belong together."""

    type: FairnessKeyType = Field(
        description="Where the key of a Task is. Label: it is the value of one of its labels."
    )
    name: str = Field(
        min_length=1,
        max_length=_LABEL_NAME_LENGTH,
        pattern=LABEL_NAME_PATTERN,
        description=(
            "Name of the label, for example team or example.com/tenant. It is read when the Task "
            "is created. Tasks without it share the empty key. Required."
        ),
    )


class FairnessWeight(ApiModel):
    """The weight of one fairness key."""

    value: str = Field(
        max_length=LABEL_LENGTH,
        pattern=_LABEL_VALUE_PATTERN,
        description="The key; empty for Tasks without the label. Required.",
    )
    weight: int = Field(
        ge=1,
        le=_MOST_WEIGHT,
        description="Its weight, 1 to 1000, in proportion to those of the others. Required.",
    )


class Fairness(ApiModel):
    """How Tasks of different keys share what is dispatched."""

    key: FairnessKey = Field(description="What the fairness key of a Task is. Required.")
    weights: tuple[FairnessWeight, ...] = Field(
        default_factory=tuple,
        max_length=_WEIGHTS_MAX_ITEMS,
        description="Weights of certain keys, at most 256. Empty by default.",
        json_schema_extra=_map_by("value"),
    )
    default_weight: int = Field(
        1,
        ge=1,
        le=_MOST_WEIGHT,
        description="Weight of all other keys, 1 to 1000; 1 by default.",
    )


class FlowRateLimit(ApiModel):
    """How many attempts may be dispatched in a time."""

    name: str = Field(
        min_length=1,
        max_length=LABEL_LENGTH,
        pattern=DNS_LABEL_PATTERN,
        description="Name of the limit, for messages. Required.",
    )
    scope: RateLimitScope = Field(
        "Queue",
        description=(
            "What the limit is for. Queue, the default: all Tasks of the queue together. PerKey: "
            "each fairness key by itself; needs flow.fairness."
        ),
    )
    attempts: int = Field(
        ge=1,
        le=1_000_000,
        description="Number of attempts in a period, 1 to 1000000, retries included. Required.",
    )
    period_seconds: int = Field(
        ge=1,
        le=DAY_SECONDS,
        description=(
            "Length of the period in whole seconds, 1 to 86400. Attempts are spread evenly over "
            "it, but for burst. Required."
        ),
    )
    burst: int = Field(
        1,
        ge=1,
        le=1_000_000,
        description=(
            "How many attempts may be dispatched at once, after a time with fewer, 1 to 1000000; 1 "
            "by default. In any period at most attempts + burst - 1 are dispatched."
        ),
    )


class FlowPriorityAgeing(ApiModel):
    """How the priority of a waiting Task grows."""

    per_seconds: int = Field(
        ge=1,
        le=DAY_SECONDS,
        description="In how many seconds the priority grows by step, 1 to 86400. Required.",
    )
    step: int = Field(
        ge=1,
        le=1000,
        description="By how much the priority grows in that time, 1 to 1000. Required.",
    )


class Flow(ApiModel):
    """How the Tasks of a queue share what is dispatched, how fast, and how many wait."""

    model_config = ConfigDict(
        json_schema_extra=validations(
            (
                "has(self.fairness) || !has(self.rateLimits) || "
                'self.rateLimits.all(one, one.scope != "PerKey")',
                "a rate limit of scope PerKey needs spec.flow.fairness, which says what the keys "
                "are: add it, or use scope Queue",
                "rateLimits",
            )
        )
    )

    fairness: Fairness | None = Field(
        None,
        description=(
            "Tasks of different keys are dispatched in proportion to the weights of these, as long "
            "as they wait; the priority orders the Tasks of one key. None by default: priority and "
            "age alone count."
        ),
    )
    rate_limits: tuple[FlowRateLimit, ...] = Field(
        default_factory=tuple,
        max_length=_RATE_LIMITS_MAX_ITEMS,
        description=(
            "How many attempts are dispatched in a time, at most 8 limits. An attempt is "
            "dispatched when all of them let it pass. Empty by default."
        ),
        json_schema_extra=_map_by("name"),
    )
    priority_ageing: FlowPriorityAgeing | None = Field(
        None,
        description=(
            "Lets the priority of a Task grow while it waits, from its creation or its startAfter "
            "on, without an upper bound. None by default: it does not."
        ),
    )
    max_waiting: int | None = Field(
        None,
        ge=1,
        le=1_000_000,
        description=(
            "Maximum number of Tasks that wait for their turn, 1 to 1000000. Those above it are "
            "Blocked with reason QueueFull until there is room, and ask for no workers. None by "
            "default: no limit."
        ),
    )
