"""The memory benchmark holds the Tasks that it says, whatever they take."""

from __future__ import annotations

import pytest

from tests.bench import memory
from tests.bench.report import Report


@pytest.mark.parametrize("dependencies", [0, 3])
async def test_memory_is_measured_of_tasks_that_wait(
    dependencies: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "_REST_SECONDS", 0.01)
    monkeypatch.setattr(memory, "_WARM_UP", 3)
    outcome = await memory.run(memory.Settings(tasks=120, dependencies=dependencies), Report())
    assert outcome.figures["tasks"] == 120
    assert {"bytes_per_task", "longest_turn_ms"} <= set(outcome.figures)
