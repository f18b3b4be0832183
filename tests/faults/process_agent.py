"""Lists and signals processes from inside a node's PID namespace; `processes` sends it there.

Its text is the argument of ``python3 -c``, so it imports the standard library only.

    list                             print all processes, as JSON
    signal NAME PID:STARTED ...      send a signal to each; print the pids that got it
    hold SECONDS PID:STARTED ...     stop each; print the pids; continue them when the standard
                                     input ends, or after the seconds

A process is addressed by its pid and its start time (clock ticks since boot). The signal is sent
through a pidfd that was opened before the start time was compared: a reused pid is never hit.
"""

import json
import os
import re
import select
import signal
import sys

#: What is read of a process's environment: the rest may be secret.
_VARIABLES = ("HOSTNAME", "TASKQUEUE_NAMESPACE", "TASKQUEUE_QUEUE")


def main(action: str, *arguments: str) -> None:
    """Do what the command line says."""
    if action == "list":
        found = map(_describe, filter(str.isdigit, os.listdir("/proc")))
        print(json.dumps([one for one in found if one and one["pid"] != os.getpid()]))
    elif action == "signal":
        name, *targets = arguments
        _print(_send(_open(targets), signal.Signals[name]))
    elif action == "hold":
        seconds, *targets = arguments
        opened = _open(targets)
        _print(_send(opened, signal.SIGSTOP))
        try:
            select.select([sys.stdin], [], [], float(seconds))
        finally:
            _send(opened, signal.SIGCONT)


def _describe(pid: str) -> dict[str, object] | None:
    try:
        state, started = _state(pid)
        command = _read(pid, "cmdline").decode(errors="replace").split("\0")[:-1]
        environ = _read(pid, "environ").decode(errors="replace").split("\0")
        cgroup = _read(pid, "cgroup").decode()
        namespace = os.readlink(f"/proc/{pid}/ns/pid")
    except OSError:
        return None  # it has ended meanwhile
    if not command or state == "Z":
        return None
    variables = dict(one.partition("=")[::2] for one in environ)
    uid = re.search(r"pod([0-9a-f]{8}(?:[-_][0-9a-f]{4}){3}[-_][0-9a-f]{12})", cgroup)
    return {
        "pid": int(pid),
        "started": started,
        "command": command,
        "variables": {name: variables[name] for name in _VARIABLES if name in variables},
        "pod_uid": uid[1].replace("_", "-") if uid else "",
        "is_outermost": namespace == os.readlink("/proc/self/ns/pid"),
    }


def _open(targets: list[str]) -> dict[int, int]:
    """Return a pidfd for each target that still runs, by pid."""
    opened = {}
    for target in targets:
        pid, _, started = target.partition(":")
        try:
            descriptor = os.pidfd_open(int(pid))
            if _state(pid)[1] == int(started):
                opened[int(pid)] = descriptor
        except OSError:
            continue
    return opened


def _send(opened: dict[int, int], number: signal.Signals) -> list[int]:
    reached = []
    for pid, descriptor in opened.items():
        try:
            signal.pidfd_send_signal(descriptor, number)
            reached.append(pid)
        except OSError:
            continue
    return reached


def _state(pid: str) -> tuple[str, int]:
    """Return the state of a process, and when it started."""
    fields = _read(pid, "stat").decode(errors="replace").rpartition(")")[2].split()
    return fields[0], int(fields[19])


def _read(pid: str, name: str) -> bytes:
    with open(f"/proc/{pid}/{name}", "rb") as file:
        return file.read()


def _print(pids: list[int]) -> None:
    print(json.dumps(pids), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
