"""Orders survive the wire, and what is not one is refused without any other exception."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskqueue.contract.command import (
    FIRST_COMMAND,
    RESERVED_TYPES,
    WorkerCommand,
    command_message,
    decode,
    encode,
)
from taskqueue.contract.names import ContractError
from taskqueue.model.command import CommandKind

WORDS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60)

ORDERS = st.builds(
    WorkerCommand,
    kind=st.sampled_from([CommandKind.CANCEL, CommandKind.RELEASE]),
    token=WORDS,
    uid=WORDS,
) | st.builds(WorkerCommand, kind=st.just(CommandKind.DRAIN), pod=WORDS, namespace=WORDS)


@given(ORDERS)
def test_an_order_is_read_as_it_was_written(order: WorkerCommand) -> None:
    assert decode(encode(order)) == order


def test_the_words_on_the_wire_are_those_of_the_contract() -> None:
    assert orjson.loads(encode(WorkerCommand(CommandKind.CANCEL, token="k.1", uid="u"))) == {
        "order": "cancel",
        "token": "k.1",
        "uid": "u",
    }
    assert orjson.loads(encode(WorkerCommand(CommandKind.DRAIN, pod="p", namespace="n"))) == {
        "order": "drain",
        "pod": "p",
        "namespace": "n",
    }


def test_it_is_published_to_the_stream_through_the_default_exchange() -> None:
    message = command_message(WorkerCommand(CommandKind.RELEASE, token="k.1"))
    assert (message.exchange, message.key) == ("", "taskqueue.control")
    assert message.properties().content_type == "application/json"
    assert message.properties().delivery_mode == 2


@pytest.mark.parametrize(
    ("body", "named"),
    [
        (b"\xff", "JSON"),
        (b"[1]", "list"),
        (b'{"order": "dance"}', "dance"),
        (b'{"order": "cancel"}', "token"),
        (b'{"order": "release", "token": ""}', "token"),
        (b'{"order": "release", "token": 7}', "token"),
        (b'{"order": "drain", "pod": "p"}', "namespace"),
        (b'{"order": "drain", "namespace": "n"}', "pod"),
    ],
)
def test_what_is_wrong_is_named(body: bytes, named: str) -> None:
    with pytest.raises(ContractError, match=named):
        decode(body)


@given(st.binary(max_size=200) | st.dictionaries(WORDS, st.none() | WORDS).map(orjson.dumps))
def test_whatever_a_body_holds_nothing_else_is_raised(body: bytes) -> None:
    with suppress(ContractError):
        decode(body)


def test_the_first_command_says_what_the_operator_understands() -> None:
    assert decode(encode(FIRST_COMMAND)) == FIRST_COMMAND
    assert FIRST_COMMAND.is_announcement
    assert RESERVED_TYPES in FIRST_COMMAND.understands
    assert FIRST_COMMAND.installation == "default"
    assert not WorkerCommand(CommandKind.RELEASE, token="k1.x", uid="u").is_announcement


@given(WORDS)
def test_an_announcement_says_whose_it_is(installation: str) -> None:
    announcement = replace(FIRST_COMMAND, installation=installation)
    assert decode(encode(announcement)) == announcement
    assert orjson.loads(encode(announcement)) == {
        "order": "cancel",
        "token": "none",
        "uid": "none",
        "understands": ["batches", "reserved-types"],
        "installation": installation,
    }


def test_one_of_an_older_operator_is_the_default_installations() -> None:
    older = b'{"order": "cancel", "token": "none", "uid": "none", "understands": ["batches"]}'
    assert decode(older).installation == "default"


@pytest.mark.parametrize("odd", ["null", "7", "{}", '["default"]', "true", '""'])
def test_one_with_an_odd_name_is_nobodys(odd: str) -> None:
    body = f'{{"order": "cancel", "token": "none", "uid": "none", "installation": {odd}}}'
    command = decode(body.encode())
    assert command.is_announcement
    assert command.installation != "default"


@pytest.mark.parametrize("odd", ["null", '"reserved-types"', "7", '{"reserved-types": 1}'])
def test_the_first_command_of_an_older_operator_says_nothing(odd: str) -> None:
    older = '{"order": "cancel", "token": "none", "uid": "none"}'
    for body in (older, older.replace("}", f', "understands": {odd}}}')):
        command = decode(body.encode())
        assert command.is_announcement
        assert command.understands == frozenset()
