"""``python -m tests.simulation``: docs/development/scaling-simulator.md.

The last line of the output is one JSON object, in the form of ``python -m tests.bench``.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence

from taskqueue.cli.arguments import at_least
from tests.bench.report import Outcome, Report
from tests.simulation import compare
from tests.simulation.cluster import Conditions
from tests.simulation.loads import ALL
from tests.simulation.summary import Summary
from tests.simulation.systems import ALWAYS, KEDA_FASTEST, KEDA_RANGE, OUR_RANGE, OURS

_COLUMNS = ["", "wait p50 s", "wait p99 s", "pod-s", "oscillations", "busy / removed", "killed"]


def _row(name: str, summary: Summary) -> tuple[object, ...]:
    return (
        name,
        f"{summary.wait_p50:.2f}",
        f"{summary.wait_p99:.2f}",
        f"{summary.pod_seconds:.0f}",
        summary.oscillations,
        f"{summary.removed_busy} / {summary.removed}",
        summary.killed,
    )


def main(words: Sequence[str] | None = None) -> None:
    """Compare ours and KEDA in virtual time, as the command line asks."""
    makes = [make.__name__ for make in ALL]
    parser = argparse.ArgumentParser(
        prog="python -m tests.simulation",
        description="Compare our scaling with KEDA's in virtual time.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--load",
        action="append",
        choices=makes,
        metavar="LOAD",
        help="only this load; repeatable (default: all)",
    )
    parser.add_argument(
        "--seeds",
        type=at_least(1),
        default=3,
        metavar="N",
        help="runs of each load (default: %(default)s)",
    )
    parser.add_argument(
        "--start-seconds",
        type=_seconds,
        default=0.7,
        metavar="SECONDS",
        help="from a pod's creation until it consumes (default: %(default)s)",
    )
    parser.add_argument(
        "--slots",
        type=at_least(1),
        default=1,
        metavar="N",
        help="messages a worker runs at once (default: %(default)s)",
    )
    options = parser.parse_args(words)
    simulate(
        options.load or makes,
        seeds=options.seeds,
        start_seconds=options.start_seconds,
        slots=options.slots,
    )


def _seconds(text: str) -> float:
    seconds = float(text)
    if not seconds >= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is negative")
    return seconds


def simulate(loads: Iterable[str], *, seeds: int, start_seconds: float, slots: int) -> None:
    """Run the loads of these names and print the comparison."""
    makes = {make.__name__: make for make in ALL}
    conditions = Conditions(start_seconds=start_seconds, slots=slots)
    report = Report()
    numbers: dict[str, float] = {}
    ratios: dict[str, float] = {}
    everything: dict[str, dict[str, dict[str, float]]] = {}
    for name in loads:
        found = compare.run(
            (ALWAYS, *OUR_RANGE, *KEDA_RANGE), makes[name], conditions, seeds=range(1, seeds + 1)
        )
        ours = {system.name: found[system.name] for system in OUR_RANGE}
        report.table(
            f"{name}: {(makes[name].__doc__ or '').strip()}",
            _COLUMNS,
            [_row(system, summary) for system, summary in found.items()],
        )
        for keda in KEDA_RANGE:
            best = compare.match(keda.name, found[keda.name], ours)
            report.say(
                f"against {keda.name}: {best.ours} has {best.wait_ratio:.2f} times its p99 wait "
                f"at {best.cost_ratio:.3f} times its pod-seconds"
                + (" (all of our settings cost more)" if best.cost_ratio > 1 else "")
            )
            if keda is KEDA_FASTEST:
                ratios[f"{name}_wait_p99_vs_keda_fastest"] = best.wait_ratio
                ratios[f"{name}_pod_seconds_vs_keda_fastest"] = best.cost_ratio
        default = found[OURS.name]
        numbers |= {
            f"{name}_wait_p99_seconds": default.wait_p99,
            f"{name}_pod_seconds": default.pod_seconds,
            f"{name}_oscillations": default.oscillations,
            f"{name}_killed": sum(summary.killed for summary in ours.values()),
            f"{name}_busy_pods_removed": sum(summary.removed_busy for summary in ours.values()),
        }
        everything[name] = {system: summary.as_dict() for system, summary in found.items()}
    report.end(
        Outcome(
            bench="simulation",
            figures=numbers,
            ratios=ratios,
            details={
                "start_seconds": start_seconds,
                "slots": slots,
                "seeds": seeds,
                "loads": everything,
            },
        )
    )


if __name__ == "__main__":
    main()
