import textwrap

import pytest
import yaml

from devcluster.commands import DevclusterError
from devcluster.kind_config import parse
from devcluster.paths import KIND_CONFIG

HEAD = "kind: Cluster\napiVersion: kind.x-k8s.io/v1alpha4\n"


def refusal(text: str) -> str:
    with pytest.raises(DevclusterError) as refused:
        parse(HEAD + textwrap.dedent(text))
    return str(refused.value)


def test_the_projects_own_file_is_understood() -> None:
    config = parse(KIND_CONFIG.read_text())
    assert config.feature_gates == (
        yaml.safe_load(KIND_CONFIG.read_text()).get("featureGates") or {}
    )


def test_name_and_feature_gates_are_read() -> None:
    config = parse(
        HEAD
        + textwrap.dedent(
            """
            name: 'trial'   # quoted
            featureGates:
              "One": true
              Two: false
            nodes:
            - role: control-plane
            """
        )
    )
    assert config.name == "trial"
    assert config.feature_gates == {"One": True, "Two": False}


def test_nothing_but_the_head_is_one_node() -> None:
    assert parse("# a comment\n---\n" + HEAD).feature_gates == {}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nodes:\n- role: control-plane\n- role: worker\n", "2 nodes"),
        ("nodes:\n- role: worker\n", "role: control-plane"),
        ("nodes:\n- role: control-plane\n  image: x\n", "nodes[].image"),
        ("networking:\n  ipFamily: ipv6\n", "`networking`"),
        ("featureGates:\n  One: maybe\n", "featureGates.One"),
        ("featureGates: {One: true}\n", "block style"),
        ("name: a\nname: b\n", "each key once"),
        ("nodes:\n  - role: control-plane\n      x: y\n", "indentation"),
        ("just words\n", "line 3"),
    ],
)
def test_what_a_native_node_cannot_honour_is_refused_by_name(text: str, said: str) -> None:
    assert said in refusal(text)


@pytest.mark.parametrize("text", ["", "kind: Pod\napiVersion: v1\n", "- a\n"])
def test_other_files_are_refused(text: str) -> None:
    with pytest.raises(DevclusterError):
        parse(text)
