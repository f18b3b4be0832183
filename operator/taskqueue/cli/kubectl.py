"""Asks the API server through kubectl, as a plugin of kubectl should.

So every way to log in that a kubeconfig knows (certificates, tokens, programs, proxies), contexts
and ``--as`` work as they do for kubectl, and nothing heavy is imported.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from taskqueue.cli.errors import CommandFailed

Object = dict[str, Any]

TASKS = "tasks.taskqueue.dev"
QUEUES = "taskqueues.taskqueue.dev"

#: kubectl processes at once.
_AT_ONCE = 8


@dataclass(frozen=True, slots=True)
class Kubectl:
    """kubectl with the options that say where and as whom.

    Attributes:
        flags: options of kubectl, such as ``--context``.
        namespace: ``-n`` or ``-A``; empty: that of the context.
    """

    flags: tuple[str, ...] = ()
    namespace: tuple[str, ...] = ()

    def objects(self, kind: str, *names: str, arguments: Sequence[str] = ()) -> list[Object]:
        """Return objects of a kind: the named ones, or all.

        Raises:
            CommandFailed: one does not exist, or kubectl says why not.
        """
        found = self._json("get", kind, *names, *arguments, "-o", "json")
        return found["items"] if found.get("kind", "").endswith("List") else [found]

    def object(self, kind: str, name: str, namespace: str) -> Object | None:
        """Return one object; None: it does not exist."""
        done = self._run(
            "get", kind, name, "--ignore-not-found", "-o", "json", namespace=("-n", namespace)
        )
        return read_json(done) if done.strip() else None

    def create(self, body: Object) -> Object:
        """Create an object, in the namespace that it names if it does, and return it.

        Raises:
            CommandFailed: it is refused; the text is the API server's.
        """
        named = body["metadata"].get("namespace")
        place = ("-n", named) if named else None
        words = ("create", "-f", "-", "-o", "json")
        made: Object = read_json(self._run(*words, body=json.dumps(body), namespace=place))
        return made

    def patch(self, kind: str, one: Object, change: Object) -> None:
        """Change an object by a JSON merge patch, unless it is another one of the same name."""
        metadata = one["metadata"]
        own = {**change.get("metadata", {}), "uid": metadata["uid"]}
        body = {**change, "metadata": own}
        self._run(
            *("patch", kind, metadata["name"], "--type=merge", "-p", json.dumps(body)),
            namespace=("-n", metadata["namespace"]),
        )

    def watch(
        self, kind: str, name: str, namespace: str, *, seconds: float | None = None
    ) -> Iterator[Object]:
        """Yield an object as it is now, and after each change, until the watch ends.

        Args:
            kind: of the object.
            name: of the object.
            namespace: of the object.
            seconds: after which the watch ends; None: the API server decides.

        Raises:
            CommandFailed: there is no such object, or the watch broke or took too long.
        """
        limit = [] if seconds is None else [f"--request-timeout={max(int(seconds), 1)}s"]
        document: list[str] = []
        words = ("get", kind, name, "--watch", "-o", "json", *limit)
        for line in self._lines(*words, namespace=namespace):
            document.append(line)
            if line == "}\n":  # the last line of an object: all within it are indented
                yield read_json("".join(document))
                document.clear()

    def logs(self, arguments: Sequence[str], namespace: str) -> Iterator[str]:
        """Yield lines of ``kubectl logs``, as they come.

        Raises:
            CommandFailed: kubectl says why there are none.
        """
        yield from self._lines("logs", *arguments, namespace=namespace)

    def each(self, run: Callable[[Object], None], objects: Sequence[Object]) -> list[str]:
        """Do something for each of many objects, and return what was said where it failed."""

        def one(item: Object) -> str | None:
            try:
                run(item)
            except CommandFailed as error:
                return f"{item['metadata']['name']}: {error}"
            return None

        with ThreadPoolExecutor(_AT_ONCE) as pool:
            return [said for said in pool.map(one, objects) if said is not None]

    def _lines(self, *words: str, namespace: str) -> Iterator[str]:
        """Yield what kubectl prints, line by line; end it when nobody asks for more."""
        with subprocess.Popen(
            self._command(*words, namespace=("-n", namespace)),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        ) as process:
            try:
                yield from process.stdout or ()
                if process.wait():
                    raise CommandFailed(_said(process.stderr.read() if process.stderr else ""))
            finally:
                process.terminate()

    def _json(self, *words: str) -> Object:
        found: Object = read_json(self._run(*words))
        return found

    def _run(
        self, *words: str, body: str | None = None, namespace: tuple[str, ...] | None = None
    ) -> str:
        done = subprocess.run(
            self._command(*words, namespace=namespace),
            input=body,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise CommandFailed(_said(done.stderr))
        return done.stdout

    def _command(self, *words: str, namespace: tuple[str, ...] | None = None) -> list[str]:
        program = shutil.which("kubectl")
        if program is None:
            raise CommandFailed(
                "there is no kubectl in PATH, which this command asks the API server with: "
                "install it (https://kubernetes.io/docs/tasks/tools/)"
            )
        place = self.namespace if namespace is None else namespace
        return [program, words[0], *self.flags, *place, *words[1:]]


def read_json(text: str) -> Object:
    """Read an object that kubectl or a worker has written.

    Raises:
        ValueError: it is none.
    """
    from taskqueue.exact_json import decode_own  # not for a help text

    value = decode_own(text)
    if not isinstance(value, dict):
        raise ValueError("it is no JSON object")
    return value


def _said(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1].removeprefix("Error from server ").removeprefix("error: ") if lines else "?"
