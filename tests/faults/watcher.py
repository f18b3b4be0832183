"""Records what happens to Tasks, independently of the operator's code, and judges it afterwards.

It shares no code with operator/taskqueue: what it knows is docs/reference/message-contract.md.

    with watching(api, rabbitmq, harness.namespace) as watcher:
        ...  # TaskQueues with `watcher.template(...)`, Tasks, faults
        with watcher.disturbance("the operator is killed"):
            harness.kill_operator()
        watcher.verdict().assert_clean()

It has three sources, each with a thread of its own:

* a watch of the namespace's Tasks: who was applied, each status, who was deleted;
* a queue bound to `taskqueue.work`, `taskqueue.outcomes` and `taskqueue.events`;
* an HTTP server, to which the handler `watched` of `MODULE` posts each run.

A queue that is bound makes a message routable. So while a work queue or the inbox is missing, the
publisher gets no return, as it would without the watcher; and with an exchange its bindings vanish.
Tests that delete those use the firehose instead (`firehose=True` within `BrokerFaults.tracing`),
which has no such effect, but ends when the server starts again.
"""

from __future__ import annotations

import http.server
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import requests

from tests.e2e.api import GROUP, VERSION, Api, Body, Refused
from tests.faults.broker import Broker
from tests.faults.message_recorder import MessageRecorder
from tests.faults.verdict import (
    Applied,
    Deleted,
    Disturbance,
    Ran,
    Record,
    Status,
    Verdict,
    judge,
)

#: Between two watches.
_PAUSE_SECONDS = 0.2

#: How long a watch may be behind a list.
_BEHIND_SECONDS = 10.0

#: The handler that reports each of its runs before it does anything, and sleeps for ``seconds``.
WATCHED = "watched"
MODULE = """
import json, os, time, urllib.request
from taskqueue import task

@task(thread=True)
def watched(payload, ctx):
    run = {"uid": ctx.uid, "attempt": ctx.attempt, "worker": os.environ["POD_NAME"]}
    url = os.environ["WATCHER_URL"]
    urllib.request.urlopen(url, json.dumps(run).encode(), timeout=10).close()
    time.sleep(payload.get("seconds", 0))
    return {}
"""


class Watcher:
    """Records from its beginning to `close`; usable from any thread.

    Tasks that are there before are ignored: nobody has seen their first publish.

    Args:
        api: a client of the cluster, past any proxy.
        broker: the broker of the namespace's TaskQueues.
        namespace: whose Tasks are watched.
        virtual_host: of the broker.
        firehose: read `amq.rabbitmq.trace` instead of binding to the exchanges.
        group: of the Tasks.
    """

    def __init__(
        self,
        api: Api,
        broker: Broker,
        namespace: str,
        *,
        virtual_host: str = "/",
        firehose: bool = False,
        group: str = GROUP,
    ) -> None:
        self._namespace = namespace
        self._lock = threading.Lock()
        self._records: list[Record] = []
        self._disturbances: list[Disturbance] = []
        self._ignored: frozenset[str] = frozenset()
        self._runs = _RunServer(broker.host, broker.port, self._add)
        self._tasks = _TaskWatch(api, namespace, self._add, group=group)
        self._ignored = self._tasks.earlier
        self._messages = MessageRecorder(
            broker, namespace, self._add, virtual_host=virtual_host, firehose=firehose
        )

    def template(self, template: Mapping[str, Any], configmap: str) -> Body:
        """Return a pod template whose worker runs `MODULE`.

        Args:
            template: of a worker, with one container.
            configmap: the ConfigMap that has `MODULE` under the key ``watched.py``.
        """
        changed: Body = json.loads(json.dumps(template))
        spec = changed["spec"]
        (worker,) = spec["containers"]
        worker["args"] = ["worker", "watched"]
        worker["env"] = [{"name": "WATCHER_URL", "value": self._runs.url}]
        worker["volumeMounts"] = [{"name": "handlers", "mountPath": "/handlers"}]
        spec["volumes"] = [{"name": "handlers", "configMap": {"name": configmap}}]
        return changed

    @property
    def records(self) -> list[Record]:
        """What was seen so far, in the order in which it was seen."""
        with self._lock:
            return list(self._records)

    @contextmanager
    def disturbance(self, reason: str) -> Iterator[None]:
        """Note for how long publishers cannot be sure of what they publish.

        For a moment (a kill) put just that into the block.
        """
        noted = Disturbance(reason=reason, began=time.monotonic())
        with self._lock:
            index = len(self._disturbances)
            self._disturbances.append(noted)
        try:
            yield
        finally:
            with self._lock:
                self._disturbances[index] = replace(noted, ended=time.monotonic())

    def verdict(self) -> Verdict:
        """Return what was broken, once everything that happened before has been recorded."""
        self._messages.catch_up()
        self._tasks.catch_up()
        with self._lock:
            return judge(self._records, disturbances=self._disturbances, reporting=[WATCHED])

    def close(self) -> None:
        """Stop recording, and delete the queue."""
        self._messages.close()
        self._tasks.close()
        self._runs.close()

    def _add(self, record: Record) -> None:
        with self._lock:
            if record.uid not in self._ignored:
                self._records.append(record)


@contextmanager
def watching(api: Api, broker: Broker, namespace: str, **options: Any) -> Iterator[Watcher]:
    """Watch a namespace until the end of the block; for the options see `Watcher`."""
    watcher = Watcher(api, broker, namespace, **options)
    try:
        yield watcher
    finally:
        watcher.close()


_Add = Callable[[Record], None]

#: Higher than any resource version.
_DELETED = 1 << 64


class _TaskWatch:
    """Lists and watches the Tasks of a namespace."""

    def __init__(self, api: Api, namespace: str, add: _Add, *, group: str) -> None:
        self._api = api
        self._path = f"/apis/{group}/{VERSION}/namespaces/{namespace}/tasks"
        self._add = add
        self._lock = threading.Lock()
        #: The last resource version that was recorded, by uid.
        self._seen: dict[str, int] = {}
        self._closed = threading.Event()
        self._version, present = self._get()
        #: The Tasks that were there before.
        self.earlier = frozenset(task["metadata"]["uid"] for task in present)
        threading.Thread(target=self._run, name="watcher's tasks", daemon=True).start()

    def catch_up(self) -> None:
        """Return once the present state of all Tasks has been recorded."""
        listed = {
            task["metadata"]["uid"]: int(task["metadata"]["resourceVersion"])
            for task in self._get()[1]
            if task["metadata"]["uid"] not in self.earlier
        }
        deadline = time.monotonic() + _BEHIND_SECONDS
        while time.monotonic() < deadline:
            with self._lock:
                there = {uid for uid, version in self._seen.items() if version < _DELETED}
                if there <= set(listed) and all(
                    self._seen.get(uid, 0) >= version for uid, version in listed.items()
                ):
                    return
            time.sleep(_PAUSE_SECONDS)
        self._list()  # the watch hangs: the versions in between are missing

    def close(self) -> None:
        """Stop watching."""
        self._closed.set()

    def _run(self) -> None:
        while not self._closed.wait(_PAUSE_SECONDS):
            with suppress(requests.RequestException, Refused, ValueError, _Expired):
                for event in self._api.watch(self._path, self._version):
                    if self._closed.is_set():
                        return
                    if event["type"] == "ERROR":
                        raise _Expired
                    self._version = event["object"]["metadata"]["resourceVersion"]
                    self._record(event["object"], deleted=event["type"] == "DELETED")
                continue
            with suppress(requests.RequestException, Refused):
                self._version = self._list()

    def _list(self) -> str:
        """Record all Tasks as they are; return the list's resource version."""
        with self._lock:
            before = set(self._seen)
        version, tasks = self._get()
        for task in tasks:
            self._record(task)
        # A Task that came and went between two watches is never seen.
        present = {task["metadata"]["uid"] for task in tasks}
        for uid in before - present:
            self._record_deletion(uid)
        return version

    def _get(self) -> tuple[str, list[Body]]:
        listed = self._api.get(self._path)
        return listed["metadata"]["resourceVersion"], listed["items"]

    def _record(self, task: Body, *, deleted: bool = False) -> None:
        metadata, status = task["metadata"], task.get("status") or {}
        uid, version, now = metadata["uid"], int(metadata["resourceVersion"]), time.monotonic()
        if uid in self.earlier:
            return
        with self._lock:
            last = self._seen.setdefault(uid, -1)
            if last < 0:
                handler = task["spec"].get("handler", "")
                self._add(Applied(at=now, uid=uid, name=metadata["name"], handler=handler))
            if last < version:  # a list and the watch overlap
                self._seen[uid] = version
                self._add(
                    Status(
                        at=now,
                        uid=uid,
                        phase=status.get("phase", ""),
                        attempts=status.get("attempts", 0),
                        epoch=status.get("epoch", 0),
                        completion_time=status.get("completionTime", ""),
                    )
                )
        if deleted:
            self._record_deletion(uid)

    def _record_deletion(self, uid: str) -> None:
        with self._lock:
            if self._seen[uid] < _DELETED:
                self._seen[uid] = _DELETED
                self._add(Deleted(at=time.monotonic(), uid=uid))


class _Expired(Exception):
    """The watch cannot go on from where it was."""


class _RunServer:
    """Takes the runs that handlers post; pods reach it at the address that faces the cluster."""

    def __init__(self, host: str, port: int, add: _Add) -> None:
        with socket.create_connection((host, port), timeout=30) as connection:
            address: str = connection.getsockname()[0]

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                run = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                add(Ran(at=time.monotonic(), **run))
                self.send_response(204)
                self.end_headers()

            def log_message(self, format: str, *arguments: Any) -> None:
                """Say nothing."""

        self._server = http.server.ThreadingHTTPServer((address, 0), Handler)
        self.url = f"http://{address}:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        """Take no more runs."""
        self._server.shutdown()
        self._server.server_close()
