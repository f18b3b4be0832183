"""Prints the findings: a table for people, JSON for programs."""

from __future__ import annotations

import shlex
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.conformance.points import TITLES, Check, Point
from tests.conformance.run import Findings
from tests.conformance.scenarios import SCENARIOS

_ORDER = {entry.name: place for place, entry in enumerate(SCENARIOS)}

#: Wide enough where the output is no terminal.
_WIDTH = 118


def as_json(findings: Findings) -> dict[str, Any]:
    """Return the findings as a JSON object."""
    ledger = findings.ledger
    return {
        "command": list(findings.command),
        "holds": not ledger.failed,
        "seconds": round(findings.seconds, 1),
        "points": [
            {
                "point": point.value,
                "title": TITLES[point],
                "holds": ledger.holds(point),
                "checks": [
                    {
                        "check": check.text,
                        "scenario": check.scenario,
                        "holds": not check.problem,
                        "problem": check.problem,
                        "seconds": round(check.seconds, 2),
                    }
                    for check in _in_order(ledger.checks_of(point))
                ],
            }
            for point in Point
        ],
    }


def show(findings: Findings) -> None:
    """Print the table."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=_WIDTH)
    ledger = findings.ledger
    table = Table(title=f"{shlex.join(findings.command)}", title_justify="left")
    table.add_column("", no_wrap=True)
    table.add_column("what a worker must do", ratio=1)
    table.add_column("holds", no_wrap=True)
    for point in Point:
        verdict = "[green]yes[/]" if ledger.holds(point) else "[bold red]NO[/]"
        table.add_row(f"[bold]{point.value}[/]", f"[bold]{TITLES[point]}[/]", verdict)
        for check in _in_order(ledger.checks_of(point)):
            if not check.problem and check.text.startswith("scenario "):
                continue
            text = check.text.replace("[", r"\[")
            if check.problem:
                text += f"\n[red]{check.problem.replace('[', chr(92) + '[')}[/] ({check.scenario})"
            table.add_row("", f"- {text}", "[red]no[/]" if check.problem else "yes")
        table.add_section()
    console.print(table)
    failed = ledger.failed
    if failed:
        console.print(f"The worker breaks the contract at points {', '.join(failed)}")
        console.print(f"The workers' logs, by scenario: {findings.folder}")
    else:
        console.print("All points hold.")
    console.print(f"It took {findings.seconds:.0f} s.")


def _in_order(checks: list[Check]) -> list[Check]:
    """Return checks scenario by scenario; scenarios run side by side."""
    return sorted(checks, key=lambda check: _ORDER.get(check.scenario, len(_ORDER)))
