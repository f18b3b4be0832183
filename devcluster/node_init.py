"""The first process of a node: it runs as PID 1 of the node's own namespaces.

It is started by `node.start` inside fresh network, mount and PID namespaces, waits for the line
on its standard input that says the network is there, gives the node its own mounts, and then
keeps the node's programs running until it is killed. When it ends, the kernel ends everything
in the node: there is nothing to clean up that it would have to be alive for.

It reads ``node.json`` (written by `node_settings.files`) and imports nothing of devcluster, so
that it needs neither the checkout nor its Python packages once it runs.

A program is started when what it waits for (`after`) is there, and again a second after it
ended. Its output goes to ``<logs>/<name>.log``.
"""

import json
import os
import socket
import ssl
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

#: Programs get this environment only: a proxy variable of the caller would send the API server's
#: connections to its own nodes elsewhere.
ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LANG": "C.UTF-8",
}

#: Seconds before a program that ended is started again.
RESTART_S = 1.0

#: Seconds between two checks of what a program waits for.
_LOOK_S = 0.05


def main(settings_file: str) -> None:
    """Wait for the network, prepare the mounts, run the programs; never returns."""
    settings = json.loads(Path(settings_file).read_text())
    if sys.stdin.readline().strip() != "network ready":
        sys.exit("the creator of this node went away before the node had a network")
    prepare(settings)
    supervise(settings["programs"], Path(settings["logs"]), settings["authority"])


def prepare(settings: dict[str, Any]) -> None:
    """Give the node its own view of the machine."""
    for folder in settings["tmpfs"]:
        _mount("-t", "tmpfs", "-o", "mode=755", "devcluster", folder)
    for source, target in settings["binds"]:
        _mount("--bind", source, target)
    for number, sysctl in enumerate(settings["shielded"]):
        if Path(sysctl).exists():
            stand_in = Path(f"/run/sysctl-{number}")
            stand_in.write_text(Path(sysctl).read_text())
            _mount("--bind", str(stand_in), sysctl)
    for name, value in settings["sysctls"].items():
        Path("/proc/sys", name).write_text(value)


def supervise(programs: list[dict[str, Any]], logs: Path, authority: str) -> None:
    """Keep the programs running, and reap whatever else ends here."""
    due = {program["name"]: 0.0 for program in programs}
    running: dict[int, str] = {}
    while True:
        now = time.monotonic()
        for program in programs:
            name = program["name"]
            if name in due and due[name] <= now and ready(program["after"], authority):
                running[_start(program, logs)] = name
                del due[name]
        # With nothing left to start, sleep until a process ends.
        try:
            pid, status = os.waitpid(-1, os.WNOHANG if due else 0)
        except ChildProcessError:
            pid, status = 0, 0
        if pid in running:
            name = running.pop(pid)
            due[name] = time.monotonic() + RESTART_S
            _say(f"{name} ended with status {os.waitstatus_to_exitcode(status)}, restarting")
        elif pid == 0:
            time.sleep(_LOOK_S)


def ready(condition: str, authority: str) -> bool:
    """Return whether a program may start.

    Args:
        condition: nothing, `tcp:host:port` or `unix:path` (something listens there), `file:path`
            (it exists), or an `https:` URL (a GET of it succeeds).
        authority: the file of the certificate authority that the URL's server must show.
    """
    kind, _, where = condition.partition(":")
    try:
        if kind == "unix":
            with socket.socket(socket.AF_UNIX) as connection:
                connection.connect(where)
        elif kind == "tcp":
            host, _, port = where.rpartition(":")
            socket.create_connection((host, int(port)), timeout=1).close()
        elif kind == "https":
            trust = ssl.create_default_context(cafile=authority)
            with urllib.request.urlopen(condition, timeout=2, context=trust):  # noqa: S310
                pass
        elif kind == "file":
            return Path(where).exists()
    except OSError:
        return False
    return True


def _start(program: dict[str, Any], logs: Path) -> int:
    command = program["command"]
    log = os.open(logs / f"{program['name']}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        _say(f"starting {program['name']}")
        return os.posix_spawnp(
            command[0],
            command,
            ENVIRONMENT,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_DUP2, log, 1),
                (os.POSIX_SPAWN_DUP2, log, 2),
            ],
            setsid=True,
        )
    finally:
        os.close(log)


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True, env=ENVIRONMENT)


def _say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
