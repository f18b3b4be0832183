"""The diagrams of docs/concepts.md are those of the code."""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import Enum
from itertools import product
from pathlib import Path

from taskqueue.controller.tasks import effects, events
from taskqueue.controller.tasks.events import Confirmation
from taskqueue.controller.tasks.lifecycle import PHASES
from taskqueue.controller.tasks.tracked_task import TaskStage
from taskqueue.controller.tasks.transition import STAGES
from taskqueue.model.task import Phase
from tests.unit.controller.tasks.task_life import KEYED
from tests.unit.controller.tasks.task_model import TaskModel

PAGE = (Path(__file__).resolve().parents[4] / "docs" / "concepts.md").read_text()
BLOCKS = re.findall(r"^```mermaid\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
PHASE_DIAGRAM, SEQUENCE, STAGE_DIAGRAM = BLOCKS

#: What each arrow of the operator's is in the machine; others are not the machine's.
ARROWS = {
    "write the claim of the key": effects.WriteStatus,
    "publish the attempt": effects.Publish,
    "write the final status": effects.WriteStatus,
    "publish the completion event": effects.PublishCompletion,
    "acknowledge the outcome": effects.Acknowledge,
}


def drawn(diagram: str) -> tuple[set[tuple[str, str]], set[str]]:
    """Return the transitions of a state diagram, boxes taken apart, and the first states."""
    labels = dict(re.findall(r'^ *state "(.+)" as (\w+)$', diagram, re.MULTILINE))
    labels = {name: label for label, name in labels.items()}
    inner = re.search(r"state (\w+) \{\n(.*?)^  \}$", diagram, re.MULTILINE | re.DOTALL)
    assert inner is not None
    arrows = re.findall(r"^ *(\S+) --> ([^\s:]+)", diagram, re.MULTILINE)
    inside = set(re.findall(r"(\w+) -->|--> (\w+)", inner[2]))
    members = {one for pair in inside for one in pair if one}

    def names(box: str) -> set[str]:
        if box == inner[1]:
            return {one for member in members for one in names(member)}
        return set(labels.get(box, box).split(", "))

    pairs: set[tuple[str, str]] = set()
    for source, target in arrows:
        if "[*]" not in (source, target):
            pairs |= {pair for pair in product(names(source), names(target)) if len(set(pair)) > 1}
    first = {target for source, target in arrows if source == "[*]" and target != inner[1]}
    return pairs, first


def pairs_of(table: Mapping[Enum, frozenset[Enum]], name: str) -> set[tuple[str, str]]:
    return {
        (getattr(one, name).capitalize(), getattr(other, name).capitalize())
        for one, others in table.items()
        for other in others
    }


def test_phase_diagram_shows_the_transitions_that_lifecycle_allows() -> None:
    pairs, first = drawn(PHASE_DIAGRAM)
    assert pairs == pairs_of(PHASES, "value")  # type: ignore[arg-type]
    assert first == {Phase.PENDING.value}


def test_stage_diagram_shows_the_transitions_of_the_machine() -> None:
    pairs, first = drawn(STAGE_DIAGRAM)
    assert pairs == pairs_of(STAGES, "name")  # type: ignore[arg-type]
    assert first == {TaskStage.NEW.name.capitalize()}


def test_sequence_diagram_has_the_order_of_the_machine() -> None:
    done: list[type] = []

    class Watched(TaskModel):
        def _execute(self, effect: effects.Effect, *about: object) -> None:
            if type(effect) in ARROWS.values():
                done.append(type(effect))
            super()._execute(effect, *about)  # type: ignore[arg-type]

    model = Watched.of(KEYED)
    model.send(events.Seen())
    model.give_turn()
    model.begin_write()
    model.end_write()
    model.settle(model.copies[0], Confirmation.CONFIRMED, arrived=True)
    model.report(model.copies[0], "succeeded")
    model.begin_write()
    model.end_write()
    model.confirm_completion()
    arrows = re.findall(r"^ *operator->>\w+: (.+)$", SEQUENCE, re.MULTILINE)
    assert [ARROWS[one] for one in arrows] == done
