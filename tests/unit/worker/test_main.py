"""What keeps a worker from starting, and its error texts."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from taskqueue.worker import loading, main
from taskqueue.worker.loading import StartError, load
from taskqueue.worker.sdk import HandlerRegistry, decorators


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(tmp_path)
    fresh = HandlerRegistry()
    monkeypatch.setattr(main, "registry", fresh)
    monkeypatch.setattr(loading, "registry", fresh)
    monkeypatch.setattr(decorators, "registry", fresh)
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    return tmp_path


def test_a_missing_module(folder: Path) -> None:
    with pytest.raises(StartError, match=r"no module 'nowhere\.at_all'.*PYTHONPATH"):
        load(["nowhere.at_all"])


def test_a_module_that_misses_another_is_not_called_missing_itself(folder: Path) -> None:
    (folder / "broken.py").write_text("import nowhere\n")
    with pytest.raises(StartError, match=r"'broken' fails when it is imported.*nowhere") as raised:
        load(["broken"])
    assert "line 1" in str(raised.value)


def test_a_module_that_raises(folder: Path) -> None:
    (folder / "broken.py").write_text("1 / 0\n")
    with pytest.raises(StartError, match="ZeroDivisionError"):
        load(["broken"])


def test_a_module_without_handlers(folder: Path) -> None:
    (folder / "empty.py").write_text("")
    with pytest.raises(StartError, match="no handler is registered by empty: mark functions"):
        load(["empty"])


def test_a_payload_that_cannot_be_checked(folder: Path) -> None:
    (folder / "shop.py").write_text(
        "from taskqueue import task\n@task\ndef pack(order: 'Ordre'): ...\n"
    )
    with pytest.raises(StartError, match="'pack': the annotation 'Ordre' of its payload"):
        load(["shop"])


def test_settings_that_are_missing_end_it_with_one_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main.main(["anything"], {}) == 1
    assert capsys.readouterr().err == (
        "taskqueue worker: TASKQUEUE_NAMESPACE is not set: give the namespace of the TaskQueue\n"
    )
