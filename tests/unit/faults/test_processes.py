"""Processes are told apart by role, and signalled by pid and start time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults import processes
from tests.faults.processes import (
    CONTROL_PLANE_ROLES,
    ETCD,
    KUBELET,
    NODE_ROLES,
    Process,
    Role,
    operator,
    rabbitmq,
    worker,
)

AGENT = Path(processes.__file__).with_name("process_agent.py")


def process(*command: str, **variables: str) -> Process:
    return Process("a-node", 7, 70, command, variables, "", True)


def test_a_program_of_the_node_has_one_role() -> None:
    started = process("/programs/kubelet", "--config=etcd")
    roles = [*NODE_ROLES, *CONTROL_PLANE_ROLES]
    assert [role for role in roles if role.matches(started)] == [KUBELET]
    assert ETCD.matches(process("etcd", "--data-dir=/run/etcd"))


def test_pods_have_the_roles_of_their_commands() -> None:
    python = ("python3", "-m", "taskqueue")
    assert operator().matches(process(*python, "operator"))
    assert not operator().matches(process(*python, "worker", "handlers"))
    assert rabbitmq().matches(process("/usr/lib/erlang/erts-15/bin/beam.smp", "-W"))


def test_a_worker_is_one_of_its_queue() -> None:
    theirs = process("sh", TASKQUEUE_NAMESPACE="shop", TASKQUEUE_QUEUE="thumbnails")
    assert worker("shop", "thumbnails").matches(theirs)
    assert not worker("shop", "mails").matches(theirs)
    assert not worker("other", "thumbnails").matches(theirs)


@pytest.mark.parametrize("role", [KUBELET, operator()], ids=lambda role: role.name)
def test_a_role_on_one_node_says_so_and_is_the_same_otherwise(role: Role) -> None:
    there = role.on("a-worker")
    assert there.name == f"{role.name} on a-worker"
    assert (there.node, role.node) == ("a-worker", None)
    assert (there.matches, there.namespace) == (role.matches, role.namespace)


@pytest.fixture
def victim() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "60"]) as child:
        yield child
        child.kill()


def agent(*arguments: str) -> list[str]:
    return [sys.executable, "-I", str(AGENT), *arguments]


def ask(*arguments: str) -> Any:
    done = subprocess.run(agent(*arguments), capture_output=True, check=True, timeout=30)
    return json.loads(done.stdout)


def state_of(child: subprocess.Popen[bytes]) -> str:
    return Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[0]


def address_of(child: subprocess.Popen[bytes]) -> str:
    (found,) = [one for one in ask("list") if one["pid"] == child.pid]
    assert found["command"] == ["sleep", "60"]
    return f"{child.pid}:{found['started']}"


def test_the_agent_signals_a_process_that_it_listed(victim: subprocess.Popen[bytes]) -> None:
    assert ask("signal", "SIGKILL", address_of(victim)) == [victim.pid]
    assert victim.wait(10) == -9


def test_the_agent_tells_its_own_pid_namespace_from_those_within() -> None:
    enter = ["unshare", "--user", "--map-root-user", "--pid", "--fork"]
    with subprocess.Popen([*enter, "sleep", "60.25"]) as outer:
        try:
            wait_until(lambda: len(sleeps := sleeping()) == 1 and not sleeps[0]["is_outermost"])
            (own,) = [one for one in ask("list") if one["pid"] == outer.pid]
            assert own["is_outermost"]
        finally:
            for one in sleeping():
                os.kill(one["pid"], signal.SIGKILL)


def sleeping() -> list[Any]:
    return [one for one in ask("list") if one["command"] == ["sleep", "60.25"]]


def test_the_agent_leaves_a_process_alone_that_started_at_another_time(
    victim: subprocess.Popen[bytes],
) -> None:
    pid, _, started = address_of(victim).partition(":")
    assert ask("signal", "SIGKILL", f"{pid}:{int(started) - 1}") == []
    assert victim.poll() is None


@pytest.mark.parametrize("ends_by", ["input", "time"])
def test_a_held_process_goes_on_when_the_input_ends_or_after_the_time(
    victim: subprocess.Popen[bytes], ends_by: str
) -> None:
    seconds = "60" if ends_by == "input" else "0.5"
    with subprocess.Popen(
        agent("hold", seconds, address_of(victim)), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holding:
        assert holding.stdin is not None
        assert holding.stdout is not None
        assert json.loads(holding.stdout.readline()) == [victim.pid]
        if ends_by == "input":
            wait_until(lambda: state_of(victim) == "T")
            holding.stdin.close()
        holding.wait(10)
    wait_until(lambda: state_of(victim) != "T")


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
