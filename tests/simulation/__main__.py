"""``python -m tests.simulation``: docs/development/scaling-simulator.md.

The last line of the output is one JSON object, in the form of ``python -m tests.bench``.
"""

from __future__ import annotations

from typing import Annotated

import typer

from tests.bench.report import Outcome, Report
from tests.simulation import compare
from tests.simulation.cluster import Conditions
from tests.simulation.loads import ALL
from tests.simulation.summary import Summary
from tests.simulation.systems import ALWAYS, KEDA_FASTEST, KEDA_RANGE, OUR_RANGE, OURS

app = typer.Typer(add_completion=False)

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


@app.command(help=__doc__)
def simulate(
    load: Annotated[list[str] | None, typer.Option(help="Only this load; repeatable.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each load.")] = 3,
    start_seconds: Annotated[
        float, typer.Option(min=0, help="From a pod's creation until it consumes, in seconds.")
    ] = 0.7,
    slots: Annotated[int, typer.Option(min=1, help="Messages a worker runs at once.")] = 1,
) -> None:
    """Compare ours and KEDA in virtual time."""
    makes = {make.__name__: make for make in ALL}
    unknown = set(load or ()) - makes.keys()
    if unknown:
        raise typer.BadParameter(
            f"no load {', '.join(sorted(unknown))}; the loads are {', '.join(makes)}"
        )
    conditions = Conditions(start_seconds=start_seconds, slots=slots)
    report = Report()
    numbers: dict[str, float] = {}
    ratios: dict[str, float] = {}
    everything: dict[str, dict[str, dict[str, float]]] = {}
    for name in load or makes:
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
    app()
