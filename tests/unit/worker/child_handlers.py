"""What a fork server imports that a test has started anew."""

from __future__ import annotations

import os
from typing import Any

from taskqueue import task


@task("f")
def pid(payload: dict[str, Any]) -> int:
    return os.getpid()
