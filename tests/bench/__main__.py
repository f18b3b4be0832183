"""``python -m tests.bench BENCHMARK``: see docs/development/benchmarks.md.

The last line of the output is one JSON object. Exit code 1, and why on standard error, when there
is no figure.
"""

from __future__ import annotations

import argparse
import sys

from taskqueue.cli.arguments import add_group
from tests.bench import (
    archive,
    batch,
    cli,
    codec,
    coldstart,
    failover,
    fairness,
    gateway,
    latency,
    memory,
    publish,
    results,
    scaling,
    schedules,
    spawn,
    throughput,
    webhooks,
    worker,
)

#: In the order of ``--help``; each adds its command with its own options.
BENCHMARKS = (
    throughput,
    archive,
    fairness,
    webhooks,
    latency,
    coldstart,
    worker,
    publish,
    gateway,
    scaling,
    failover,
    codec,
    spawn,
    memory,
    results,
    schedules,
    batch,
    cli,
)


def main() -> int:
    """Run the benchmark that the command line names; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    benchmarks = add_group(parser)
    for benchmark in BENCHMARKS:
        benchmark.add_command(benchmarks)
    options = parser.parse_args()
    code: int = options.run(options)
    return code


if __name__ == "__main__":
    sys.exit(main())
