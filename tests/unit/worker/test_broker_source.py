"""A worker knows its broker as the Secret and its pod template have it now."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskqueue.amqp.parameters import BrokerConfigurationError, BrokerParameters
from taskqueue.model.broker_environment import BROKER_VARIABLES
from taskqueue.worker.broker_source import BrokerSource

#: Values of each key, good ones and bad ones; no key: it is not in the Secret.
VALUES = {
    "uri": ["amqp://me:new@rabbit/tasks", "amqps://rabbit", "http://rabbit", "\n"],
    "host": ["rabbit", "other"],
    "port": ["5673", "many"],
    "username": ["me", "you"],
    "password": ["old", "new", ""],
    "vhost": ["/", "tasks"],
    "tls": ["true", "false", "perhaps"],
    "ca.crt": ["authority"],
    "tls.crt": ["certificate"],
    "tls.key": ["key"],
}
SECRETS = st.fixed_dictionaries({}, optional={k: st.sampled_from(v) for k, v in VALUES.items()})


def variables(secret: dict[str, str]) -> dict[str, str]:
    return {name: secret[key] for name, key in BROKER_VARIABLES.items() if key in secret}


def put(directory: Path, secret: dict[str, str], *, but: Collection[str] = ()) -> None:
    """Have the directory as the kubelet has it: without the keys that the template sets itself."""
    for key in VALUES:
        (directory / key).unlink(missing_ok=True)
        if key in secret and key not in but:
            (directory / key).write_text(secret[key])


def outcome(read: Callable[[], BrokerParameters]) -> BrokerParameters | str:
    try:
        return read()
    except BrokerConfigurationError:
        return "refused"


def test_every_key_is_tried() -> None:
    assert list(VALUES) == list(BROKER_VARIABLES.values())


@given(own=SECRETS, secrets=st.lists(SECRETS, min_size=1, max_size=5))
def test_a_pod_knows_the_secret_of_the_moment_and_what_its_template_sets(
    own: dict[str, str], secrets: list[dict[str, str]]
) -> None:
    with TemporaryDirectory() as name:
        directory = Path(name)
        # The environment stays as it was when the container started.
        environment = {**variables(secrets[0]), **variables(own)}
        source = BrokerSource(environment, name)
        for secret in secrets:
            put(directory, secret, but=own)
            expected = outcome(partial(BrokerParameters.from_mapping, {**secret, **own}))
            assert outcome(source.read) == expected


@given(own=SECRETS)
def test_without_files_the_environment_counts(own: dict[str, str]) -> None:
    expected = outcome(partial(BrokerParameters.from_mapping, own))
    for directory in ("", "/nowhere"):
        assert outcome(BrokerSource(variables(own), directory).read) == expected


LEAST = {"host": "rabbit", "username": "me", "password": "hush"}


@pytest.mark.parametrize(
    ("key", "content", "message"),
    [
        ("password", b"", "key password is missing"),
        ("port", b"many", "key port must be a number"),
        ("host", b"\xff", "host is not UTF-8 text"),
    ],
)
def test_an_error_names_the_key_and_where_it_is(
    tmp_path: Path, key: str, content: bytes, message: str
) -> None:
    put(tmp_path, LEAST)
    (tmp_path / key).write_bytes(content)
    with pytest.raises(BrokerConfigurationError, match=message) as raised:
        BrokerSource({}, str(tmp_path)).read()
    assert str(tmp_path) in str(raised.value)
    assert "hush" not in str(raised.value)


def test_a_file_that_cannot_be_read_is_an_error_and_not_a_missing_key(tmp_path: Path) -> None:
    (tmp_path / "password").mkdir()
    with pytest.raises(BrokerConfigurationError, match=r"password cannot be read: .*: let the"):
        BrokerSource(variables(LEAST), str(tmp_path)).read()


def test_only_files_can_end_an_error(tmp_path: Path) -> None:
    error = BrokerConfigurationError("key port must be a number")
    with pytest.raises(BrokerConfigurationError):
        BrokerSource(variables(LEAST)).explain_or_raise(error)
    told = BrokerSource(variables(LEAST), str(tmp_path)).explain_or_raise(error)
    assert "key port must be a number: correct the Secret" in told
