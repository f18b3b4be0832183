"""TaskQueues and Tasks that are created from a copy of others, as docs/backup.md has it."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent

import pytest

from devcluster import packages
from devcluster.paths import CHECKOUT
from tests.conftest import Cluster, Kubectl
from tests.e2e.api import Api, Body
from tests.e2e.harness import Harness
from tests.e2e.operator_process import OperatorProcess, OperatorSources, own_group
from tests.integration.admission import SUCCEEDED

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

PAGE = CHECKOUT / "docs" / "backup.md"
_BLOCK = re.compile(r"^ *```(sh|jq)\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)


def test_a_copy_of_a_taskqueue_is_served_whatever_its_annotations_say(harness: Harness) -> None:
    """Its annotations say that it is known already."""
    harness.queue(workers=None)
    harness.ready()

    def annotations() -> dict[str, str]:
        metadata = harness.api.get(harness.path("taskqueues", "q"))["metadata"]
        found: dict[str, str] = metadata.get("annotations", {})
        return found

    harness.until(lambda: "taskqueue.dev/last-handled-configuration" in annotations(), what="known")
    body = harness.api.get(harness.path("taskqueues", "q"))
    body["metadata"] = {"name": "copy", "annotations": annotations()}
    harness.api.request("POST", harness.path("taskqueues"), body)
    harness.ready("copy")


class Page:
    """Runs what the page says, for a namespace and an API group of the test's own."""

    def __init__(self, kubectl: Kubectl, namespace: str, group: str, folder: Path) -> None:
        self._kubectl = kubectl
        self._namespace = namespace
        self._group = group
        self._folder = folder
        found = _BLOCK.findall(PAGE.read_text())
        blocks = [(language, dedent(text)) for language, text in found]
        (filter_,) = (text for language, text in blocks if language == "jq")
        (folder / "new.jq").write_text(filter_)
        #: To save and to restore; the operator is stopped and started by the test.
        self.save, self.restore = (
            text for language, text in blocks if language == "sh" and "taskqueue-system" not in text
        )

    def run(self, text: str) -> None:
        """Run a block of shell commands; each must succeed."""
        text = text.replace("taskqueue.dev", self._group)
        text = re.sub(r"(-n|namespace) shop", rf"\1 {self._namespace}", text)
        kubectl = f'kubectl() {{ {shlex.join(self._kubectl.command())} "$@"; }}'
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", f"{kubectl}\n{text}"],
            cwd=self._folder,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{text}\n{done.stderr}"


@pytest.fixture
def group(kubectl: Kubectl) -> Iterator[str]:
    with own_group(kubectl, "restore") as group:
        yield group


@pytest.fixture
def namespace(kubectl: Kubectl, group: str) -> Iterator[str]:
    name = group.partition(".")[0]
    kubectl.ok("create", "namespace", name)
    yield name
    kubectl.ok("delete", "namespace", name, "--wait=false")


@pytest.fixture
def start_operator(
    cluster: Cluster, harness: Harness, group: str, tmp_path: Path
) -> Callable[[], OperatorProcess]:
    """Starts an operator that knows of this test's resources only; the test stops it."""
    sources = OperatorSources(CHECKOUT, tmp_path / "sources", group)

    def start() -> OperatorProcess:
        return OperatorProcess(
            sources,
            kubeconfig=cluster.kubeconfig,
            namespace=harness.namespace,
            log=tmp_path / "log",
        )

    return start


@pytest.fixture
def jq() -> None:
    """The page's commands use it."""
    packages.install({"jq": "jq"})


def test_finished_tasks_do_not_run_again_when_a_namespace_is_restored_as_the_page_says(
    api: Api,
    kubectl: Kubectl,
    harness: Harness,
    group: str,
    namespace: str,
    start_operator: Callable[[], OperatorProcess],
    jq: None,
    tmp_path: Path,
) -> None:
    path = f"/apis/{group}/v1alpha1/namespaces/{namespace}"

    def create(kind: str, name: str, **spec: object) -> None:
        body = {"apiVersion": f"{group}/v1alpha1", "kind": kind, "metadata": {"name": name}}
        api.request("POST", f"{path}/{kind.lower()}s", {**body, "spec": spec})

    def tasks() -> dict[str, Body]:
        return {one["metadata"]["name"]: one for one in api.get(f"{path}/tasks")["items"]}

    def phases() -> dict[str, tuple[str, str]]:
        found = {name: one["status"] for name, one in tasks().items()}
        return {name: (one["phase"], one.get("reason", "")) for name, one in found.items()}

    operator = start_operator()
    create("TaskQueue", "q", broker={"connectionSecret": {"name": "none"}})
    common = {"queue": "q", "handler": "echo"}
    create("Task", "done", **common)
    api.patch(f"{path}/tasks/done/status", {"status": SUCCEEDED | {"result": {"page": 7}}})
    create("Task", "cancelled", **common, cancel=True)
    create("Task", "later", **common, startAfter="2099-01-01T00:00:00Z")
    create("Task", "suspended", **common, suspend=True)
    expected = {
        "done": ("Succeeded", ""),
        "cancelled": ("Cancelled", "Cancelled"),
        "later": ("Scheduled", "StartAfter"),
        "suspended": ("Suspended", "Suspended"),
    }
    harness.until(lambda: phases() == expected, what="all as they will stay")
    page = Page(kubectl, namespace, group, tmp_path)
    page.run(page.save)
    before = tasks()
    kubectl.ok("delete", "namespace", namespace, "--timeout=60s")
    operator.stop()

    page.run(page.restore)
    operator = start_operator()
    try:
        served = f"{path}/taskqueues/q"
        harness.until(lambda: "conditions" in api.get(served).get("status", {}), what="served")
        after = tasks()
        assert phases() == expected
        for name in ("done", "cancelled"):
            assert after[name]["metadata"]["uid"] != before[name]["metadata"]["uid"]
            assert after[name]["status"] == before[name]["status"]
    finally:
        operator.stop()
