"""Records which functions of the operator are entered between two moments, and in which files.

Every entry counts: of plain functions, callbacks and executed effects, of generated methods such as
a dataclass's ``__init__`` (by the module of the class), and each resumption of a coroutine or
generator. Bodies of modules do not count: an import happens once.
"""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import taskqueue

_PACKAGE = "taskqueue"
_ROOT = Path(taskqueue.__file__).parent


@dataclass
class Leg:
    """A part of the way, and what was entered on it, in the order of the first entry.

    Attributes:
        name: such as ``watch to publish``.
        entered: entries by file (relative to ``operator/taskqueue``), then by function.
        beside: the same of what serves others and was due in the meantime.
    """

    name: str
    entered: dict[str, Counter[str]] = field(default_factory=dict)
    beside: dict[str, Counter[str]] = field(default_factory=dict)

    @property
    def files(self) -> tuple[str, ...]:
        """The files in the order of their first entry."""
        return tuple(self.entered)


class Recorder:
    """Fills one leg after another.

    Args:
        is_beside: returns whether an asyncio task of this name is no part of the way.
        callbacks_beside: functions that are no part of it when the loop calls them back, with all
            that they call; by qualified name.
    """

    def __init__(
        self, *, is_beside: Callable[[str], bool], callbacks_beside: Collection[str] = ()
    ) -> None:
        self.legs: list[Leg] = []
        self._is_beside = is_beside
        self._callbacks_beside = callbacks_beside
        self._leg: Leg | None = None
        self._ends: list[tuple[CodeType, str | None]] = []
        self._profile_before: Any = None

    def start(self, name: str, *, until: CodeType | None = None, then: str | None = None) -> None:
        """Begin a leg.

        Args:
            name: of the leg.
            until: ends the leg when it is entered, which still counts; None: `stop` does.
            then: the leg that begins at that moment; None: nothing is recorded then.
        """
        if self._leg is not None:
            raise RuntimeError(f"leg {self._leg.name} has not ended")
        self._begin(name)
        self._ends = [] if until is None else [(until, then)]
        self._profile_before = sys.getprofile()
        sys.setprofile(self._on_profile_event)

    def stop(self) -> None:
        """End the present leg, if there is one."""
        if self._leg is not None:
            self._leg = None
            sys.setprofile(self._profile_before)

    @property
    def is_recording(self) -> bool:
        """Whether a leg has begun and not ended."""
        return self._leg is not None

    def _begin(self, name: str) -> None:
        self._leg = Leg(name)
        self.legs.append(self._leg)

    def _on_profile_event(self, frame: FrameType, event: str, _: Any) -> None:
        if event != "call" or self._leg is None:
            return
        module = str(frame.f_globals.get("__name__", ""))
        code = frame.f_code
        if module.partition(".")[0] != _PACKAGE or code.co_name == "<module>":
            return
        by_file = self._leg.beside if self._serves_others(frame) else self._leg.entered
        by_file.setdefault(_file_of(module), Counter())[code.co_qualname] += 1
        if self._ends and self._ends[0][0] is code:
            (_, then), *self._ends = self._ends
            if then is None:
                self.stop()
            else:
                self._begin(then)

    def _serves_others(self, frame: FrameType) -> bool:
        task = _task_of(frame)
        if task is not None:
            return self._is_beside(task.get_name())
        caller: FrameType | None = frame
        while caller is not None:
            if caller.f_code.co_qualname in self._callbacks_beside:
                return True
            caller = caller.f_back
        return False


def lines_of(file: str) -> int:
    """Return how many lines a file relative to ``operator/taskqueue`` has."""
    return len((_ROOT / file).read_text().splitlines())


def _task_of(frame: FrameType | None) -> asyncio.Task[Any] | None:
    """Return the asyncio task that a frame runs in, or whose end calls it back; None: neither."""
    try:
        current = asyncio.current_task()
    except RuntimeError:
        return None
    if current is not None:
        return current
    while frame is not None:
        if frame.f_code is asyncio.Handle._run.__code__:
            given = frame.f_locals["self"]._args or ()
            return next((one for one in given if isinstance(one, asyncio.Task)), None)
        frame = frame.f_back
    return None


def _file_of(module: str) -> str:
    path = str(sys.modules[module].__file__)
    return Path(path).relative_to(_ROOT).as_posix()
