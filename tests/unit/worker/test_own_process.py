"""What a worker's processes find of its credentials: in their environment, in /proc, in files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from taskqueue.model.broker_environment import BROKER_VARIABLES
from taskqueue.model.result_environment import RESULT_VARIABLES
from taskqueue.worker import own_process

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="/proc and Landlock")

CANARY = "c4n4ry"


def run(script: str, *arguments: str, **environment: str) -> Any:
    """Run a script in an interpreter of its own; return the JSON it prints."""
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env={"PYTHONPATH": os.pathsep.join(sys.path), **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


WIPE = """
import json, os, sys
from taskqueue.worker import own_process
own_process.wipe_variables(["SECRET", "ABSENT"])
reader, writer = os.pipe()
if os.fork() == 0:
    os.write(writer, open("/proc/self/environ", "rb").read())
    os._exit(0)
os.close(writer)
inherited = os.fdopen(reader, "rb").read().decode()
own = open("/proc/self/environ").read()
started = os.popen("env").read()
print(json.dumps([own, inherited, started, dict(os.environ)]))
"""


def test_a_wiped_variable_is_nowhere_in_the_environment() -> None:
    found = run(WIPE, SECRET=CANARY, OTHER="stays", SECRETS="stay")
    assert CANARY not in json.dumps(found)
    for place in found[:3]:
        assert "OTHER=stays" in place
        assert "SECRETS=stay" in place
    assert "SECRET" not in found[3]


def test_a_variable_set_by_the_process_itself_is_wiped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", CANARY)
    own_process.wipe_variables(["SECRET", "ABSENT"])
    assert "SECRET" not in os.environ


HIDE = """
import ctypes, json, os, sys
from taskqueue.worker import own_process
if os.getuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
    ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)  # as after an exec

def seen_by_another():
    worker, (reader, writer) = os.getpid(), os.pipe()
    if os.fork() == 0:
        refused = []
        for name in ("environ", "mem", "fd"):
            try:
                path = f"/proc/{worker}/{name}"
                os.listdir(path) if name == "fd" else open(path, "rb").close()
            except OSError:
                refused.append(name)
        os.write(writer, " ".join(refused).encode())
        os._exit(0)
    os.close(writer)
    return os.fdopen(reader, "rb").read().decode().split()

before = seen_by_another()
own_process.hide_process()
after = seen_by_another()
print(json.dumps([before, after, len(os.listdir("/proc/self/fd")) > 0]))
"""


def test_no_process_of_the_same_user_looks_into_a_hidden_one() -> None:
    before, after, own = run(HIDE)
    assert before == []
    assert after == ["environ", "mem", "fd"]
    assert own  # the worker itself still counts its descriptors


LANDLOCK = """
import ctypes, json, os, subprocess, sys
from taskqueue.worker.executors import landlock
folder, privileged, writable = sys.argv[1:]
os.environ["X"] = "x"
if privileged == "no":
    ctypes.CDLL(None).prctl(38, 1, 0, 0, 0)
if writable == "no":
    landlock.os.access = lambda path, mode: False
why = landlock.hide_directory(folder + "/etc/broker")
why = landlock.hide_directory(folder + "/etc/results") or why
def read(path):
    try:
        return open(path).read()
    except PermissionError:
        return "refused"
paths = [folder + "/etc/broker/password", folder + "/etc/beside", folder + "/other/file",
         folder + "/etc/limits/x", folder + "/link", folder + "/etc/results/uri"]
moved = folder + "/etc/limits/moved"
try:
    os.rename(folder + "/other/movable", moved)
except OSError as problem:
    moved = str(problem)
program = subprocess.run(["cat", *paths[:2]], capture_output=True, text=True).stdout
print(json.dumps([why, [read(path) for path in paths], program, os.path.exists(moved)]))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Files as a pod has them: the Secret's are links into a directory of its version."""
    for name in ("etc/broker/..version", "etc/limits", "etc/results", "other"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "etc/broker/..data").symlink_to("..version")
    (tmp_path / "etc/broker/password").symlink_to("..data/password")
    (tmp_path / "link").symlink_to("etc/broker/password")
    for name in ("etc/broker/..version/password", "etc/beside", "other/file", "etc/limits/x"):
        (tmp_path / name).write_text(CANARY if "password" in name else "public")
    (tmp_path / "etc/results/uri").write_text(CANARY)
    (tmp_path / "other/movable").write_text("public")
    return tmp_path


def hidden(folder: Path, *, privileged: str = "no", writable: str = "no") -> list[Any]:
    found: list[Any] = run(LANDLOCK, str(folder), privileged, writable, PATH=os.environ["PATH"])
    if found[0] == "the kernel does not offer Landlock":
        pytest.skip(found[0])
    return found


def test_a_hidden_directory_is_read_by_nobody_and_everything_else_is(folder: Path) -> None:
    why, texts, program, moved = hidden(folder)
    assert why == ""
    assert texts == ["refused", "public", "public", "public", "refused", "refused"]
    assert program == "public"
    assert moved


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"privileged": "yes"}, "privilege escalation"),
        ({"writable": "yes"}, "may write into /"),
    ],
)
def test_nothing_is_hidden_where_that_could_break_a_program(
    folder: Path, more: dict[str, str], words: str
) -> None:
    if "writable" in more and not os.access("/", os.W_OK):
        words = "may write into"
    why, texts, program, _ = hidden(folder, **more)
    assert words in why
    assert texts == [CANARY, "public", "public", "public", CANARY, CANARY]
    assert program == f"{CANARY}public"


LOOK = """
from taskqueue import on_start, task
@task
def f(payload): ...
@on_start
def look():
    import json, os, pathlib, subprocess
    pids = [os.getpid(), os.getppid()]
    pids.append(int(open(f"/proc/{pids[1]}/stat").read().rpartition(")")[2].split()[1]))
    found = [open(f"/proc/{pid}/environ").read() for pid in pids] + [dict(os.environ)]
    found.append(subprocess.run(["env"], capture_output=True, text=True).stdout)
    pathlib.Path("found.part").write_text(json.dumps(found))
    os.rename("found.part", "found")
"""


def test_a_handler_finds_no_credentials_in_any_environment(tmp_path: Path) -> None:
    (tmp_path / "looking.py").write_text(LOOK)
    values = {name: CANARY for name in BROKER_VARIABLES if name != "TASKQUEUE_BROKER_PORT"}
    values |= dict.fromkeys(RESULT_VARIABLES, CANARY)
    values["TASKQUEUE_RESULTS_URI"] = f"s3://{CANARY}"
    uri = {"TASKQUEUE_BROKER_URI": f"amqps://u:{CANARY}@127.0.0.1:1/"}
    del values["TASKQUEUE_BROKER_TLS"]
    worker = subprocess.Popen(
        [sys.executable, "-m", "taskqueue", "worker", "looking"],
        cwd=tmp_path,
        env={
            **os.environ,
            **values,
            **uri,
            "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path]),
            "TASKQUEUE_NAMESPACE": "shop",
            "TASKQUEUE_QUEUE": "q",
            "TASKQUEUE_HEALTH_PORT": "0",
            "TASKQUEUE_GRACE_SECONDS": "0",
        },
        stderr=subprocess.PIPE,
        text=True,
    )
    found = tmp_path / "found"
    while not found.exists() and worker.poll() is None:
        pass
    worker.terminate()
    assert found.exists(), worker.communicate(timeout=60)[1]
    worker.communicate(timeout=60)
    assert CANARY not in found.read_text()
    assert "TASKQUEUE_NAMESPACE" in found.read_text()
