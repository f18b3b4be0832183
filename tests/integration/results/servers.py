"""Real servers of results as processes of this machine: PostgreSQL, Redis and an S3 gateway.

Each keeps its data when it is killed and started again.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import quote

from devcluster import packages, programs
from taskqueue.results.connection import StoreConnection

USER, PASSWORD = "taskqueue", "s3cret/with:signs@all"
_START_SECONDS = 30


class Server(ABC):
    """One server, on a port of its own.

    Args:
        folder: of its data; it must be searchable by everybody.
        host: the address of this machine that it listens at.
    """

    kind: str

    def __init__(self, folder: Path, host: str = "127.0.0.1") -> None:
        self.folder = folder
        self.host = host
        self.port = _free_port(host)
        self._process: subprocess.Popen[bytes] | None = None

    @abstractmethod
    def connection(self, *, password: str = PASSWORD) -> StoreConnection:
        """Return how it is reached."""

    @abstractmethod
    def command(self) -> Sequence[str]:
        """Return the command that runs it in the foreground."""

    def prepare(self) -> None:
        """Install it where it is missing, and make its data, once."""
        packages.install(packages.STORES)

    def start(self) -> None:
        """Start it, and wait until it takes connections."""
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                self.command(), stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + _START_SECONDS
        while not self._answers():
            said = (self.folder / "log").read_text(errors="replace")[-2000:]
            assert self._process.poll() is None, f"{self.kind} has ended:\n{said}"
            assert time.monotonic() < deadline, f"{self.kind} does not answer:\n{said}"
            time.sleep(0.05)

    def kill(self) -> None:
        """End it, and all of its processes, as a power cut would."""
        if self._process is not None:
            self._signal(signal.SIGKILL)
            self._process.wait()
            self._process = None

    def pause(self) -> None:
        """Stop it without closing a connection."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: int) -> None:
        """Send it to the server and its children, which may be in sessions of their own."""
        assert self._process is not None
        pid = self._process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        for one in (pid, *map(int, children)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(one, number)

    def _answers(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex((self.host, self.port)) == 0


class PostgresqlServer(Server):
    """Debian's PostgreSQL, which refuses to be root."""

    kind = "postgresql"

    def connection(self, *, password: str = PASSWORD) -> StoreConnection:
        return StoreConnection(uri=f"postgresql://{USER}:{_quoted(password)}@{self._place}")

    @property
    def _place(self) -> str:
        return f"{self.host}:{self.port}/postgres"

    def prepare(self) -> None:
        super().prepare()
        shutil.chown(self.folder, "postgres")
        secret = self.folder / "password"
        secret.write_text(PASSWORD)
        shutil.chown(secret, "postgres")
        options = ["--auth=scram-sha-256", f"--username={USER}", f"--pwfile={secret}", "--no-sync"]
        made = subprocess.run(
            [*_AS_POSTGRES, _postgresql("initdb"), *options, "-D", str(self.folder / "data")],
            capture_output=True,
            text=True,
        )
        assert made.returncode == 0, made.stderr
        with (self.folder / "data" / "pg_hba.conf").open("a") as rules:
            rules.write("host all all all scram-sha-256\n")

    def command(self) -> Sequence[str]:
        options = (
            "-c",
            f"listen_addresses={self.host}",
            "-c",
            f"unix_socket_directories={self.folder}",
        )
        data = str(self.folder / "data")
        return [*_AS_POSTGRES, _postgresql("postgres"), "-D", data, "-p", str(self.port), *options]

    def kill(self) -> None:
        super().kill()
        # Its number may be another process's by now.
        (self.folder / "data" / "postmaster.pid").unlink(missing_ok=True)

    def _answers(self) -> bool:
        # While it recovers it takes connections, and refuses each.
        asked = ["pg_isready", "-q", "-h", self.host, "-p", str(self.port)]
        return super()._answers() and subprocess.run(asked).returncode == 0

    def execute(self, statement: str) -> str:
        """Run a statement as the owner of everything."""
        done = subprocess.run(
            ["psql", "-At", "-c", statement, self.connection().uri], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()


class RedisServer(Server):
    """Debian's Redis, which writes each change to the disk before it answers."""

    kind = "redis"

    def connection(self, *, password: str = PASSWORD) -> StoreConnection:
        return StoreConnection(uri=f"redis://:{_quoted(password)}@{self.host}:{self.port}/0")

    def command(self) -> Sequence[str]:
        return [
            *("redis-server", "--port", str(self.port), "--bind", self.host),
            *("--dir", str(self.folder), "--requirepass", PASSWORD),
            *("--appendonly", "yes", "--appendfsync", "always", "--save", ""),
        ]


class S3Server(Server):
    """versitygw over a folder."""

    kind = "s3"

    def connection(self, *, password: str = PASSWORD) -> StoreConnection:
        return StoreConnection(
            uri="s3://results/some/prefix",
            endpoint=f"http://{self.host}:{self.port}",
            access_key_id=USER,
            secret_access_key=password,
        )

    def prepare(self) -> None:
        programs.install_s3_gateway()
        (self.folder / "buckets" / "results").mkdir(parents=True)

    def command(self) -> Sequence[str]:
        return [
            *(str(programs.s3_gateway()), "--access", USER, "--secret", PASSWORD),
            *("--port", f"{self.host}:{self.port}", "posix", str(self.folder / "buckets")),
        ]


KINDS: dict[str, type[Server]] = {
    one.kind: one for one in (PostgresqlServer, RedisServer, S3Server)
}

#: It becomes the command, where runuser would stay beside it.
_AS_POSTGRES = ("setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups", "--")


def _postgresql(program: str) -> str:
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{program}"))
    assert found, "PostgreSQL is not installed"
    return str(found[-1])


def _quoted(password: str) -> str:
    return quote(password, safe="")


def address_towards(host: str) -> str:
    """Return the address of this machine that another one, such as a node, can reach it at."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, 1))  # nothing is sent
        return str(probe.getsockname()[0])


def secret_of(connection: StoreConnection) -> dict[str, str]:
    """Return the keys of the Secret that describes a store."""
    keys = {
        "uri": connection.uri,
        "endpoint": connection.endpoint,
        "region": connection.region,
        "accessKeyId": connection.access_key_id,
        "secretAccessKey": connection.secret_access_key,
    }
    return {key: text for key, text in keys.items() if text}


@contextlib.contextmanager
def running(kind: str, host: str = "127.0.0.1") -> Iterator[Server]:
    """A server with data of its own, started, which is killed in the end."""
    with tempfile.TemporaryDirectory(prefix=f"{kind}-") as folder:
        Path(folder).chmod(0o755)
        server = KINDS[kind](Path(folder), host)
        server.prepare()
        server.start()
        try:
            yield server
        finally:
            server.kill()


def _free_port(host: str) -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])
