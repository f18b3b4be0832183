"""The manifests of the guide that name other tools' kinds, as far as they can be tried without."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import Kubectl

pytestmark = pytest.mark.cluster

GUIDE = Path(__file__).parents[3] / "docs" / "guides" / "gitops.md"


def blocks(kind: str) -> list[str]:
    """Return the guide's blocks of YAML with this mark after ``yaml``."""
    text = GUIDE.read_text(encoding="utf-8")
    return re.findall(rf"^```yaml {kind}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def test_the_names_of_a_release_are_changed_wherever_they_stand(
    kubectl: Kubectl, tmp_path: Path
) -> None:
    for block in blocks("kustomize"):
        first = block.splitlines()[0]
        if first.startswith("# "):
            (tmp_path / first.removeprefix("# ")).write_text(block)
    plain = re.findall(r"^```yaml\n(.*?)^```$", GUIDE.read_text(), re.MULTILINE | re.DOTALL)
    (tmp_path / "tasks.yaml").write_text("---\n".join(plain[:2]))
    made: list[Any] = list(yaml.safe_load_all(kubectl.ok("kustomize", str(tmp_path))))
    named = {one["metadata"]["name"]: one for one in made}
    assert set(named) == {"imports-v42", "migrate-2026-01-v42", "reindex-2026-01-v42"}
    assert named["reindex-2026-01-v42"]["spec"]["dependsOn"] == ["migrate-2026-01-v42"]
    assert named["reindex-2026-01-v42"]["spec"]["queue"] == "imports-v42"


def test_every_other_block_is_one_object() -> None:
    kinds = {"argocd": "Application", "flux": "Kustomization"}
    for tool, kind in kinds.items():
        found = blocks(tool)
        assert found
        for block in found:
            assert yaml.safe_load(block)["kind"] == kind
