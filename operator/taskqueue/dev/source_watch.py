"""Which files the handlers come from, and whether one has changed."""

from __future__ import annotations

import importlib.util
import sys
import sysconfig
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

#: Not the author's: the interpreter's, installed packages', our own.
_FOREIGN = tuple(
    {
        *(
            str(Path(sysconfig.get_path(name)))
            for name in ("stdlib", "platstdlib", "purelib", "platlib")
        ),
        str(Path(__file__).parents[1]),
    }
)


class SourceWatch:
    """Watches the author's modules, as they are imported, and other files; made before that.

    Args:
        modules: those that were named, also when they could not be imported.
        others: files that are no modules, such as manifests.
    """

    def __init__(self, modules: Sequence[str], others: Iterable[Path] = ()) -> None:
        self._modules = modules
        self._others = tuple(others)
        self._since = time.time_ns()
        self._seen: dict[Path, int] = {}
        self.changed()

    @property
    def sources(self) -> list[Path]:
        """The files of modules that are watched."""
        return sorted(path for path in self._seen if path not in self._others)

    def changed(self) -> set[Path]:
        """Return the files that have changed, or have gone, since this was last called."""
        now = {path: _stamp(path) for path in (*self._files(), *self._others)}
        # One that is new here may have been changed after it was imported.
        new = {path for path in now if path not in self._seen and now[path] > self._since}
        changed = new | {
            path for path, stamp in self._seen.items() if now.get(path, _stamp(path)) != stamp
        }
        self._seen = now
        return changed

    def _files(self) -> set[Path]:
        found = {
            Path(file)
            for module in list(sys.modules.values())
            if (file := getattr(module, "__file__", None)) and file.endswith(".py")
        }
        found |= {path for name in self._modules if (path := _origin(name)) is not None}
        return {path for path in found if not str(path).startswith(_FOREIGN)}


def _origin(name: str) -> Path | None:
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, AttributeError, ValueError):
        return None
    return Path(spec.origin) if spec is not None and spec.origin else None


def _stamp(path: Path) -> int:
    """Return when a file was changed, in nanoseconds; 0: it is not there."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0
