"""What a TaskQueue says of the results of its Tasks: `spec.results`."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field

from taskqueue.api.common import YEAR_SECONDS, ApiModel, validations
from taskqueue.api.taskqueue_pool import SecretReference

#: Shortest time that results are kept: whoever waits for a Task has to have time to read it.
MIN_RETENTION_SECONDS = 60


class ResultStore(ApiModel):
    """Where results are kept outside the cluster's API server."""

    connection_secret: SecretReference = Field(
        description=(
            "Secret with the connection to the store, in the namespace of the TaskQueue: the key "
            "uri (postgresql://, redis://, rediss:// or s3://bucket/prefix), and for S3 endpoint, "
            "region, accessKeyId and secretAccessKey. Required."
        ),
    )


class Results(ApiModel):
    """What becomes of the results of a queue's Tasks."""

    model_config = ConfigDict(
        json_schema_extra=validations(
            (
                '!has(self.policy) || self.policy != "Always" || has(self.store)',
                "spec.results.policy Always needs a store: give spec.results.store, or Overflow",
            )
        )
    )

    policy: Literal["Overflow", "Always"] = Field(
        "Overflow",
        description=(
            "Which results go to the store. Overflow, the default: those that status.result cannot "
            "have, because they are above 16 KiB or are bytes. Always: each, so that statuses have "
            "none; needs a store."
        ),
    )
    store: ResultStore | None = Field(
        None,
        description=(
            "The store. A Task whose result is in it has status.resultRef. None by default: a "
            "result of more than 16 KiB, or of bytes, fails its Task."
        ),
    )
    retention_seconds: int | None = Field(
        None,
        ge=MIN_RETENTION_SECONDS,
        le=10 * YEAR_SECONDS,
        description=(
            "How long the store keeps what was written, in whole seconds, 60 to 315360000, "
            "whatever becomes of the Tasks. None by default: until somebody deletes it."
        ),
    )
    output: Literal["None", "Failed", "All"] = Field(
        "None",
        description=(
            "Whose output is kept: what an attempt printed, its last 256 KiB, goes to the store. "
            "None, the default: nobody's. Failed: that of attempts that failed. All: that of every "
            "attempt. Without a store the last 4 KiB of a failed attempt are in its history entry."
        ),
    )
