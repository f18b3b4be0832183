"""Handlers that do to their worker what handlers must not; mounted into pods as ``broken``."""

import asyncio
import os
import runpy
import signal
import subprocess
import time
from decimal import Decimal
from typing import Any

from taskqueue import Context, Fail, Retry, task

Payload = dict[str, Any]


@task
def echo(payload: Payload) -> Payload:
    return payload


@task
def nap(payload: Payload) -> None:
    time.sleep(payload["seconds"])


@task
def refuse(payload: Payload) -> None:
    raise Fail("no")


def _retry() -> None:
    raise Retry("slow", after=Decimal("0.5"))


def _fail() -> None:
    raise Fail("bad", type=404)  # type: ignore[arg-type]


@task
async def retry_async(payload: Payload) -> None:
    _retry()


@task
def retry_child(payload: Payload) -> None:
    _retry()


@task(thread=True)
def retry_thread(payload: Payload) -> None:
    _retry()


@task
async def fail_async(payload: Payload) -> None:
    _fail()


@task
def fail_child(payload: Payload) -> None:
    _fail()


@task(thread=True)
def fail_thread(payload: Payload) -> None:
    _fail()


class Unsayable(Exception):
    def __str__(self) -> str:
        raise ValueError("no text")


@task
async def unsayable(payload: Payload) -> None:
    raise Unsayable


def _deep(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return {"deep": value}


@task
def deep_child(payload: Payload) -> Any:
    return _deep(payload["depth"])


@task
async def deep_async(payload: Payload) -> Any:
    return _deep(payload["depth"])


class UnknownHandler(Exception):
    """An application's own."""


class WorkerLost(Exception):
    """An application's own."""


@task
def own_unknown_handler(payload: Payload) -> None:
    raise UnknownHandler("an application's own")


@task
def own_worker_lost(payload: Payload) -> None:
    raise WorkerLost("an application's own")


@task
def number(payload: Payload) -> Any:
    return {"n": eval(payload["text"])}  # noqa: S307 - a number that JSON has no text for


@task
async def number_async(payload: Payload) -> Any:
    return {"n": eval(payload["text"])}  # noqa: S307


@task
def alarm(payload: Payload) -> int:
    signal.alarm(2)
    return os.getpid()


@task
def leave_process(payload: Payload) -> int:
    return subprocess.Popen(["sleep", "600"]).pid


@task
def is_alive(payload: Payload) -> bool:
    try:
        return "Z" not in open(f"/proc/{payload['pid']}/stat").read().split(")")[1].split()[0]
    except OSError:
        return False


@task
def change_surroundings(payload: Payload) -> int:
    os.chdir("/")
    os.umask(0)
    os.environ["LEFT_BEHIND"] = "yes"
    signal.signal(signal.SIGALRM, signal.SIG_IGN)
    return os.getpid()


@task
def surroundings(payload: Payload) -> Payload:
    mask = os.umask(0o22)
    os.umask(mask)
    return {
        "cwd": os.getcwd(),
        "umask": mask,
        "left": os.environ.get("LEFT_BEHIND", ""),
        "alarm": str(signal.getsignal(signal.SIGALRM)),
    }


@task
async def tick(payload: Payload, ctx: Context) -> None:
    await asyncio.sleep(payload["seconds"])


@task
def note(payload: Payload, ctx: Context) -> None:
    ctx.logger.info(f"noted {payload['name']}")


@task
def until_open(payload: Payload) -> None:
    while not os.path.exists(f"/tmp/{payload['gate']}"):  # noqa: S108 - of the pod
        time.sleep(0.1)


@task
async def until_open_fails(payload: Payload) -> None:
    while not os.path.exists(f"/tmp/{payload['gate']}"):  # noqa: S108, ASYNC110, ASYNC240
        await asyncio.sleep(0.5)
    raise ConnectionError("the gate was open")


@task
def look_around(payload: Payload) -> Any:
    return runpy.run_path("/handlers/look.py")["look"]()


@task
def show_fence(payload: Payload, ctx: Context) -> None:
    ctx.logger.info(f"fence is {ctx.fence}")
