"""What makes an image, a program or a layer count as changed."""

import io
import json
import os
import tarfile
from pathlib import Path

import pytest

from devcluster import archive, oci_layout
from devcluster.builders import canonical
from devcluster.images import parents
from devcluster.paths import digest, tree_digest


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_where_one_part_ends_counts() -> None:
    assert digest(["ab", "c"]) != digest(["a", "bc"])
    assert digest(["a"]) != digest(["a", ""])
    assert digest(["a"]) == digest([b"a"])


def test_the_same_files_have_the_same_hash_wherever_and_whenever(tmp_path: Path) -> None:
    files = {"a": "1", "b/c": "2"}
    one, two = tree(tmp_path / "one", files), tree(tmp_path / "two", files)
    os.utime(two / "a", (1, 1))
    assert tree_digest(one) == tree_digest(two)


@pytest.mark.parametrize(
    "change", [{"a": "2"}, {"b/c": ""}, {"new": ""}], ids=["content", "nested", "file"]
)
def test_a_changed_file_changes_the_hash(tmp_path: Path, change: dict[str, str]) -> None:
    root = tree(tmp_path, {"a": "1", "b/c": "2"})
    before = tree_digest(root)
    tree(root, change)
    assert tree_digest(root) != before


def test_the_executable_bit_and_the_name_count(tmp_path: Path) -> None:
    root = tree(tmp_path, {"a": "1"})
    before = tree_digest(root)
    (root / "a").chmod(0o755)
    executable = tree_digest(root)
    (root / "a").rename(root / "b")
    assert len({before, executable, tree_digest(root)}) == 3


def test_compiled_python_does_not_count(tmp_path: Path) -> None:
    root = tree(tmp_path, {"a.py": "1"})
    before = tree_digest(root)
    tree(root, {"__pycache__/a.pyc": "1"})
    assert tree_digest(root) == before


@pytest.mark.parametrize(
    ("tag", "name"),
    [
        ("taskqueue-operator:dev", "docker.io/library/taskqueue-operator:dev"),
        ("me/tool:1", "docker.io/me/tool:1"),
        ("localhost/tool:1", "localhost/tool:1"),
        ("host.example/me/tool:1", "host.example/me/tool:1"),
        ("host:5000/tool:1", "host:5000/tool:1"),
    ],
)
def test_images_are_named_as_manifests_find_them(tag: str, name: str) -> None:
    assert canonical(tag) == name


def test_an_image_stands_on_what_its_from_lines_name() -> None:
    text = (
        "ARG BASE_IMAGE=python:3.13-slim\n"
        "FROM ${BASE_IMAGE} AS wheels\nRUN x\n"
        "FROM scratch AS empty\n"
        "from $BASE_IMAGE\nCOPY --from=wheels /a /b\n"
        "FROM wheels\n"
    )
    assert parents(text, {}) == ["python:3.13-slim"]
    assert parents(text, {"BASE_IMAGE": "mine:1"}) == ["mine:1"]


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    """Two images that share a layer, as an export leaves them."""
    blobs = tmp_path / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    entries = []
    for image in ("one", "two"):
        for blob in (f"config-{image}", "base", f"code-{image}"):
            (blobs / blob).write_text(blob)
        layers = [{"digest": "sha256:base"}, {"digest": f"sha256:code-{image}"}]
        manifest = {"config": {"digest": f"sha256:config-{image}"}, "layers": layers}
        (blobs / image).write_text(json.dumps(manifest))
        annotations = {"org.opencontainers.image.ref.name": f"docker.io/library/{image}:dev"}
        entries.append({"digest": f"sha256:{image}", "annotations": annotations})
    (tmp_path / "index.json").write_text(json.dumps({"manifests": entries}))
    return tmp_path


def sent(image: oci_layout.LayoutImage, known: set[str]) -> tuple[list[str], dict[str, str]]:
    out = io.BytesIO()
    image.write(out, known=known)
    out.seek(0)
    with tarfile.open(fileobj=out) as tar:
        index = tar.extractfile("index.json")
        assert index
        annotations: dict[str, str] = json.load(index)["manifests"][0]["annotations"]
        blobs = [name for name in tar.getnames() if name.startswith("blobs/")]
    return sorted(name.rpartition("/")[2] for name in blobs), annotations


def test_a_node_without_images_is_sent_the_whole(layout: Path) -> None:
    image = oci_layout.find(layout, "docker.io/library/one:dev")
    assert image
    blobs, annotations = sent(image, set())
    assert blobs == ["base", "code-one", "config-one", "one"]
    assert annotations == {"io.containerd.image.name": "docker.io/library/one:dev"}


def test_a_node_that_has_a_layer_is_not_sent_it_again(layout: Path) -> None:
    image = oci_layout.find(layout, "docker.io/library/two:dev")
    assert image
    assert sent(image, {"sha256:base"})[0] == ["code-two", "config-two", "two"]


def test_an_image_that_is_not_there_is_none(layout: Path, tmp_path: Path) -> None:
    assert oci_layout.find(layout, "docker.io/library/three:dev") is None
    assert oci_layout.find(tmp_path / "nowhere", "docker.io/library/one:dev") is None


def test_only_blobs_that_no_image_has_are_deleted(layout: Path) -> None:
    (layout / "blobs" / "sha256" / "old").write_text("old")
    oci_layout.prune(layout)
    left = {blob.name for blob in (layout / "blobs" / "sha256").iterdir()}
    assert left == {"one", "two", "base", "code-one", "code-two", "config-one", "config-two"}


def test_an_archive_is_the_same_image_whenever_it_is_written(tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_bytes(b"binary")
    layer = tmp_path / "layer.tar"
    archive.write_single_file_layer(layer, program, "/pause")
    with tarfile.open(layer) as tar:
        assert tar.getmember("pause").mode == 0o755
    names = []
    for name in ("one.tar", "two.tar"):
        archive.write_image(tmp_path / name, "x/pause:1", layer, {"User": "65535"})
        with tarfile.open(tmp_path / name) as tar:
            names.append(tar.getnames())
            manifest = tar.extractfile("manifest.json")
            assert manifest
            assert json.load(manifest)[0]["RepoTags"] == ["x/pause:1"]
    assert names[0] == names[1]
