"""``python -m tests.tracing``: docs/development/tracing.md."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Iterator, Sequence

from tests.tracing.recorder import Leg, lines_of
from tests.tracing.task_trace import VALUES, TaskTrace, trace_task


def main(words: Sequence[str] | None = None) -> None:
    """Follow a Task through the operator, and print the files it passes."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.tracing",
        description="Follow one Task through the operator, and list the files that it passes.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--functions", action="store_true", help="list the functions that were entered as well"
    )
    options = parser.parse_args(words)
    trace = asyncio.run(trace_task())
    for leg in trace.legs:
        print("\n".join(_lines(leg, functions=options.functions)), end="\n\n")
    print("\n".join(_summary(trace)))


def _lines(leg: Leg, *, functions: bool) -> Iterator[str]:
    yield f"{leg.name:44} lines  entries"
    for place, (file, entered) in enumerate(leg.entered.items(), start=1):
        kind = "  values" if file in VALUES else ""
        yield f"{place:3}  {file:39} {lines_of(file):5}  {entered.total():7}{kind}"
        if functions:
            yield from (f"       {name}: {entries}" for name, entries in entered.items())
    if leg.beside:
        yield f"     in loops that serve more than this Task: {', '.join(leg.beside)}"


def _summary(trace: TaskTrace) -> Iterator[str]:
    parts = {leg.name: leg.files for leg in trace.legs}
    parts[f"{trace.to_publish.name}, and {trace.to_status.name}"] = trace.files
    yield f"{'files passed':44}   all  without values  longest"
    for name, files in parts.items():
        longest = max(files, key=lines_of)
        acting = sum(file not in VALUES for file in files)
        yield f"{name:44} {len(files):5}  {acting:14}  {longest} ({lines_of(longest)} lines)"


if __name__ == "__main__":
    main()
