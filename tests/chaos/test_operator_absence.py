"""Workers go on while there is no operator: what they report then counts, once there is one."""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime

import pytest

from tests.chaos.load import WINDOW, Load
from tests.e2e.harness import OPERATOR_NAMESPACE, OPERATOR_PODS, Harness
from tests.faults.processes import whole_pod

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(400)]

_DEPLOYMENT = ("-n", OPERATOR_NAMESPACE, "deployment/taskqueue-operator")


@contextmanager
def no_operator(harness: Harness) -> Iterator[None]:
    """Kill all operators, and start none until the end of the block."""
    harness.operator_kills.append(time.time())
    names = [pod["metadata"]["name"] for pod in harness.operator_pods()]
    # Stopped first: killed before its pod is being deleted, it would be started again at once.
    with ExitStack() as stack:
        processes = [
            process
            for name in names
            for process in stack.enter_context(
                harness.processes.stopped(whole_pod(OPERATOR_NAMESPACE, name))
            )
        ]
        harness.kubectl.ok("scale", *_DEPLOYMENT, "--replicas=0")
        harness.until(lambda: not harness.operator_pods(), what="deleting the operators' pods")
        harness.processes.kill(processes)
    harness.kubectl.ok(
        "wait",
        "-n",
        OPERATOR_NAMESPACE,
        "--for=delete",
        "pod",
        f"-l={OPERATOR_PODS}",
        "--timeout=90s",
    )
    try:
        yield
    finally:
        harness.kubectl.ok("scale", *_DEPLOYMENT, f"--replicas={len(names)}")


def test_outcomes_that_come_while_there_is_no_operator(
    harness: Harness, load: Load, summary_lines: list[str]
) -> None:
    load.start(short=WINDOW, long=0)
    load.wait_finished(10)
    with no_operator(harness):
        done, moment = load.finished(), datetime.now(UTC)
        load.release()
        harness.until(
            lambda: all(run.ended for runs in load.runs().values() for run in runs),
            what="at the end of all that was published",
        )
        ran = {name for name, runs in load.runs().items() if runs}
        assert load.finished() == done, "somebody writes statuses"
        assert len(ran - done) > 0
    # And again, in the midst of reading what has come meanwhile.
    load.wait_finished(len(done) + 1)
    harness.kill_operator()
    load.assert_nothing_was_lost()
    repeated = load.repeated()
    summary_lines.append(
        f"{len(ran - done)} Tasks ran to their end without an operator, "
        f"{sum(repeated.values())} of {len(load.attempts)} once more afterwards"
    )
    assert sum(repeated.values()) <= 2 * WINDOW
    load.assert_not_run_after(done, moment)
    load.assert_keys_were_kept()
