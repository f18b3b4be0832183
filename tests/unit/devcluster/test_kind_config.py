import textwrap

import pytest
import yaml

from devcluster.commands import DevclusterError
from devcluster.kind_config import parse
from devcluster.paths import KIND_CONFIG
from devcluster.subnets import MAX_WORKERS

HEAD = "kind: Cluster\napiVersion: kind.x-k8s.io/v1alpha4\n"


def refusal(text: str) -> str:
    with pytest.raises(DevclusterError) as refused:
        parse(HEAD + textwrap.dedent(text))
    return str(refused.value)


def test_the_projects_own_file_is_understood() -> None:
    config = parse(KIND_CONFIG.read_text())
    document = yaml.safe_load(KIND_CONFIG.read_text())
    assert config.feature_gates == (document.get("featureGates") or {})
    roles = [node["role"] for node in document["nodes"]]
    assert config.workers == roles.count("worker") == len(roles) - 1


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
    config = parse("# a comment\n---\n" + HEAD)
    assert (config.workers, config.feature_gates) == (0, {})


@pytest.mark.parametrize(
    ("nodes", "workers"),
    [
        ("- role: control-plane\n", 0),
        ("- role: worker\n- role: control-plane\n", 1),
        ("- role: control-plane\n" + 3 * "- role: worker\n", 3),
        ("- role: control-plane\n" + MAX_WORKERS * "- role: worker\n", MAX_WORKERS),
    ],
)
def test_workers_are_counted_wherever_they_stand(nodes: str, workers: int) -> None:
    assert parse(HEAD + "nodes:\n" + nodes).workers == workers


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nodes:\n- role: control-plane\n- role: control-plane\n", "2 of `role: control-plane`"),
        ("nodes:\n- role: worker\n", "0 of `role: control-plane`"),
        ("nodes:\n- role: control-plane\n" + 64 * "- role: worker\n", "64 of `role: worker`"),
        ("nodes:\n- role: control-plane\n- role: etcd\n", "no `role: etcd`"),
        ("nodes:\n- role: control-plane\n- worker\n", "not a mapping"),
        ("nodes: none\n", "not a list"),
        ("nodes:\n- role: control-plane\n- role: worker\n  labels: x\n", "nodes[].labels"),
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
