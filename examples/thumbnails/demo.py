"""The demo: photographs become thumbnails, by a pool of workers that comes and goes.

    python -m examples.thumbnails.demo        (or: make demo)

It brings the development cluster and the operator up, applies a TaskQueue and its Tasks, shows
what happens until the pool is back at zero, and ends with status 0 only if every Task ended as it
must: the good ones Succeeded at the first attempt, the broken one Failed after all of its own.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import yaml
from rich.console import Console

from devcluster import DevclusterError, build_image, download_wheels, load_images, open_cluster
from devcluster.commands import CommandError, run
from devcluster.deploy import deploy
from devcluster.paths import CHECKOUT
from devcluster.progress import Steps
from examples.thumbnails import contact_sheet, photographs, verdict
from examples.thumbnails.display import Display
from examples.thumbnails.watching import Snapshot, WatchEnded, Watcher
from examples.thumbnails.work import ICON, IMAGE, NAMESPACE, PREVIEW, QUEUE, Job, jobs, to_yaml

HERE = Path(__file__).resolve().parent

#: What the demo writes; git ignores it.
OUTPUT = CHECKOUT / ".demo"

#: Seconds between two drawings of the screen.
_FRAME_S = 0.125

#: Seconds that the namespace of the run before gets to go, and the TaskQueue to be ready.
_NAMESPACE_S, _QUEUE_S = 60, 30

#: Where a TaskQueue says why it is not ready.
_READY_MESSAGE = '{.status.conditions[?(@.type=="Ready")].message}'


class DemoError(Exception):
    """The demo cannot go on; the text says why."""


class Demo:
    """One run, step by step."""

    def __init__(self, kubectl: Sequence[str], steps: Steps, console: Console) -> None:
        self._command = list(kubectl)
        self._steps = steps
        self._console = console
        self._jobs = jobs()

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        """Run kubectl and return what it prints."""
        return run([*self._command, *arguments], stdin=stdin)

    def remove_last_run(self) -> None:
        """Delete the namespace and what the run before has left in the output folder."""
        self.kubectl(
            "delete",
            f"namespace/{NAMESPACE}",
            "--ignore-not-found",
            f"--timeout={_NAMESPACE_S}s",
        )
        shutil.rmtree(OUTPUT / "thumbnails", ignore_errors=True)
        (OUTPUT / "contact-sheet.png").unlink(missing_ok=True)

    def create_queue(self) -> None:
        """Create namespace, connection Secret and TaskQueue, and see that no worker runs."""
        self.kubectl("apply", "--filename=-", stdin=self._surroundings())
        self.kubectl("apply", f"--filename={HERE / 'taskqueue.yaml'}")
        within = f"--namespace={NAMESPACE}"
        queue = f"taskqueues.taskqueue.dev/{QUEUE}"
        try:
            self.kubectl("wait", within, "--for=condition=Ready", queue, f"--timeout={_QUEUE_S}s")
        except CommandError as error:
            why = self.kubectl("get", within, queue, f"--output=jsonpath={_READY_MESSAGE}")
            raise DemoError(
                f"TaskQueue {NAMESPACE}/{QUEUE} is not ready after {_QUEUE_S} s: "
                f"{why or 'the operator has not written a status'}"
            ) from error
        pods = self.kubectl("get", "pods", within, "--output=name")
        if pods:
            raise DemoError(f"there are workers before there is work: {pods.split()}")
        self._steps.say(f"TaskQueue {NAMESPACE}/{QUEUE} is ready, with no worker")

    def run_tasks(self, *, seconds: float) -> Snapshot:
        """Apply the Tasks, show what happens, and return how it ended.

        Args:
            seconds: when to give up.
        """
        tasks = OUTPUT / "tasks.yaml"
        tasks.write_text(to_yaml(self._jobs))
        self._steps.say(f"kubectl apply -f {_shown(tasks)}: {len(self._jobs)} Tasks")
        with (
            ThreadPoolExecutor(1) as pool,
            Watcher(self._command) as watcher,
            Display(self._jobs, self._console, self._steps) as display,
        ):
            applied = pool.submit(self.kubectl, "apply", f"--filename={tasks}")
            deadline = time.monotonic() + seconds
            while time.monotonic() < deadline:
                if applied.done():
                    applied.result()
                snapshot = watcher.snapshot()
                display.show(snapshot)
                if verdict.finished(self._jobs, snapshot):
                    return snapshot
                time.sleep(_FRAME_S)
            self._steps.say(f"not over after {seconds:.0f} s: given up")
            return watcher.snapshot()

    def collect(self, snapshot: Snapshot) -> list[str]:
        """Write the thumbnails and the contact sheet; return what is not as it must be."""
        folder = OUTPUT / "thumbnails"
        folder.mkdir(parents=True, exist_ok=True)
        thumbnails: dict[str, bytes] = {}
        for job in self._jobs:
            task = snapshot.tasks.get(job.name)
            if task is not None and task.status.phase == "Succeeded":
                try:
                    thumbnails[job.name] = verdict.jpeg(task)
                except (ValueError, OSError):
                    continue  # the verdict reports it
                (folder / f"{job.name}.jpg").write_bytes(thumbnails[job.name])
        good = len(thumbnails)
        contact_sheet.save(
            [_entry(file, snapshot, thumbnails) for file in _files(self._jobs)],
            OUTPUT / "contact-sheet.png",
            subtitle=f"{good} thumbnails by TaskQueue {NAMESPACE}/{QUEUE}",
        )
        self._steps.say(f"{good} thumbnails collected from the Tasks' results")
        return verdict.problems(self._jobs, snapshot)

    def print_tasks(self) -> None:
        """Print the table of the Tasks as kubectl prints it."""
        print("\n$ kubectl get tasks.taskqueue.dev -n", NAMESPACE)
        print(self.kubectl("get", "tasks.taskqueue.dev", f"--namespace={NAMESPACE}"))

    def _surroundings(self) -> str:
        """Return the namespace and the copy of RabbitMQ's Secret that the TaskQueue names."""
        secret = json.loads(
            self.kubectl("get", "secret/rabbitmq", "--namespace=rabbitmq", "--output=json")
        )
        labels = {"pod-security.kubernetes.io/enforce": "restricted"}
        namespace = {
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": {"name": NAMESPACE, "labels": labels},
        }
        copy = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": "rabbit", "namespace": NAMESPACE},
            "data": {"uri": secret["data"]["uri"]},
        }
        return yaml.safe_dump_all([namespace, copy])


def build_worker_image() -> None:
    """Build the worker's image from this folder, the photographs and Pillow's wheel."""
    context = OUTPUT / "image"
    shutil.rmtree(context, ignore_errors=True)
    photographs.copy_to(context / "photographs")
    shutil.copytree(download_wheels(["pillow"]), context / "wheels")
    (context / "handlers").mkdir()
    shutil.copyfile(HERE / "thumbnails.py", context / "handlers" / "thumbnails.py")
    build_image(IMAGE, HERE / "Containerfile", context)


def main() -> int:
    """Make thumbnails of photographs in the development cluster, and show it."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.thumbnails.demo",
        description="Make thumbnails of photographs in the development cluster, and show it.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--timeout",
        type=float,
        default=90.0,
        metavar="SECONDS",
        help="time that the Tasks get, from apply to the pool at zero (default: %(default)s)",
    )
    parser.add_argument(
        "--plain", action="store_true", help="lines instead of a live panel, as without a terminal"
    )
    options = parser.parse_args()
    console = Console(force_terminal=False if options.plain else None)
    try:
        code = _run(console, timeout=options.timeout)
    except (DemoError, DevclusterError, WatchEnded, photographs.MissingPhotographs) as error:
        print(f"\nERROR: {error}", file=sys.stderr)
        code = 1
    except subprocess.CalledProcessError as error:
        print(f"\nERROR: `{error.cmd[0]}` failed, see above", file=sys.stderr)
        code = 1
    except KeyboardInterrupt:
        print("\ninterrupted; the cluster stays up", file=sys.stderr)
        code = 130
    if code == 1:
        _print_where_to_look()
    return code


def _run(console: Console, *, timeout: float) -> int:
    begun = time.monotonic()
    steps = Steps(out=sys.stdout)
    cluster = open_cluster(steps=steps)
    deploy(cluster, steps=steps)
    kubectl = [str(cluster.kubectl_path), f"--kubeconfig={cluster.kubeconfig_path}"]
    demo = Demo(kubectl, steps, console)
    steps.run_all(
        {f"image {IMAGE}": build_worker_image, "end of the run before": demo.remove_last_run}
    )
    load_images(cluster, [IMAGE], steps=steps)
    demo.create_queue()
    applied = time.monotonic()
    snapshot = demo.run_tasks(seconds=timeout)
    ended = time.monotonic()
    problems = demo.collect(snapshot)
    demo.print_tasks()

    if problems:
        print(f"Not as expected, {ended - applied:.1f} s after the Tasks were applied:")
        print("\n".join(f"  - {text}" for text in problems))
    else:
        sizes = " -> ".join(map(str, snapshot.pool_sizes))
        print(f"All as expected, {ended - applied:.1f} s after the Tasks were applied.")
        print(f"Workers in the pool:   {sizes}")
    print(f"The thumbnails:        {_shown(OUTPUT / 'thumbnails')}/")
    print(f"The contact sheet:     {_shown(OUTPUT / 'contact-sheet.png')}")
    print(f"To use the cluster:    export KUBECONFIG={_shown(cluster.kubeconfig_path)}")
    if shutil.which("kubectl") is None:
        print("                       alias kubectl=$(python -m devcluster kubectl-path)")
    print("To remove the cluster: make cluster-down")
    print(f"The demo took {time.monotonic() - begun:.0f} s.")
    return 1 if problems else 0


def _files(jobs: Sequence[Job]) -> list[str]:
    """Return the files in their order, the broken one last."""
    files = dict.fromkeys(job.file for job in sorted(jobs, key=lambda job: job.broken))
    return list(files)


def _entry(file: str, snapshot: Snapshot, thumbnails: dict[str, bytes]) -> contact_sheet.Entry:
    preview, icon = Job(file, PREVIEW), Job(file, ICON)
    task = snapshot.tasks.get(preview.name)
    result, error = None, "there is no such Task"
    if task is not None and preview.name in thumbnails:
        result, error = task.status.result, ""
    elif task is not None:
        status = task.status
        error = f"{status.phase} after {status.attempts} attempts: {status.reason}"
    return contact_sheet.Entry(
        file=file,
        preview=thumbnails.get(preview.name),
        icon=thumbnails.get(icon.name),
        result=result,
        error=error,
    )


def _print_where_to_look() -> None:
    print(
        f"""
What to try (export KUBECONFIG=.devcluster/kubeconfig):
  kubectl -n {NAMESPACE} get taskqueues.taskqueue.dev,tasks.taskqueue.dev,pods
  kubectl -n {NAMESPACE} describe taskqueues.taskqueue.dev/{QUEUE}
  kubectl -n {NAMESPACE} logs deployment/{QUEUE}-worker
  kubectl -n taskqueue-system logs -l app.kubernetes.io/name=taskqueue-operator --prefix
  kubectl -n rabbitmq logs statefulset/rabbitmq""",
        file=sys.stderr,
    )


def _shown(path: Path) -> str:
    """Return a path as one types it in the checkout."""
    return str(path.relative_to(CHECKOUT))


if __name__ == "__main__":
    sys.exit(main())
