"""The example of the README is the sample that `kubectl apply` gets."""

import ast
import re
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
SAMPLE: list[dict[str, Any]] = list(
    yaml.safe_load_all((ROOT / "manifests" / "samples" / "hello.yaml").read_text())
)


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def test_manifests_of_the_readme_are_those_of_the_sample() -> None:
    shown = [one for block in blocks("yaml") for one in yaml.safe_load_all(block)]
    assert shown
    assert all(one in SAMPLE for one in shown)


def test_handler_of_the_readme_is_that_of_the_sample() -> None:
    (config,) = (one for one in SAMPLE if one["kind"] == "ConfigMap")
    (handler,) = blocks("python")
    assert ast.dump(ast.parse(handler)) == ast.dump(ast.parse(config["data"]["hello.py"]))


def test_kubectl_creates_what_the_readme_prints() -> None:
    created = re.findall(r"^\S+?/(\S+) created$", README, re.MULTILINE)
    assert created == [one["metadata"]["name"] for one in SAMPLE]
