"""The command line: usage, exit codes, and what it imports."""

import subprocess
import sys
from pathlib import Path

import pytest

import taskqueue
from taskqueue.cli.main import main

PACKAGE_ROOT = Path(taskqueue.__file__).parents[1]


@pytest.mark.parametrize(
    ("words", "listed"),
    [
        ([], ["crds", "operator", "worker", "dead-letters"]),
        ([], ["get", "describe", "why", "logs", "submit", "cancel", "retry"]),
        ([], ["hold", "drain", "resume"]),
        (["batch"], ["status", "retry-failed"]),
        (["dead-letters"], ["list", "redrive", "purge"]),
    ],
)
def test_without_a_command_the_help_lists_them_and_the_exit_code_is_2(
    words: list[str], listed: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    lines = capsys.readouterr().out.splitlines()
    for command in listed:
        assert any(line.split()[:1] == [command] for line in lines), command


@pytest.mark.parametrize(
    ("words", "defaults"),
    [
        (["crds"], ["(default: crds)"]),
        (["dead-letters", "list"], ["(default: 50)", "(default: table)", "$TASKQUEUE_BROKER_URI"]),
        (["dead-letters", "redrive"], ["(default: 1000)"]),
        (["dead-letters", "purge"], ["--yes", "-y"]),
    ],
)
def test_help_of_a_command_shows_defaults(
    words: list[str], defaults: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*words, "--help"])
    assert ended.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for default in defaults:
        assert default in text


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["nope"], "invalid choice: 'nope'"),
        (["crds", "--dir", "x"], "unrecognized arguments: --dir"),
        (["dead-letters", "list"], "NAMESPACE/QUEUE"),
        (["dead-letters", "list", "shop.q"], "give NAMESPACE/NAME, such as shop/thumbnails"),
        (["dead-letters", "list", "a/b/c"], "give NAMESPACE/NAME, such as shop/thumbnails"),
        (
            ["dead-letters", "list", "a/b", "--limit", "0"],
            "'0' is not a whole number of at least 1",
        ),
        (["dead-letters", "list", "a/b", "-o", "xml"], "'table', 'json'"),
        (["dead-letters", "redrive", "a/b", "--kubeconfig", "/none"], "no file '/none'"),
        (["dead-letters", "purge", "a/b"], "give --yes"),
    ],
)
def test_wrong_usage_exits_with_2_and_says_what_to_do(
    words: list[str], error: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    assert error in capsys.readouterr().err


def test_a_command_that_fails_exits_with_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TASKQUEUE_BROKER_URI", "amqp://nobody@127.0.0.1:1/")
    with pytest.raises(SystemExit) as ended:
        main(["dead-letters", "list", "shop/q"])
    assert ended.value.code == 1
    assert capsys.readouterr().err.startswith("Error: --broker-uri: ")


def test_help_needs_the_standard_library_only() -> None:
    heavy = ["aiohttp", "kopf", "kubernetes", "orjson", "pika", "pydantic", "rich", "yaml"]
    program = (
        "import sys\nfrom taskqueue.cli.main import main\n"
        "main(['get'])  # without kubectl it says so\n"
        "try: main(['dead-letters', 'list', '--help'])\n"
        f"except SystemExit: sys.exit(str([each for each in {heavy} if each in sys.modules]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=PACKAGE_ROOT,
        env={"PATH": "/nowhere"},
        capture_output=True,
        text=True,
    )
    assert done.stderr.splitlines()[-1] == "[]"
