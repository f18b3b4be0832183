"""The source root is a folder named operator, and must not shadow the standard module."""

import operator
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_standard_module_operator_is_not_shadowed() -> None:
    assert operator.itemgetter(1)("ab") == "b"


def test_nor_when_python_starts_in_the_repository() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import operator; print(operator.itemgetter(1)('ab'))"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "b\n", done.stderr


def test_the_source_root_is_no_package() -> None:
    assert not (ROOT / "operator" / "__init__.py").exists()
