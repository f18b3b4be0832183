"""Section E: what a handler does ends with its attempt."""

from __future__ import annotations

import json
import shlex
import time
from typing import Any

from tests.e2e.api import Body
from tests.faults.rows import row
from tests.faults.rows.site import PATIENCE, Site, holds_within, outline

#: Broken handlers, by what they raise.
RETRIES = {"retry_async", "retry_child", "retry_thread"}
FAILS = {"fail_async", "fail_child", "fail_thread", "unsayable"}
OWN_CLASSES = {"own_unknown_handler", "own_worker_lost"}

#: How long the database of a start hook is there, and then away.
_BEFORE_SECONDS, _AWAY_SECONDS = 30.0, 20.0
_ONCE: Body = {"maxAttempts": 1}
#: Longer than a queue at zero waits before it looks again for an unknown handler, at first.
_STEADY = 15.0
_TWICE: Body = {"maxAttempts": 2, "backoff": {"initialSeconds": 0.2, "jitter": 0}}


def _ends(site: Site, handler: str, *reasons: str, **spec: Any) -> str:
    """Run a handler that fails, and look at its reason and whether the slot is free again."""
    status = site.end(handler, **spec)
    assert status["phase"] == "Failed", f"{handler} ended as {outline(status)}"
    said = [status.get("reason"), *(entry.get("reason") for entry in status.get("history", []))]
    assert any(reason in said for reason in reasons), f"{handler} ended with {said}"
    site.works(f"after-{handler.replace('_', '-')}")
    return f"{handler}: {status['reason']} after {status['attempts']}"


@row(
    "E1",
    "raise Retry(after=Decimal) in coroutine, child and thread; one slot",
    "RetriesExhausted after two attempts, and the slot is free",
)
def _retry(site: Site) -> str:
    site.queue()
    seen = [_ends(site, kind, "RetriesExhausted", retry=_TWICE) for kind in sorted(RETRIES)]
    assert all("after 2" in each for each in seen), "; ".join(seen)
    return "; ".join(seen)


@row(
    "E2",
    "raise Fail(type=404) in coroutine, child and thread; an exception without text; one slot",
    "one attempt each, failed, or a clear TypeError; the slot is free",
)
def _fail(site: Site) -> str:
    site.queue()
    reasons = ("NonRetryable", "RetriesExhausted")
    seen = [_ends(site, kind, *reasons, retry=_ONCE) for kind in sorted(FAILS)]
    lost = [each for each in seen if "ChildDied" in each]
    assert not lost, "; ".join(seen)
    return "; ".join(seen)


@row(
    "E3",
    "results nested 252, 253, 254 and 1,000 deep, from a child and a coroutine",
    "InvalidResult, and the slot is free",
)
def _deep(site: Site) -> str:
    site.queue()
    for handler in ("deep_child", "deep_async"):
        for depth in (252, 253, 254, 1000):
            status = site.end(
                handler, f"{handler[5:]}-{depth}", payload={"depth": depth}, retry=_ONCE
            )
            types = json.dumps(status.get("history", []))
            assert "InvalidResult" in types, f"{handler} {depth}: {outline(status)}"
    return "; ".join(["8 InvalidResult", site.works()])


@row(
    "E4",
    "an application's exception classes called UnknownHandler and WorkerLost",
    "failed attempts like any other, counted",
)
def _reserved(site: Site) -> str:
    site.queue()
    ends = (_ends(site, kind, "RetriesExhausted", retry=_TWICE) for kind in sorted(OWN_CLASSES))
    return "; ".join(ends)


@row(
    "E5",
    "results 2**63-1, 2**64-1, 2**63+1, 2**100 and nan, from a child and a coroutine",
    "exact up to 64 bits with sign, else InvalidResult",
)
def _numbers(site: Site) -> str:
    site.queue()
    exact, seen = str(2**63 - 1), []
    texts = (exact, str(2**64 - 1), str(2**63 + 1), str(2**100), "float('nan')")
    for handler in ("number", "number_async"):
        for at, text in enumerate(texts):
            name = f"{handler.replace('_', '-')}-{at}"
            status = site.end(handler, name, payload={"text": text}, retry=_ONCE)
            if text == exact:
                assert str(status["result"]["n"]) == exact, f"{text} became {outline(status)}"
            else:
                failed = "InvalidResult" in json.dumps(status.get("history", []))
                assert failed, f"{text} became {outline(status)}"
        seen.append(f"{handler}: 1 exact, 4 InvalidResult")
    return "; ".join(seen)


def _program(site: Site, script: str) -> Body:
    """Run a program of two lines as a handler."""
    command = ["worker", "--command", f"program=sh -c {shlex.quote(script)}"]
    site.queue(template=site.template(args=command))
    return site.end("program", retry=_ONCE)


@row(
    "E6",
    "a command that prints an integer of 128 bits",
    "InvalidResult",
)
def _program_number(site: Site) -> str:
    status = _program(site, f"echo '{{\"n\": {2**127 - 1}}}'")
    assert status["phase"] == "Failed", f"it became {outline(status)}"
    return outline(status)


@row(
    "E7",
    'a command that prints {"event":"start"} and then {"loss": NaN}',
    "the first line is never the result",
)
def _program_line(site: Site) -> str:
    script = """echo '{"event": "start"}'; echo '{"loss": NaN}'"""
    status = _program(site, script)
    assert status.get("result") != {"event": "start"}, "the first line is the result"
    return outline(status)


@row(
    "E8",
    "a handler sets signal.alarm(2) and returns",
    "later attempts do not fail",
)
def _alarm(site: Site) -> str:
    site.queue()
    site.end("alarm")
    status = site.end("nap", payload={"seconds": 4}, retry=_ONCE)
    assert status["phase"] == "Succeeded", f"the next attempt ended as {outline(status)}"
    return "the next attempt of 4 s succeeds"


@row(
    "E9",
    "a handler starts a process and returns",
    "it ends with the attempt",
)
def _process(site: Site) -> str:
    site.queue()
    pid = site.end("leave_process")["result"]["value"]
    time.sleep(1)
    alive = site.end("is_alive", payload={"pid": pid})["result"]["value"]
    assert not alive, f"process {pid} is still there"
    return "the process is gone"


@row(
    "E10",
    "a handler changes directory, umask, environment and signal handlers",
    "the next attempt finds them as they were",
)
def _surroundings(site: Site) -> str:
    site.queue()
    before = site.end("surroundings", "before")["result"]
    site.end("change_surroundings")
    after = site.end("surroundings", "after")["result"]
    changed = sorted(name for name in before if before[name] != after[name])
    assert not changed, f"changed for the next attempt: {', '.join(changed)}"
    return "as they were"


def _module(site: Site, name: str, text: str) -> None:
    """Add a module beside the broken handlers."""
    path = site.harness.core("configmaps", "broken")
    site.at.api.patch(path, {"data": {f"{name}.py": text}})


@row(
    "E11",
    "SIGTERM while modules import for 40 s; grace period 60 s",
    "the pod ends soon, having taken nothing",
)
def _term(site: Site) -> str:
    _module(site, "slow", "import time\ntime.sleep(40)\nfrom broken import *\n")
    site.queue(template=site.template(args=["worker", "slow"], grace=60))

    def runs() -> bool:
        pods = site.harness.pods()
        return any(pod["status"].get("phase") == "Running" for pod in pods)

    assert holds_within(PATIENCE, runs), "no worker pod runs"
    time.sleep(3)
    (pod,) = [pod["metadata"]["name"] for pod in site.harness.pods()]
    path = site.harness.core("pods", pod)
    site.at.api.request("DELETE", path)

    def gone() -> bool:
        found = site.at.kubectl("get", "pod", pod, "-n", site.namespace, "--ignore-not-found")
        return not found.stdout.strip()

    assert holds_within(20, gone), "20 s after SIGTERM it still imports"
    return "gone within 20 s"


@row(
    "E12",
    "@on_start that fails in new children while a database is away; the child dies; ten Tasks of "
    "two attempts",
    "no Task fails; the worker works when the hook succeeds",
)
def _start_hook(site: Site) -> str:
    away = time.time() + _BEFORE_SECONDS
    hook = (
        "import os, time\nfrom broken import *\nfrom taskqueue import on_start\n"
        "@on_start\ndef connect():\n"
        f"    if {away} < time.time() < {away + _AWAY_SECONDS}:\n"
        "        raise ConnectionError('away')\n"
        "@task\ndef die(payload):\n    os._exit(1)\n"
    )
    _module(site, "hooked", hook)
    site.queue(template=site.template(args=["worker", "hooked"]))
    site.works("before")
    time.sleep(max(away - time.time(), 0) + 1)
    site.end("die", retry=_ONCE)
    names = site.harness.batch("hooked", 10, "echo", retry=_TWICE)
    ends = site.harness.all_finished(names, seconds=120)
    failed = sum(end["phase"] != "Succeeded" for end in ends)
    assert not failed, f"{failed} of 10 Tasks used up their attempts"
    return "10 succeed"


@row(
    "E13",
    "a Task whose handler no worker has; minReplicas 0",
    "the pool reaches zero, and stays there",
)
def _unknown(site: Site) -> str:
    site.queue(scaling={"minReplicas": 0, "maxReplicas": 2})
    site.works()
    site.harness.task("nobody", "no_such_handler")
    site.harness.phase("nobody", "Blocked", seconds=PATIENCE)

    def replicas() -> int:
        return int(site.at.api.get(site.harness.deployment())["spec"]["replicas"])

    def stays_at_zero() -> bool:
        return replicas() == 0 and not holds_within(_STEADY, lambda: replicas() > 0)

    assert holds_within(90, stays_at_zero), f"it never stays at zero for {_STEADY:g} s"
    return f"the pool stays at zero for {_STEADY:g} s"


@row(
    "E14",
    "an application that sets up logging when it is imported",
    "its lines are there, in its form",
)
def _logging(site: Site) -> str:
    text = (
        "import logging\n"
        "logging.basicConfig(level='INFO', format='MINE %(name)s %(message)s', force=True)\n"
        "from broken import *\n"
        "@task\ndef speak(payload):\n    logging.getLogger('shop').info('spoken')\n"
    )
    _module(site, "logs", text)
    site.queue(template=site.template(args=["worker", "logs"]))
    site.end("speak")
    said = holds_within(10, lambda: "MINE shop spoken" in site.harness.worker_log())
    assert said, "the application's own handler is gone"
    return "MINE shop spoken"


@row(
    "E15",
    "def h(payload, *, ctx)",
    "ctx is given, or the module is refused",
)
def _keyword(site: Site) -> str:
    text = "from broken import *\n@task\ndef keyword(payload, *, ctx):\n    return ctx.task\n"
    _module(site, "keywords", text)
    site.queue(template=site.template(args=["worker", "keywords"]))
    site.harness.task("keyword", "keyword", retry=_ONCE)
    try:
        status = site.harness.finished("keyword", seconds=PATIENCE)
    except AssertionError:
        log = site.harness.worker_log()
        assert "keyword" in log, "neither an attempt nor a word about it"
        return "refused when it is imported"
    assert status["phase"] == "Succeeded", outline(status)
    return outline(status)
