"""The suite passes our workers, and fails each broken worker exactly where it is broken.

All workers are tested side by side, because most of a run is waiting.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from tests.conformance import go
from tests.conformance.points import Point
from tests.conformance.run import Findings, run
from tests.integration.amqp.endpoint import Endpoint, Rabbitmq

pytestmark = [pytest.mark.broker, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]

#: Workers at a time, and scenarios of each: more would be slower on two cores.
WORKERS_AT_ONCE, SCENARIOS_AT_ONCE = 3, 7

#: Other tests run beside it: every check has several times what it needs on a quiet machine.
PATIENCE = 3.0

#: By broken worker: the point it breaks, and a check that must fail.
BROKEN = {
    "ignores_prefetch": (Point.PREFETCH, "it holds no more unacknowledged than it has slots"),
    "ignores_commands": (
        Point.COMMANDS,
        "what was cancelled before it came is reported as task.cancelled",
    ),
    "obeys_old_drains": (
        Point.COMMANDS,
        "an old command to drain does not apply to another process",
    ),
    "believes_headers": (
        Point.MESSAGES,
        "what comes by taskqueue.direct has no Task, whatever its headers say",
    ),
    "runs_old_checkpoints": (
        Point.CHECKPOINTS,
        "with tq-checkpointed it is given back at once, without a run",
    ),
    "claims_reserved_types": (
        Point.LIMITS,
        "an application's error UnknownHandler is not reserved",
    ),
    "acknowledges_early": (
        Point.OUTCOMES,
        "nothing is acknowledged while its outcome is not confirmed",
    ),
}


def python(*arguments: str) -> list[str]:
    path = f"{ROOT / 'operator'}{os.pathsep}{ROOT}"
    return ["env", f"PYTHONPATH={path}", sys.executable, "-m", *arguments]


@pytest.fixture(scope="module")
def findings(
    broker_endpoint: Rabbitmq, tmp_path_factory: pytest.TempPathFactory
) -> Mapping[str, Findings]:
    broker = Endpoint(
        host=broker_endpoint.host,
        port=broker_endpoint.port,
        management_port=broker_endpoint.management_port,
        username=broker_endpoint.username,
        password=broker_endpoint.password,
    )
    folder = tmp_path_factory.mktemp("conformance")
    commands = {
        "python": python("taskqueue", "worker", "tests.conformance.workers.python_handlers"),
        **{name: python(f"tests.conformance.broken.{name}") for name in BROKEN},
    }
    if go.go():
        commands["go"] = [str(go.build("conformance", folder))]
    turns = asyncio.Semaphore(WORKERS_AT_ONCE)

    async def run_one(name: str, command: Sequence[str]) -> tuple[str, Findings]:
        own = folder / f"of-{name}"
        own.mkdir()
        async with turns:
            broken = BROKEN[name][0] if name in BROKEN else None
            return name, await run(
                command,
                broker,
                own,
                at_once=SCENARIOS_AT_ONCE,
                patience=PATIENCE,
                broken=broken,
            )

    async def run_all() -> Mapping[str, Findings]:
        return dict(await asyncio.gather(*(run_one(*each) for each in commands.items())))

    return asyncio.run(run_all())


def problems(findings: Findings) -> str:
    return "\n".join(
        f"{check.point} {check.scenario}: {check.text}: {check.problem}"
        for check in findings.ledger.checks
        if check.problem
    )


@pytest.mark.parametrize("name", ["python", "go"])
def test_our_workers_pass(findings: Mapping[str, Findings], name: str) -> None:
    if name not in findings:
        pytest.skip("Go is not installed")
    found = problems(findings[name])
    assert not found, f"{found}\nlogs: {findings[name].folder}"
    assert not findings[name].ledger.failed


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_worker_fails_where_it_is_broken(
    findings: Mapping[str, Findings], name: str
) -> None:
    point, expected = BROKEN[name]
    ledger = findings[name].ledger
    assert ledger.failed == [point], problems(findings[name])
    assert expected in [check.text for check in ledger.checks_of(point) if check.problem]
