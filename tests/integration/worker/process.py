"""A real worker process and its log."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from taskqueue.amqp.parameters import BrokerParameters

ROOT = Path(__file__).parents[3]

#: Longer than anything takes here; tests wait for events, never for time.
PATIENCE = 60.0


HANDLERS = "tests.integration.worker.handlers"


class WorkerProcess:
    """``python -m taskqueue worker …``."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._more = asyncio.Event()
        self.log: list[dict[str, Any]] = []
        self._reader = asyncio.create_task(self._read())

    @classmethod
    async def start(
        cls,
        broker: BrokerParameters,
        *,
        slots: int,
        environment: Mapping[str, str],
        arguments: Sequence[str] = (HANDLERS,),
    ) -> WorkerProcess:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "taskqueue",
            "worker",
            *arguments,
            stderr=asyncio.subprocess.PIPE,
            cwd=ROOT,
            process_group=0,
            env={
                **os.environ,
                "PYTHONPATH": f"{ROOT / 'operator'}{os.pathsep}{ROOT}",
                "TASKQUEUE_NAMESPACE": "shop",
                "TASKQUEUE_QUEUE": "q",
                "TASKQUEUE_BROKER_HOST": broker.host,
                "TASKQUEUE_BROKER_PORT": str(broker.port),
                "TASKQUEUE_BROKER_USERNAME": broker.username,
                "TASKQUEUE_BROKER_PASSWORD": broker.password,
                "TASKQUEUE_BROKER_VHOST": broker.virtual_host,
                "TASKQUEUE_CONCURRENCY": str(slots),
                "TASKQUEUE_HEALTH_PORT": "0",
                # Longer than any test: an end that waits for it without need is seen.
                "TASKQUEUE_GRACE_SECONDS": "3600",
                "TASKQUEUE_LOG_FORMAT": "json",
                "POD_NAME": "pod-1",
                **environment,
            },
        )
        return cls(process)

    @property
    def pid(self) -> int:
        return self._process.pid

    async def logged(
        self,
        event: str,
        *,
        times: int = 1,
        where: Callable[[dict[str, Any]], bool] = lambda line: True,
    ) -> dict[str, Any]:
        """Wait until the event has been logged that often, and return the last of those lines."""
        async with asyncio.timeout(PATIENCE):
            while True:
                lines = [line for line in self.log if line["event"] == event and where(line)]
                if len(lines) >= times:
                    return lines[times - 1]
                assert not self._reader.done(), f"it ended without {event}: {self.log}"
                self._more.clear()
                await self._more.wait()

    @property
    def group(self) -> int:
        """Its process group, which it leads."""
        return self.pid

    def terminate(self) -> None:
        self._process.send_signal(signal.SIGTERM)

    def freeze(self) -> None:
        """Let it stand still."""
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    async def kill(self) -> None:
        """Kill it as the out-of-memory killer would."""
        if self._process.returncode is None:
            self._process.kill()
        await self.ended()

    async def ended(self) -> int:
        """Wait for its end and return the exit code."""
        async with asyncio.timeout(PATIENCE):
            code = await self._process.wait()
            await self._reader
            return code

    async def _read(self) -> None:
        assert self._process.stderr is not None
        async for raw in self._process.stderr:
            try:
                self.log.append(json.loads(raw))
            except ValueError:
                self.log.append({"event": "", "text": raw.decode()})
            self._more.set()
        self._more.set()
