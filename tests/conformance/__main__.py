"""``python -m tests.conformance -- CMD…``: check a worker against the message contract."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from tests.conformance.broker import NoBroker, find_broker
from tests.conformance.report import as_json, show
from tests.conformance.run import AT_ONCE, run


def main(
    command: Annotated[
        list[str], typer.Argument(help="The command that starts one worker; see README.md.")
    ],
    as_lines: Annotated[
        bool, typer.Option("--json", help="Print JSON instead of a table.")
    ] = False,
    scenario: Annotated[
        list[str] | None, typer.Option(help="Run only this scenario; repeatable.")
    ] = None,
    at_once: Annotated[int, typer.Option(help="How many scenarios run at a time.")] = AT_ONCE,
) -> None:
    """Test a worker; the exit code is 0 only if all points hold."""
    folder = Path(tempfile.mkdtemp(prefix="conformance-"))
    try:
        broker = find_broker()
    except NoBroker as error:
        print(error, file=sys.stderr)
        raise typer.Exit(2) from None
    findings = asyncio.run(run(command, broker, folder, at_once=at_once, only=scenario or ()))
    if as_lines:
        print(json.dumps(as_json(findings), ensure_ascii=False))
    else:
        show(findings)
    broken = any(check.problem for check in findings.ledger.checks)
    if not broken:
        shutil.rmtree(folder, ignore_errors=True)
    raise typer.Exit(1 if broken or (findings.ledger.failed and not scenario) else 0)


if __name__ == "__main__":
    typer.run(main)
