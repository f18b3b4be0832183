"""The health of every state for Flux (by kstatus) and Argo CD (by its Lua) is as in the guide."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from taskqueue.api.common import GROUP
from taskqueue.model.task import Phase
from tests.conftest import Kubectl
from tests.integration.gitops import argo_health, kstatus_program
from tests.integration.gitops.states import STATES, TASK_STATES, Seen, State

pytestmark = pytest.mark.cluster

ROOT = Path(__file__).parents[3]
GUIDE = ROOT / "docs" / "guides" / "gitops.md"
ARGO_CD = ROOT / "manifests" / "argocd"


def test_the_states_cover_every_phase(seen: Seen) -> None:
    assert {seen[state.name]["status"]["phase"] for state in TASK_STATES} == {*Phase}


@pytest.mark.parametrize("state", STATES, ids=lambda state: state.name)
def test_argo_cd_health_of_a_state(seen: Seen, state: State) -> None:
    status, message = argo_health.health(seen[state.name])
    assert status == state.argo, message


def test_argo_cd_health_has_a_message(seen: Seen) -> None:
    def said(name: str) -> str:
        return argo_health.health(seen[name])[1]

    assert said("retries-exhausted") == "Failed, RetriesExhausted: why it is Failed"
    assert said("succeeded") == "Succeeded"
    assert said("suspended") == "Suspended: why it is Suspended"
    assert "not seen" in said("just-resumed")
    assert said("queue-without-secret") == "SecretNotFound: Secret x: create it"
    assert "stopPolicy is Hold" in said("queue-held")
    assert "not seen" in said("queue-new")


@pytest.mark.timeout(900)  # the program may have to be built first
def test_kstatus_of_every_state(kstatus: Path, seen: Seen) -> None:
    judged = kstatus_program.judge(kstatus, [seen[state.name] for state in STATES])
    found = {state.name: one for state, one in zip(STATES, judged, strict=True)}
    assert found == {state.name: state.kstatus for state in STATES}


def test_guide_lists_the_same_states(seen: Seen) -> None:
    """The rows of the guide's tables are the states above: phase or reason, kstatus, Argo CD."""
    rows = {
        tuple(cell.strip() for cell in line.strip("|").split("|"))
        for line in GUIDE.read_text(encoding="utf-8").splitlines()
        if line.startswith("| ")
    }
    for state in TASK_STATES:
        if seen[state.name]["status"]["observedGeneration"] == 1 and state.changed is None:
            phase = seen[state.name]["status"]["phase"]
            assert (phase, state.kstatus, state.argo) in rows, state.name


# The ConfigMap


def test_the_keys_are_those_of_our_group() -> None:
    data = yaml.safe_load(argo_health.CONFIG_MAP.read_text(encoding="utf-8"))["data"]
    parts = {key.removeprefix("resource.customizations.") for key in data}
    assert parts == {
        f"health.{GROUP}_Task",
        f"health.{GROUP}_TaskQueue",
        f"ignoreDifferences.{GROUP}_TaskQueue",
    }


def test_the_component_adds_to_what_argo_cd_has(kubectl: Kubectl, tmp_path: Path) -> None:
    config = {"apiVersion": "v1", "kind": "ConfigMap", "data": {"url": "https://argo"}}
    config["metadata"] = {"name": "argocd-cm", "namespace": "argocd"}
    (tmp_path / "argo-cd.yaml").write_text(yaml.safe_dump(config))
    component = tmp_path / "taskqueue"
    component.mkdir()
    for path in ARGO_CD.iterdir():
        (component / path.name).write_text(path.read_text(encoding="utf-8"))
    kustomization = {"resources": ["argo-cd.yaml"], "components": ["taskqueue"]}
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    made = yaml.safe_load(kubectl.ok("kustomize", str(tmp_path)))
    added = yaml.safe_load(argo_health.CONFIG_MAP.read_text(encoding="utf-8"))["data"]
    assert made["data"] == {"url": "https://argo"} | added
    assert made["metadata"]["namespace"] == "argocd"


def test_the_config_map_is_applied_beside_what_argo_cd_has(
    kubectl: Kubectl, namespace: str
) -> None:
    kubectl.ok("-n", namespace, "create", "configmap", "argocd-cm", "--from-literal=url=x")
    apply = ("apply", "--server-side", "--field-manager=taskqueue", "-f")
    kubectl.ok("-n", namespace, *apply, str(argo_health.CONFIG_MAP))
    shown = json.loads(kubectl.ok("-n", namespace, "get", "configmap", "argocd-cm", "-o", "json"))
    assert shown["data"]["url"] == "x"
    assert shown["data"][f"resource.customizations.health.{GROUP}_Task"] == argo_health.script(
        "Task"
    )
