"""A worker that is process 1: orphans are reaped, and its signals and exit codes are as without."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="process 1 of a container")

#: Inherits orphans as process 1 does.
START = """
import os, signal, subprocess, sys, time
from taskqueue.worker.executors import descendants
from taskqueue.worker.init_process import fork_worker
descendants.become_subreaper()
code = fork_worker()
if code is not None:
    sys.exit(code)
"""


def start(work: str) -> subprocess.Popen[str]:
    """Start a process 1, with what its worker does."""
    return subprocess.Popen(
        [sys.executable, "-c", START + work],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        text=True,
    )


def output_of(work: str) -> tuple[str, int]:
    process = start(work)
    return process.communicate(timeout=60)[0], process.returncode


def test_an_orphan_is_reaped_and_the_workers_own_children_keep_their_exit_status() -> None:
    output, code = output_of(
        "own = subprocess.Popen(['sh', '-c', 'exit 7'])\n"
        "orphan = subprocess.run(['sh', '-c', 'true & echo $!'], capture_output=True).stdout\n"
        "while os.path.exists(f'/proc/{int(orphan)}'): time.sleep(0.01)\n"
        "print(own.wait())\n"
    )
    assert (output, code) == ("7\n", 0)


@pytest.mark.parametrize(
    ("end", "code"),
    [("sys.exit(3)", 3), ("os._exit(70)", 70), ("os.kill(os.getpid(), signal.SIGKILL)", 137)],
)
def test_it_ends_as_the_worker_does(end: str, code: int) -> None:
    assert output_of(end) == ("", code)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_is_passed_on(number: signal.Signals) -> None:
    process = start(
        f"signal.signal({int(number)}, lambda number, frame: sys.exit(number + 100))\n"
        "print('ready', flush=True)\ntime.sleep(60)\n"
    )
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(number)
    assert process.wait(timeout=60) == number + 100
    process.stdout.close()


def has_namespaces() -> bool:
    try:
        done = subprocess.run(
            ["unshare", "--pid", "--fork", "--mount-proc", "true"],
            stderr=subprocess.DEVNULL,
            check=False,
        )
    except FileNotFoundError:
        return False
    return done.returncode == 0


def test_a_worker_that_is_process_1_has_no_zombies(tmp_path: Path) -> None:
    if not has_namespaces():
        pytest.skip("no PID namespace can be made here")
    (tmp_path / "shop_init.py").write_text(
        "from taskqueue import on_start, task\n@task\nasync def f(payload): ...\n"
        "import pathlib, subprocess\n"
        "@on_start\ndef begin():\n"
        "    program = ['sh', '-c', 'sleep 0.2 & echo $!']\n"
        "    out = subprocess.run(program, capture_output=True).stdout\n"
        "    while pathlib.Path(f'/proc/{int(out)}').exists(): pass\n"
        "    pathlib.Path('reaped').write_text('yes')\n"
    )
    worker = subprocess.Popen(
        [
            *("unshare", "--pid", "--fork", "--kill-child", "--mount-proc"),
            *(sys.executable, "-m", "taskqueue", "worker", "shop_init"),
        ],
        cwd=tmp_path,
        env={
            **os.environ,
            "TASKQUEUE_NAMESPACE": "shop",
            "TASKQUEUE_QUEUE": "q",
            "TASKQUEUE_BROKER_URI": "amqp://u:p@127.0.0.1:1/",
            "TASKQUEUE_HEALTH_PORT": "0",
            "TASKQUEUE_GRACE_SECONDS": "0",
        },
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 30
        while not (tmp_path / "reaped").exists():
            assert worker.poll() is None
            assert time.monotonic() < deadline, "the orphan is a zombie"
            time.sleep(0.01)
        children = Path(f"/proc/{worker.pid}/task/{worker.pid}/children").read_text().split()
        os.kill(int(children[0]), signal.SIGTERM)  # as the kubelet does to process 1
        assert worker.wait(timeout=60) == 0
    finally:
        worker.kill()
        worker.wait()
