"""The pages of docs/guides as what they promise: blocks to apply, and statements of what follows.

docs/guides/README.md tells readers how statements are written. In full: a comment at the top of a
YAML document, or the first line of a ``sh`` block, says ``becomes:`` or ``ends:`` with a phase, a
reason and a number of attempts, ``result:`` with JSON, or ``then: deleted``. It is about the
document's own object unless it names another Task. ``applies`` promises no more than that the API
server takes it; ``part of a TaskQueue`` (or Task) marks what is no whole object.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.e2e.api import Body

GUIDES = Path(__file__).parents[2] / "docs" / "guides"

#: Kinds that have to say what follows.
KINDS = ("Task", "TaskQueue")

#: Kind and name of an object.
Subject = tuple[str, str]

_FENCE = re.compile(r"^```(\S*)(?: +(\S+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_STATEMENT = re.compile(
    r"# (?:(?P<name>[a-z0-9.-]+) )?(?P<verb>becomes|ends|result|then): (?P<what>.+)"
)
_WHAT = re.compile(r"(?P<phase>\w+)(?:, (?P<reason>\w+))?(?: after (?P<attempts>\d+) attempts?)?")
_PART = re.compile(r"# part of a (TaskQueue|TaskSchedule|Task)")


class Unclear(Exception):
    """A page says something that cannot be understood."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """Something that must be seen of an object, in this order with its others."""

    subject: Subject
    text: str
    phase: str = ""
    reason: str | None = None
    attempts: int | None = None
    result: Any = None
    deleted: bool = False

    def holds(self, seen: Body) -> bool:
        """Tell whether a version of the object is as stated."""
        status = seen.get("status") or {}
        if self.result is not None:
            return bool(status.get("result") == self.result)
        phase, reason = _phase(self.subject[0], status)
        return (
            phase == self.phase
            and self.reason in (None, reason)
            and self.attempts in (None, status.get("attempts", 0))
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A fenced block. ``word`` is what follows the language in the fence."""

    page: str
    line: int
    language: str
    word: str
    text: str

    @property
    def place(self) -> str:
        """Where it is, for people."""
        return f"docs/guides/{self.page}:{self.line}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """One object of a YAML block; ``part_of`` is the kind of what it is a part of, or empty."""

    place: str
    body: Body
    part_of: str
    applies: bool
    statements: tuple[Statement, ...]

    @property
    def subject(self) -> Subject:
        """Which object it is."""
        return self.body["kind"], self.body["metadata"]["name"]


def pages() -> list[str]:
    """Return the names of all pages."""
    return sorted(page.name for page in GUIDES.glob("*.md"))


def blocks(page: str, language: str) -> list[Block]:
    """Return the blocks of a page in a language."""
    text = (GUIDES / page).read_text()
    return [
        Block(
            page=page,
            line=text.count("\n", 0, found.start()) + 1,
            language=language,
            word=found[2] or "",
            text=found[3],
        )
        for found in _FENCE.finditer(text)
        if found[1] == language
    ]


def documents(block: Block) -> list[Document]:
    """Return the objects of a block that is for kubectl.

    Raises:
        Unclear: a Task, a TaskQueue or the whole says nothing, or something that is no statement.
    """
    found = [_document(block, text) for text in re.split(r"^---$", block.text, flags=re.MULTILINE)]
    if not any(one.applies or one.part_of or one.statements for one in found):
        raise Unclear(f"{block.place}: nothing says what follows")
    return found


def command(block: Block) -> tuple[Statement, ...]:
    """Return what a shell block says will follow; nothing if it is not to be run."""
    return tuple(_statements(block.place, block.text, None))


def handlers(block: Block) -> list[str]:
    """Return the names of the handlers that a Python block defines."""
    return _handlers(ast.parse(block.text, block.place))


def handlers_of(path: Path) -> list[str]:
    """Return the names of the handlers that a module defines."""
    return _handlers(ast.parse(path.read_text()))


def tables(block: Block) -> Iterator[Mapping[str, str]]:
    """Yield the rows of every table of Tasks that a console block shows, by column.

    A table with a column PERCENT is of TaskBatches.
    """
    columns: dict[str, int] = {}
    for line in block.text.splitlines():
        if line.startswith("$") or not line.strip():
            columns = {}
        elif line.startswith("NAME ") and "PHASE" in line and "PERCENT" not in line:
            columns = {found[0]: found.start() for found in re.finditer(r"\S+", line)}
        elif columns:
            starts = [*columns.values(), None]
            yield {
                name: line[start:end].strip()
                for name, start, end in zip(columns, starts[:-1], starts[1:], strict=True)
            }


def _document(block: Block, text: str) -> Document:
    body = yaml.safe_load(text)
    part = _PART.search(text)
    applies = "# applies" in text.splitlines()
    subject = None if part else (body["kind"], body["metadata"]["name"])
    statements = tuple(_statements(block.place, text, subject))
    promises = applies or any(one.subject == subject for one in statements)
    if subject and subject[0] in KINDS and not promises:
        raise Unclear(f"{block.place}: {' '.join(subject)} does not say what follows")
    return Document(
        place=block.place,
        body=body,
        part_of=part[1] if part else "",
        applies=applies,
        statements=statements,
    )


def _statements(place: str, text: str, subject: Subject | None) -> Iterator[Statement]:
    for line in text.lstrip("\n").splitlines():
        if not line.startswith("#"):
            return
        found = _STATEMENT.fullmatch(line)
        if found is None:
            continue
        about = ("Task", found["name"]) if found["name"] else subject
        if about is None:
            raise Unclear(f"{place}: {line!r} is about no object: name the Task")
        yield _statement(place, line, about, found["verb"], found["what"])


def _statement(place: str, line: str, subject: Subject, verb: str, what: str) -> Statement:
    if verb == "result":
        return Statement(subject=subject, text=line, result=json.loads(what))
    if verb == "then":
        if what != "deleted":
            raise Unclear(f"{place}: {line!r}: only 'deleted' is known here")
        return Statement(subject=subject, text=line, deleted=True)
    found = _WHAT.fullmatch(what)
    if found is None:
        raise Unclear(f"{place}: {line!r}: write phase, reason and 'after 2 attempts'")
    return Statement(
        subject=subject,
        text=line,
        phase=found["phase"],
        reason=found["reason"],
        attempts=int(found["attempts"]) if found["attempts"] else None,
    )


def _phase(kind: str, status: Body) -> tuple[str, str]:
    """Return phase and reason of a Task; of a TaskQueue, what it says of being Ready."""
    if kind == "Task":
        return status.get("phase", ""), status.get("reason", "")
    for condition in status.get("conditions", ()):
        if condition["type"] == "Ready":
            return "Ready" if condition["status"] == "True" else "NotReady", condition["reason"]
    return "", ""


def _handlers(module: ast.Module) -> list[str]:
    found = []
    for node in module.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            for decorator in node.decorator_list:
                match decorator:
                    case ast.Name(id="task"):
                        found.append(node.name)
                    case ast.Call(func=ast.Name(id="task"), args=[ast.Constant(value=name)]):
                        found.append(str(name))
                    case ast.Call(func=ast.Name(id="task")):
                        found.append(node.name)
    return found
