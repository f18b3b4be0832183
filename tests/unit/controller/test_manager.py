"""The settings of the operator."""

import pytest

from taskqueue.controller.manager import OperatorSettings


@pytest.mark.parametrize(
    ("value", "installation"), [("", "default"), ("default", "default"), ("team-a", "team-a")]
)
def test_the_installation_comes_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, value: str, installation: str
) -> None:
    monkeypatch.setenv("TASKQUEUE_INSTALLATION", value)
    assert OperatorSettings.from_environment().installation == installation


@pytest.mark.parametrize("value", ["Team", "a.b", "-a", "a-", "a b", "a\n", "#", "x" * 64])
def test_an_installation_is_a_dns_label(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("TASKQUEUE_INSTALLATION", value)
    with pytest.raises(ValueError, match=r"TASKQUEUE_INSTALLATION: .* is not a DNS label"):
        OperatorSettings.from_environment()


@pytest.mark.parametrize(
    ("value", "namespaces"),
    [
        ("", ()),
        (" ", ()),
        ("a", ("a",)),
        ("a, b,,a", ("a", "b")),
        ("team-a,team-b,", ("team-a", "team-b")),
    ],
)
def test_the_namespaces_come_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, value: str, namespaces: tuple[str, ...]
) -> None:
    monkeypatch.setenv("TASKQUEUE_WATCH_NAMESPACES", value)
    assert OperatorSettings.from_environment().scope.namespaces == namespaces


@pytest.mark.parametrize("value", ["Team", "a.b", "a b", "*", "a/b", "a,x" + 63 * "x"])
def test_a_namespace_is_a_name(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("TASKQUEUE_WATCH_NAMESPACES", value)
    with pytest.raises(
        ValueError, match=r"TASKQUEUE_WATCH_NAMESPACES: .* is not the name of a namespace"
    ):
        OperatorSettings.from_environment()
