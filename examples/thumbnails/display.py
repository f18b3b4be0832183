"""What is seen while the Tasks run: a live panel on a terminal, lines of changes elsewhere."""

import time
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from devcluster.progress import Steps
from examples.thumbnails.watching import Snapshot
from examples.thumbnails.work import MAX_ATTEMPTS, MAX_WORKERS, NAMESPACE, QUEUE, Job
from taskqueue.api.task import TaskResource
from taskqueue.api.task_status import TERMINAL_PHASES

_STYLES = {"Succeeded": "green", "Failed": "red", "Retrying": "yellow", "Running": "cyan"}
_LEVELS = "▁▂▃▄▅▆▇█"
#: Seconds between two points of the pool's curve, and how many are shown.
_CURVE_STEP_S, _CURVE_POINTS = 0.5, 60
#: How many of the Tasks that finished last are listed.
_LATEST = 5
#: Seconds between two lines, where there is no terminal.
_LINE_S = 1.0


class Display:
    """Shows snapshots: call `show` as often as wanted, it draws only what changed."""

    def __init__(self, jobs: Sequence[Job], console: Console, steps: Steps) -> None:
        self._jobs = jobs
        self._steps = steps
        self._curve: list[int] = []
        self._next_point = self._next_line = 0.0
        self._told = ""
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None

    def __enter__(self) -> Self:
        if self._live:
            self._live.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        problem: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live:
            self._live.__exit__(kind, problem, trace)

    def show(self, snapshot: Snapshot) -> None:
        """Draw the panel, or write a line when something changed."""
        if time.monotonic() >= self._next_point:
            self._next_point = time.monotonic() + _CURVE_STEP_S
            self._curve = [*self._curve, snapshot.workers][-_CURVE_POINTS:]
        if self._live:
            now = datetime.now(UTC)
            panel = render(self._jobs, snapshot, curve=self._curve, now=now)
            self._live.update(panel, refresh=True)
        else:
            text = describe(self._jobs, snapshot)
            if text != self._told and time.monotonic() >= self._next_line:
                self._next_line = time.monotonic() + _LINE_S
                self._told = text
                self._steps.say(text)


def describe(jobs: Sequence[Job], snapshot: Snapshot) -> str:
    """Return the state in one line."""
    wanted, backlog = _wanted(snapshot), _number(_status(snapshot, "backlog"))
    phases = ", ".join(f"{count} {phase}" for phase, count in _phases(snapshot).items())
    parts = [
        f"workers {snapshot.ready_workers}/{snapshot.workers} of {wanted}",
        f"backlog {backlog}",
        phases or "no Task yet",
    ]
    for task in _broken(jobs, snapshot):
        if task.status.phase != "Pending":
            parts.append(
                f"broken: {task.status.phase} {task.status.attempts}/{MAX_ATTEMPTS} "
                f"{task.status.reason}".rstrip()
            )
    return " | ".join(parts)


def render(
    jobs: Sequence[Job], snapshot: Snapshot, *, curve: Sequence[int], now: datetime
) -> RenderableType:
    """Return the panel."""
    top = Table.grid(padding=(0, 2), expand=True)
    top.add_column(style="bold", width=8)
    top.add_column(width=30)
    top.add_column(width=10, justify="right")
    top.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
    done = sum(task.status.phase in TERMINAL_PHASES for task in snapshot.tasks.values())
    backlog = _status(snapshot, "backlog")
    top.add_row(
        "Workers",
        _boxes(snapshot),
        f"{snapshot.ready_workers}, want {_wanted(snapshot)}",
        Text("".join(_LEVELS[round(7 * size / MAX_WORKERS)] for size in curve), style="cyan"),
    )
    top.add_row(
        "Backlog",
        ProgressBar(total=len(jobs), completed=backlog or 0, width=30, complete_style="magenta"),
        _number(backlog),
        Text(
            f"{_number(_status(snapshot, 'pending'))} in the operator, "
            f"{_number(_status(snapshot, 'ready'))} in the broker, "
            f"{_number(_status(snapshot, 'running'))} with a worker"
        ),
    )
    top.add_row(
        "Tasks",
        ProgressBar(total=len(jobs), completed=done, width=30, complete_style="green"),
        f"{done} of {len(jobs)}",
        _phase_text(snapshot),
    )
    scaling = snapshot.queue.status.scaling if snapshot.queue else ""
    return Panel(
        Group(
            top,
            Text(f"\nScaling   {scaling or '-'}", style="dim", no_wrap=True, overflow="ellipsis"),
            _broken_table(jobs, snapshot, now),
            _latest_table(snapshot),
        ),
        title=f"{NAMESPACE}/{QUEUE}",
        border_style="blue",
    )


def _broken_table(jobs: Sequence[Job], snapshot: Snapshot, now: datetime) -> RenderableType:
    table = Table.grid(padding=(0, 2))
    for task in _broken(jobs, snapshot):
        status = task.status
        style = _STYLES.get(status.phase, "dim")
        state = f"{status.phase} {status.reason}".rstrip()
        if status.next_attempt_time is not None:
            wait = max((status.next_attempt_time - now).total_seconds(), 0.0)
            state += f", attempt {status.attempts + 1} " + (
                f"in {wait:.1f} s" if wait else "is due"
            )
        table.add_row(Text(f"\n{task.metadata.name}", style="bold"), Text(f"\n{state}", style))
        for each in status.history:
            table.add_row(
                Text(f"  attempt {each.attempt} of {MAX_ATTEMPTS}", style="dim"),
                Text(f"{each.reason}: {each.message}", no_wrap=True, overflow="ellipsis"),
            )
        for _ in range(MAX_ATTEMPTS - len(status.history)):
            table.add_row("")
    return table


def _latest_table(snapshot: Snapshot) -> RenderableType:
    table = Table.grid(padding=(0, 2))
    ended = [
        (task.status.completion_time, name, task)
        for name, task in snapshot.tasks.items()
        if task.status.completion_time is not None
    ]
    table.add_row(Text("\nfinished last", style="dim"))
    for _, name, task in sorted(ended, key=lambda item: item[:2], reverse=True)[:_LATEST]:
        phase, result = task.status.phase, task.status.result or {}
        made = (
            f"{result['width']} x {result['height']}, {result['seconds']:.2f} s" if result else ""
        )
        style = _STYLES.get(phase, "")
        table.add_row(name, Text(phase, style), made, Text(task.status.worker, "dim"))
    for _ in range(_LATEST - len(ended)):
        table.add_row("")
    return table


def _boxes(snapshot: Snapshot) -> Text:
    boxes = Text()
    boxes.append("■ " * snapshot.ready_workers, "bold green")
    boxes.append("■ " * (snapshot.workers - snapshot.ready_workers), "yellow")
    boxes.append("□ " * max(MAX_WORKERS - snapshot.workers, 0), "dim")
    return boxes


def _phase_text(snapshot: Snapshot) -> Text:
    text = Text()
    for phase, count in _phases(snapshot).items():
        text.append(f"{count} {phase}  ", _STYLES.get(phase, "dim"))
    return text


def _phases(snapshot: Snapshot) -> dict[str, int]:
    counts = Counter[str](task.status.phase for task in snapshot.tasks.values())
    order = ("Pending", "Running", "Retrying", "Succeeded", "Failed")
    return {phase: counts[phase] for phase in (*order, *sorted(counts)) if counts[phase]}


def _broken(jobs: Sequence[Job], snapshot: Snapshot) -> list[TaskResource]:
    names = (job.name for job in jobs if job.broken)
    return [snapshot.tasks[name] for name in names if name in snapshot.tasks]


def _status(snapshot: Snapshot, name: str) -> int | None:
    if snapshot.queue is None:
        return None
    value: int | None = getattr(snapshot.queue.status, name)
    return value


def _wanted(snapshot: Snapshot) -> str:
    return _number(_status(snapshot, "desired_replicas"))


def _number(value: int | None) -> str:
    return "?" if value is None else str(value)
