"""What a worker does with results and output: part of its settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from taskqueue.model.result_environment import (
    OUTPUT_VARIABLE,
    POLICY_VARIABLE,
    RESULT_DIRECTORY_VARIABLE,
    RETENTION_VARIABLE,
)
from taskqueue.model.result_environment import RESULT_VARIABLES as NAMES
from taskqueue.results.source import StoreSource
from taskqueue.worker.variables import Variable, number


class KeptOutput(StrEnum):
    """Whose output is kept; the value of spec.results.output."""

    NONE = "None"
    FAILED = "Failed"
    ALL = "All"


def _output(text: str) -> KeptOutput:
    try:
        return KeptOutput(text)
    except ValueError:
        raise ValueError("give None, Failed or All") from None


def _is_always(text: str) -> bool:
    if text not in ("Overflow", "Always"):
        raise ValueError("give Overflow or Always")
    return text == "Always"


_POLICY = Variable(
    POLICY_VARIABLE,
    "results that go to the store: `Overflow`, those that no status takes, or `Always`, each",
    _is_always,
    default="`Overflow`",
)
_RETENTION = Variable(
    RETENTION_VARIABLE,
    "how long Redis keeps a result; other stores keep it until the operator deletes it",
    number(lowest=1.0, highest=1e10),
    default="without end",
    unit="s",
)
_OUTPUT = Variable(
    OUTPUT_VARIABLE,
    "attempts whose output is kept, in the store or with a failure: `None`, `Failed` or `All`",
    _output,
    default="`None`",
)

RESULT_VARIABLES = (
    Variable(
        "TASKQUEUE_RESULTS_URI",
        "store of results: `postgresql://`, `redis://`, `rediss://` or `s3://bucket/prefix`",
        default="none",
    ),
    Variable("TASKQUEUE_RESULTS_ENDPOINT", "of S3: where it is", default="Amazon's"),
    Variable("TASKQUEUE_RESULTS_REGION", "of S3", default="`us-east-1`"),
    Variable("TASKQUEUE_RESULTS_ACCESS_KEY_ID", "of S3", default="what the pod's role has"),
    Variable("TASKQUEUE_RESULTS_SECRET_ACCESS_KEY", "of S3; required with the key's id"),
    Variable(
        RESULT_DIRECTORY_VARIABLE,
        "directory with the keys of the store's Secret as files (`uri`, `endpoint`, `region`, "
        "`accessKeyId`, `secretAccessKey`), which are read again for each result and count before "
        "the variables above",
        default="none",
    ),
    _POLICY,
    _RETENTION,
    _OUTPUT,
)


@dataclass(frozen=True, slots=True)
class ResultSettings:
    """Holds what a worker needs to know about results.

    Attributes:
        source: says where the store is; None: there is none.
        always: every result goes to the store; else those that no status takes.
        retention_seconds: after which Redis deletes one; None: never.
        output: whose output is kept.
    """

    source: StoreSource | None = None
    always: bool = False
    retention_seconds: float | None = None
    output: KeptOutput = KeptOutput.NONE

    @classmethod
    def read(cls, texts: Mapping[str, str]) -> ResultSettings:
        """Read the variables that are set.

        Raises:
            SettingsError: one is wrong.
        """
        directory = texts.get(RESULT_DIRECTORY_VARIABLE, "")
        named = directory or any(texts.get(name) for name in NAMES)
        retention = texts.get(RETENTION_VARIABLE)
        return cls(
            StoreSource(texts, directory) if named else None,
            _POLICY.read(texts.get(POLICY_VARIABLE, "Overflow")),
            None if retention is None else _RETENTION.read(retention),
            _OUTPUT.read(texts.get(OUTPUT_VARIABLE, KeptOutput.NONE)),
        )
