"""The suite passes our workers, and fails each broken worker where it is broken.

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
from tests.conformance.scenarios import SCENARIOS
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
    "runs_redelivered": (
        Point.DELIVERIES,
        "what another worker had is given back, and not run",
    ),
    "claims_reserved_types": (
        Point.LIMITS,
        "an application's error UnknownHandler is not reserved",
    ),
    "heeds_every_announcement": (
        Point.LIMITS,
        "what another installation's operator reads does not count",
    ),
    "drops_its_connection": (
        Point.RECONNECTING,
        "an exchange for outcomes that is deleted: heartbeats go on",
    ),
    "keeps_its_credentials": (
        Point.RECONNECTING,
        "the directory is read again for each connection",
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
    """Of our workers all, of each broken one those about the point that it breaks."""
    commands = {
        "python": python("taskqueue", "worker", "tests.conformance.workers.python_handlers"),
        **broken_workers(),
    }
    folder = tmp_path_factory.mktemp("conformance")
    if go.go():
        commands["go"] = [str(go.build("conformance", folder))]
    only = {
        name: [entry.name for entry in SCENARIOS if entry.point is point]
        for name, (point, _) in BROKEN.items()
    }
    return asyncio.run(run_all(commands, broker_endpoint, folder, only))


@pytest.fixture(scope="module")
def broken_findings(
    broker_endpoint: Rabbitmq, tmp_path_factory: pytest.TempPathFactory
) -> Mapping[str, Findings]:
    """All findings of the broken workers."""
    folder = tmp_path_factory.mktemp("broken")
    return asyncio.run(run_all(broken_workers(), broker_endpoint, folder, {}))


def broken_workers() -> dict[str, list[str]]:
    return {name: python(f"tests.conformance.broken.{name}") for name in BROKEN}


async def run_all(
    commands: Mapping[str, Sequence[str]],
    endpoint: Rabbitmq,
    folder: Path,
    only: Mapping[str, Sequence[str]],
) -> Mapping[str, Findings]:
    broker = Endpoint(
        host=endpoint.host,
        port=endpoint.port,
        management_port=endpoint.management_port,
        username=endpoint.username,
        password=endpoint.password,
    )
    turns = asyncio.Semaphore(WORKERS_AT_ONCE)

    async def run_one(name: str, command: Sequence[str]) -> tuple[str, Findings]:
        own = folder / f"of-{name}"
        own.mkdir()
        async with turns:
            return name, await run(
                command,
                broker,
                own,
                at_once=SCENARIOS_AT_ONCE,
                only=only.get(name, ()),
                patience=PATIENCE,
                broken=BROKEN[name][0] if name in BROKEN else None,
            )

    return dict(await asyncio.gather(*(run_one(*each) for each in commands.items())))


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
    tried = {check.point for check in findings[name].ledger.checks}
    assert_fails_at_its_point(name, findings[name], tried)


@pytest.mark.long
@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_worker_fails_nowhere_else(
    broken_findings: Mapping[str, Findings], name: str
) -> None:
    assert_fails_at_its_point(name, broken_findings[name], set(Point))


def assert_fails_at_its_point(name: str, found: Findings, tried: set[Point]) -> None:
    point, expected = BROKEN[name]
    assert [one for one in found.ledger.failed if one in tried] == [point], problems(found)
    assert expected in [check.text for check in found.ledger.checks_of(point) if check.problem]
