"""Messages as commit 0829e12 wrote them, by what they are about: see older_messages.json.

Printed by `older_side.py` and, those of the Go worker, by `older_side_test.go`, each run in the
sources of that commit; bodies that are JSON are parsed. Tests hold the file to what the two print.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_Messages = Mapping[str, Any]

ALL: Mapping[str, _Messages] = json.loads(Path(__file__).with_suffix(".json").read_text())

#: For work queues, by the operator and by producers.
WORK = ALL["WORK"]
#: For the operator, by Python workers and by Go workers.
EVENTS, GO_EVENTS = ALL["EVENTS"], ALL["GO_EVENTS"]
#: Likewise; those of Go workers without the envelope.
HEARTBEATS, GO_HEARTBEATS = ALL["HEARTBEATS"], ALL["GO_HEARTBEATS"]
#: For workers, by the operator.
COMMANDS = ALL["COMMANDS"]
#: Of workers, and of the operator.
DEAD_LETTERS = ALL["DEAD_LETTERS"]
#: For anybody, by the operator.
COMPLETIONS = ALL["COMPLETIONS"]
