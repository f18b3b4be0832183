"""`kubectl taskqueue batch`: what is shown of a TaskBatch, and what is retried."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from taskqueue.cli import batches
from taskqueue.cli.errors import CommandFailed
from taskqueue.cli.kubectl import Kubectl
from taskqueue.cli.main import main
from taskqueue.controller.batches.index_set import IndexSet


@dataclass
class FakeKubectl:
    """Has a few objects, and keeps what is created."""

    stored: dict[str, dict[str, Any]]
    created: list[dict[str, Any]] = field(default_factory=list)

    def objects(self, kind: str, *names: str) -> list[dict[str, Any]]:
        return [self.stored[name] for name in names]

    def create(self, body: dict[str, Any]) -> dict[str, Any]:
        self.created.append(body)
        name = body["metadata"]["generateName"] + "x"
        return {**body, "metadata": {**body["metadata"], "name": name}}


def batch(spec: dict[str, Any], *, total: int, failed: list[int], **status: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": "b", "namespace": "shop"},
        "spec": {"queue": "q", "template": {"spec": {"handler": "h"}}, "cancel": True, **spec},
        "status": {
            "phase": "Failed",
            "total": total,
            "failed": len(failed),
            "failedItems": IndexSet(total, failed).encode(),
            **status,
        },
    }


def retry(monkeypatch: pytest.MonkeyPatch, *objects: dict[str, Any]) -> list[dict[str, Any]]:
    """Run the command, and return what it creates."""
    fake = FakeKubectl({one["metadata"]["name"]: one for one in objects})
    monkeypatch.setattr(batches, "api_of", lambda _: cast(Kubectl, fake))
    assert main(["batch", "retry-failed", "b"]) == 0
    return fake.created


def test_failed_items_of_a_count_are_items_of_the_new_batch(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (made,) = retry(monkeypatch, batch({"count": 9}, total=9, failed=[2, 7]))
    assert made["spec"] == {
        "queue": "q",
        "template": {"spec": {"handler": "h"}},
        "items": [{"index": 2}, {"index": 7}],
    }
    assert made["metadata"]["annotations"] == {batches.RETRY_OF: "b"}
    assert "with 2 items" in capsys.readouterr().out


def test_failed_items_of_the_object_keep_their_payloads(monkeypatch: pytest.MonkeyPatch) -> None:
    items = [{"n": n} for n in range(4)]
    (made,) = retry(monkeypatch, batch({"items": items}, total=4, failed=[0, 3]))
    assert made["spec"]["items"] == [{"n": 0}, {"n": 3}]


def test_failed_items_of_a_config_map_are_its_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    source = {"itemsFrom": {"configMapKeyRef": {"name": "c", "key": "k"}}}
    lines = {"metadata": {"name": "c"}, "data": {"k": '{"n": 0}\n\n {"n": 1}\n'}}
    (made,) = retry(monkeypatch, batch(source, total=2, failed=[1]), lines)
    assert made["spec"]["items"] == [{"n": 1}]
    assert "itemsFrom" not in made["spec"]


def test_many_failed_items_go_into_a_config_map(monkeypatch: pytest.MonkeyPatch) -> None:
    every = list(range(3000))
    kept, made = retry(monkeypatch, batch({"count": 3000}, total=3000, failed=every))
    assert kept["kind"] == "ConfigMap"
    (key,) = kept["data"]
    assert len(kept["data"][key].split("\n")) == 3000
    reference = {"name": "b-failed-x", "key": key}
    assert made["spec"]["itemsFrom"] == {"configMapKeyRef": reference}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"phase": "Running"}, "has not ended"),
        ({"failed": 0}, "nothing to retry"),
        ({"failedItems": ""}, "too many and too scattered"),
    ],
)
def test_what_cannot_be_retried_is_said(change: dict[str, Any], says: str) -> None:
    one = batch({"count": 5}, total=5, failed=[1])
    one["status"] |= change
    with pytest.raises(CommandFailed, match=says):
        batches.failed_indexes(one)


def test_items_that_were_changed_are_not_retried(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    changed = batch({"items": [{}]}, total=2, failed=[1])
    fake = FakeKubectl({"b": changed})
    monkeypatch.setattr(batches, "api_of", lambda _: cast(Kubectl, fake))
    assert main(["batch", "retry-failed", "b"]) == 1
    assert "there are 1 now" in capsys.readouterr().err


def test_the_status_shows_counts_and_errors() -> None:
    error = {"type": "Boom", "count": 2, "indexes": [1, 2], "message": "\x1b[31mred"}
    one = batch(
        {"count": 9},
        total=9,
        failed=[1, 2],
        reason="ItemsFailed",
        succeeded=7,
        failedIndexes="1-2",
        failedIndexesTruncated=True,
        percent=100,
        errors=[error],
    )
    lines = list(batches.status_lines(one))
    assert lines[0] == "Phase:      Failed (ItemsFailed)"
    assert "Succeeded:  7" in lines
    assert "Failed at:  1-2 and more" in lines
    assert lines[-1] == r"  2 x Boom (such as 1, 2): \x1b[31mred"
    assert next(batches.status_lines({"spec": {}})) == "Phase:      Pending"
