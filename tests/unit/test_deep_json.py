"""JSON nested a million deep is refused before a parser sees it, wherever others can send some."""

from __future__ import annotations

import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NoReturn

import orjson
import pytest

from taskqueue import exact_json
from taskqueue.amqp.properties import BasicProperties
from taskqueue.contract import command, heartbeat, outcome
from taskqueue.contract.names import DIRECT_EXCHANGE, WORK_EXCHANGE, ContractError
from taskqueue.contract.work import parse_work
from taskqueue.controller.tasks.config_maps import ConfigMap
from taskqueue.controller.tasks.payloads import _object, _UnresolvedError
from taskqueue.model.task import PayloadSource
from taskqueue.worker.attempt_events import payload_of, work_attempt
from taskqueue.worker.checkpoints import TextCheckpoint
from taskqueue.worker.executors import child_protocol
from taskqueue.worker.executors.http import HttpExecution
from taskqueue.worker.outcome import parsed_result
from tests.unit.worker.children import attempt
from tests.unit.worker.fakes import work

LEVELS = 1_000_000

DOCUMENTS = {
    "lists": b"[" * LEVELS + b"]" * LEVELS,
    "objects": b'{"a":' * LEVELS + b"1" + b"}" * LEVELS,
    "mixed": b'{"a":[' * LEVELS + b"1" + b"]}" * LEVELS,
    "spaced": b'{"a": [ 1, {"b":\n' * (LEVELS // 3) + b"1" + b"} ] }" * (LEVELS // 3),
    "open": b'{"a":[' * LEVELS,
    "open in a text": b'{"a":[' * LEVELS + b'"',
}


class ParsedError(BaseException):
    """A parser was called. Nobody catches it by accident."""


def _parse(*_: Any, **__: Any) -> NoReturn:
    raise ParsedError


Intake = Callable[[bytes], object]


def _work_body(text: bytes) -> object:
    message = work(body=text)
    return payload_of(parse_work(message.properties(), text, exchange=WORK_EXCHANGE))


def _direct_body(text: bytes) -> object:
    message = parse_work(BasicProperties(), text, exchange=DIRECT_EXCHANGE)
    payload = payload_of(message)
    if payload == {"text": text.decode()}:
        raise ContractError("read as text, as what is not JSON is")
    return payload


def _config_map(text: bytes) -> object:
    source = PayloadSource("cm", "k")
    return _object(text.decode(), "shop", source, "spec.payloadFrom[0]", ConfigMap("1"))


def _http_answer(text: bytes) -> object:
    execution = SimpleNamespace(_attempt=SimpleNamespace(handler="h"), _seconds=0.0)
    if not text.startswith(b"{"):
        raise ValueError("no object is no result, whatever it is")
    return _refused(HttpExecution._success(execution, text))  # type: ignore[arg-type]


def _program(text: bytes) -> object:
    return _refused(parsed_result(text, 0.0, handler="h", where="in its last line"))


def _written_checkpoint(text: bytes) -> object:
    if reason := TextCheckpoint(attempt()).save(text):
        raise ValueError(reason)
    return text


def _refused(result: Any) -> object:
    if result.error is not None:
        raise ValueError(result.error.message)
    return result


INTAKES: dict[str, Intake] = {
    "outcome": outcome.decode,
    "heartbeat": heartbeat.decode,
    "command": command.decode,
    "work message": _work_body,
    "checkpoint in a header": lambda text: work_attempt(work(checkpoint=text), {}),
    "direct message": _direct_body,
    "ConfigMap": _config_map,
    "HTTP answer": _http_answer,
    "result of a program": _program,
    "broker's management API": exact_json.decode,
    "outcome of a child": child_protocol.decode_outcome,
    "progress of a child": child_protocol.decode_progress,
    "checkpoint of a child": child_protocol.decode_checkpoint,
    "checkpoint of a program or service": _written_checkpoint,
}


@pytest.mark.parametrize("intake", INTAKES)
@pytest.mark.parametrize("document", DOCUMENTS)
def test_it_is_refused_unparsed(
    intake: str, document: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(orjson, "loads", _parse)
    monkeypatch.setattr(json, "loads", _parse)
    with pytest.raises((ValueError, _UnresolvedError, child_protocol.ProtocolError)):
        INTAKES[intake](DOCUMENTS[document])


@pytest.mark.parametrize("document", DOCUMENTS)
def test_nobody_is_held_to_have_sent_such_an_outcome(document: str) -> None:
    assert outcome.claimed_attempt(DOCUMENTS[document]) is None
    assert outcome.claimed_attempt(DOCUMENTS[document][:60_000]) is None
