"""``python -m tests.conformance -- CMD…``: check a worker against the message contract."""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import sys
import tempfile
from pathlib import Path

from taskqueue.cli.arguments import at_least
from tests.conformance.broker import NoBroker, find_broker
from tests.conformance.report import as_json, show
from tests.conformance.run import AT_ONCE, run


def main() -> int:
    """Test a worker; the exit code is 0 only if all points hold."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.conformance",
        description="Check a worker against the message contract. The exit code is 0 only if all "
        "points hold.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "command",
        nargs="+",
        metavar="CMD",
        help="the command that starts one worker; see README.md",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument(
        "--scenario", action="append", default=[], help="run only this scenario; repeatable"
    )
    parser.add_argument(
        "--at-once",
        type=at_least(1),
        default=AT_ONCE,
        metavar="N",
        help="how many scenarios run at a time (default: %(default)s)",
    )
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="conformance-"))
    try:
        broker = find_broker()
    except NoBroker as error:
        print(error, file=sys.stderr)
        return 2
    findings = asyncio.run(
        run(options.command, broker, folder, at_once=options.at_once, only=options.scenario)
    )
    if options.json:
        print(json.dumps(as_json(findings), ensure_ascii=False))
    else:
        show(findings)
    broken = any(check.problem for check in findings.ledger.checks)
    if not broken:
        shutil.rmtree(folder, ignore_errors=True)
    return 1 if broken or (findings.ledger.failed and not options.scenario) else 0


if __name__ == "__main__":
    sys.exit(main())
