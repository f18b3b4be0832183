"""Where a Task came from, and who acted on it, as far as its object says so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskOrigin:
    """What an object's metadata says of a Task.

    Attributes:
        labels: of the object.
        submitted_by: who created it; "": not known.
        cancelled_by: who set spec.cancel; "": nobody, or not known.
        retry_of: the name of the Task that this one runs again; "" for none.
    """

    labels: Mapping[str, str] = field(default_factory=dict)
    submitted_by: str = ""
    cancelled_by: str = ""
    retry_of: str = ""
