"""The cases reach what decodes and takes in messages: measured, printed, and kept.

coverage.py slows everything down, so it measures a process of its own, with fewer cases; but for
those of the intakes, all of which are tried here.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import SUMMARY_LINE

ROOT = Path(__file__).parents[2]
#: What decodes a message, and what decides what becomes of it.
DECODERS_AND_INTAKES = (
    "amqp/field_tables.py",
    "amqp/frames.py",
    "contract/cloudevents.py",
    "contract/command.py",
    "contract/heartbeat.py",
    "contract/outcome.py",
    "contract/work.py",
    "controller/tasks/inbox.py",
    "worker/delivery_handler.py",
)
#: What only writes.
_ENCODERS = (
    "def encode",
    "def _encode",
    "def properties",
    "def .*_frame",
    "def _string",
    "def _fitting",
)
#: Of branches.
LEAST_PERCENT = 95.0
_CASES = {"TASKQUEUE_FUZZ_CASES": "300", "TASKQUEUE_FUZZ_MESSAGES": "1050"}
#: In a run with this test, their cases are tried by it only: see conftest.py.
INTAKES = ("test_operator_intake.py", "test_worker_intake.py")
_TESTS = ("test_codec.py", *INTAKES, "test_documents.py")


@pytest.mark.timeout(600)
def test_the_cases_cover_decoders_and_intakes(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    environment = {
        **os.environ,
        **_CASES,
        "COVERAGE_FILE": str(tmp_path / "data"),
        "COVERAGE_CORE": "ctrace",
    }
    # Not one of the workers of pytest-xdist, whose variables it would inherit.
    for name in [name for name in environment if name.startswith("PYTEST_")]:
        del environment[name]
    include = ",".join(f"{ROOT}/operator/taskqueue/{path}" for path in DECODERS_AND_INTAKES)
    tests = [str(ROOT / "tests/fuzz" / name) for name in _TESTS]
    coverage = [sys.executable, "-m", "coverage"]
    settings = tmp_path / "coveragerc"
    settings.write_text("[report]\nexclude_also =\n  " + "\n  ".join(_ENCODERS) + "\n")
    run = [*coverage, "run", "--branch", f"--include={include}", "-m", "pytest", "-q", *tests]
    report = tmp_path / "report.json"
    write = [*coverage, "json", "-q", f"--rcfile={settings}", "-o", str(report)]
    for command in (run, write):
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-1000:]
    measured = json.loads(report.read_text())
    assert len(measured["files"]) == len(DECODERS_AND_INTAKES)
    total = measured["totals"]
    record_property(
        SUMMARY_LINE,
        f"{total['percent_covered']:.1f} % of lines and branches of {len(measured['files'])} "
        f"files, {total['covered_branches']} of {total['num_branches']} branches",
    )
    branches = 100 * total["covered_branches"] / total["num_branches"]
    assert branches >= LEAST_PERCENT, _missing(measured)


def _missing(measured: dict[str, object]) -> str:
    """Return the branches that no case took, file by file."""
    files = measured["files"]
    assert isinstance(files, dict)
    lines = ["not enough branches are covered; not taken are, from line to line:"]
    for name, file in files.items():
        if file["missing_branches"]:
            lines.append(f"{name}: {file['missing_branches']}")
    return "\n".join(lines)
