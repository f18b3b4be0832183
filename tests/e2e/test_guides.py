"""Every manifest of docs/guides does on a real cluster what its page says of it."""

from __future__ import annotations

import re
import shlex
import time
from collections import Counter, defaultdict, deque
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import yaml

from tests.e2e.api import Body
from tests.e2e.guides import (
    GUIDES,
    KINDS,
    Block,
    Document,
    Statement,
    Subject,
    blocks,
    command,
    documents,
    handlers,
    handlers_of,
    pages,
    tables,
)
from tests.e2e.harness import HANDLERS, Harness
from tests.e2e.observations import Observations

ROOT = GUIDES.parents[1]
DOCS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])

#: For everything together. None of it waits that long unless the machine is busy.
SECONDS = 150
#: The TaskQueue of most examples, and as many Tasks as make it have all its workers.
QUEUE, MANY, WORKERS = "work", 6, 2

#: Columns of `kubectl get tqt` that a page's table must be right in.
_COLUMNS = {
    "QUEUE": ("spec", "queue"),
    "HANDLER": ("spec", "handler"),
    "PHASE": ("status", "phase"),
    "ATTEMPTS": ("status", "attempts"),
    "REASON": ("status", "reason"),
}

#: What a part of an object is merged into, for the API server to judge it.
_WHOLE: dict[str, Body] = {
    "Task": {"queue": "work", "handler": "greet"},
    "TaskQueue": {"broker": {"connectionSecret": {"name": "rabbit"}}},
    "TaskSchedule": {
        "schedules": ["0 0 * * *"],
        "taskTemplate": {"spec": {"queue": "work", "handler": "greet"}},
    },
}


def for_kubectl(page: str) -> list[Block]:
    return [block for block in blocks(page, "yaml") if not block.word]


def modules() -> dict[str, str]:
    """Return the ConfigMap of handlers: the pages' blocks, and `handlers`, which imports them."""
    found = {
        f"of_{block.page.removesuffix('.md').replace('-', '_')}_{block.line}": block.text
        for page in pages()
        for block in blocks(page, "python")
        if handlers(block)
    }
    found["of_tests"] = HANDLERS.read_text()
    found["handlers"] = "".join(f"import {name}\n" for name in found)
    return {f"{name}.py": text for name, text in found.items()}


@pytest.mark.parametrize("page", pages())
def test_blocks_are_sound(page: str) -> None:
    for block in blocks(page, "python"):
        compile(block.text, block.place, "exec")
    for block in blocks(page, "yaml"):
        assert all(yaml.safe_load_all(block.text)), block.place
    for block in for_kubectl(page):
        documents(block)
    for block in blocks(page, "sh"):
        command(block)


@pytest.mark.parametrize("page", DOCS, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target, anchor in re.findall(r"\]\((?!\w+:)([^)#]*)(?:#([^)]*))?\)", page.read_text()):
        there = (page.parent / target).resolve() if target else page
        assert there.exists(), f"{page.name} links to {target}, which does not exist"
        assert not anchor or anchor in anchors(there), f"{page.name}: no #{anchor} in {target}"


def anchors(page: Path) -> list[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), flags=re.MULTILINE)
    return [re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings]


def test_handlers_have_one_home_each() -> None:
    homes = Counter(handlers_of(HANDLERS))
    for page in pages():
        for block in blocks(page, "python"):
            homes.update(handlers(block))
    assert not [name for name, count in homes.items() if count > 1]
    for document in all_documents():
        if document.subject[0] == "Task" and not document.applies:
            assert document.body["spec"]["handler"] in homes, document.place


def all_documents() -> Iterator[Document]:
    for page in pages():
        for block in for_kubectl(page):
            yield from (one for one in documents(block) if not one.part_of)


class Walk:
    """Applies and runs the blocks, each when what was said of its objects before has come."""

    def __init__(self, harness: Harness) -> None:
        self._harness = harness
        self._due: dict[Subject, deque[tuple[str, Statement]]] = defaultdict(deque)
        #: How many versions of an object came before what was seen of it last.
        self._looked_at: dict[Subject, int] = defaultdict(int)
        self._blocks = [block for page in pages() for block in self._to_do(page)]
        self.problems: list[str] = []

    def go(self, seconds: float) -> None:
        """Walk until everything was seen, or time is up; `problems` tells what is wrong."""
        deadline = time.monotonic() + seconds
        while self._blocks or any(self._due.values()):
            for block in list(self._blocks):
                if not any(self._due[subject] for subject in _subjects(block)):
                    self._blocks.remove(block)
                    self._do(block)
            for subject in list(self._due):
                self._look(subject)
            if time.monotonic() > deadline:
                break
            time.sleep(0.1)  # between two looks at what a watch has brought
        for due in self._due.values():
            self.problems += [f"{place}: not seen: {one.subject} {one.text}" for place, one in due]
        self.problems += [f"{block.place}: its turn never came" for block in self._blocks]

    def _to_do(self, page: str) -> list[Block]:
        shell = [block for block in blocks(page, "sh") if command(block)]
        return sorted([*for_kubectl(page), *shell], key=lambda block: block.line)

    def _do(self, block: Block) -> None:
        known = len(self.problems)
        if block.language == "sh":
            self._run(block)
        else:
            self._apply(block)
        if len(self.problems) == known:
            for one in _stated(block):
                self._due[one.subject].append((block.place, one))

    def _run(self, block: Block) -> None:
        for line in block.text.splitlines():
            words = shlex.split(line, comments=True)
            if words:
                assert words[0] == "kubectl", f"{block.place}: only kubectl is run, not {line!r}"
                self._kubectl(block, *words[1:])

    def _apply(self, block: Block) -> None:
        parts = [one for one in documents(block) if one.part_of]
        for part in parts:
            whole = {
                "apiVersion": "taskqueue.dev/v1alpha1",
                "kind": part.part_of,
                "metadata": {"name": "whole"},
                "spec": _WHOLE[part.part_of] | part.body["spec"],
            }
            self._kubectl(
                block, "apply", "--dry-run=server", "-f", "-", input=yaml.safe_dump(whole)
            )
        if not parts:
            self._kubectl(block, "apply", "-f", "-", input=block.text)

    def _kubectl(self, block: Block, *arguments: str, input: str | None = None) -> None:
        done = self._harness.kubectl("-n", self._harness.namespace, *arguments, input=input)
        if done.returncode:
            self.problems.append(f"{block.place}: {done.stderr.strip()}")

    def _look(self, subject: Subject) -> None:
        kind, name = subject
        observations = self._harness.tasks if kind == "Task" else self._harness.queues
        due, versions = self._due[subject], observations.versions(name)
        while due:
            _, statement = due[0]
            if statement.deleted:
                if not _is_gone(observations, name):
                    return
            else:
                after = self._looked_at[subject]
                places = (at for at in range(after, len(versions)) if statement.holds(versions[at]))
                place = next(places, None)
                if place is None:
                    return
                self._looked_at[subject] = place
            due.popleft()


def _is_gone(observations: Observations, name: str) -> bool:
    try:
        observations.wait_deleted(name, seconds=0)
    except AssertionError:
        return False
    return True


def _subjects(block: Block) -> set[Subject]:
    """Return what a block is about, of what can be said anything about."""
    about = {one.subject for one in _stated(block)}
    if block.language == "sh":
        return about
    whole = [one for one in documents(block) if not one.part_of]
    return about | {one.subject for one in whole if one.subject[0] in KINDS}


def _stated(block: Block) -> tuple[Statement, ...]:
    if block.language == "sh":
        return command(block)
    return tuple(one for document in documents(block) for one in document.statements)


def warm_up(harness: Harness) -> None:
    """Return when the workers take work: the pages' deadlines have no time for their start."""
    [queue] = for_kubectl("README.md")
    harness.kubectl.ok("-n", harness.namespace, "apply", "-f", "-", input=queue.text)
    harness.batch("warm-up", MANY, "wait", queue=QUEUE, payload={"seconds": 1})
    harness.registered(WORKERS, QUEUE)


@pytest.mark.cluster
def test_manifests_do_what_their_pages_say(harness: Harness) -> None:
    harness.api.patch(harness.core("configmaps", "handlers"), {"data": modules()})
    warm_up(harness)
    walk = Walk(harness)
    walk.go(SECONDS)
    problems = walk.problems
    for page in pages():
        for block in blocks(page, "console"):
            problems += [
                f"{block.place}: never seen: {dict(row)}"
                for row in tables(block)
                if not any(_shows(row, version) for version in harness.tasks.versions(row["NAME"]))
            ]
    assert not problems, "\n".join(problems)


def _shows(row: Mapping[str, str], version: Body) -> bool:
    """Tell whether kubectl showed this version of a Task in this row."""
    return all(
        row[column] == str(version.get(part, {}).get(field, ""))
        for column, (part, field) in _COLUMNS.items()
        if column in row
    )
