"""Payloads as models: which annotations count, what is refused and in which words."""

from __future__ import annotations

import dataclasses
import datetime
import functools
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import pydantic
import pytest

from taskqueue import Context, InvalidPayload
from taskqueue.worker.outcome import raised
from taskqueue.worker.sdk import Handler, HandlerRegistry

if TYPE_CHECKING:
    from collections.abc import MutableMapping
    from pathlib import PurePath as Unreachable


class Size(pydantic.BaseModel):
    width: int = pydantic.Field(gt=0)
    height: int | None = None


class Resize(pydantic.BaseModel):
    url: str
    sizes: list[Size] = []
    due: datetime.datetime | None = None


@dataclass
class Mail:
    to: str
    copies: list[str] = field(default_factory=list)
    size: Size | None = None


class Strict(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(strict=True)

    day: datetime.date
    pair: tuple[int, int]


class ByName(pydantic.BaseModel):
    kind: Literal["name"]


class ByNumber(pydantic.BaseModel):
    kind: Literal["number"]


def model(payload: Resize) -> Any:
    return payload


def quoted(payload: "Resize") -> Any:  # noqa: UP037
    return payload


def model_and_context(payload: Resize, ctx: Context) -> Any:
    return payload


def stdlib(payload: Mail) -> Any:
    return payload


def union(payload: Annotated[ByName | ByNumber, pydantic.Field(discriminator="kind")]) -> Any:
    return payload


def strict(payload: Strict) -> Any:
    return payload


def late(payload: Late) -> Any:
    return payload


async def asynchronous(payload: Resize) -> Any:
    return payload


class Callback:
    def __call__(self, payload: Resize) -> Any:
        return payload


@dataclass
class Late:
    number: int


def unannotated(payload):  # type: ignore[no-untyped-def]
    return payload


def plain(payload: dict[str, Any]) -> Any:
    return payload


def mapping(payload: Mapping[str, Any]) -> Any:
    return payload


def known_to_type_checkers(payload: MutableMapping[str, Any]) -> Any:
    return payload


def text(payload: str) -> Any:
    return payload


def unreachable(payload: Unreachable) -> Any:
    return payload


def made(function: Callable[..., Any]) -> Handler:
    return HandlerRegistry().register(function, name="resize")


def call(function: Callable[..., Any], payload: dict[str, Any]) -> Any:
    context = Context(
        task="shop/a", uid="u", queue="q", attempt=1, max_attempts=3, timeout_seconds=30
    )
    return made(function)(payload, context)


RESIZE = {"url": "http://x", "sizes": [{"width": "3"}], "due": "2026-01-02T03:04:05Z"}
RESIZED = Resize(
    url="http://x",
    sizes=[Size(width=3)],
    due=datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.UTC),
)


@pytest.mark.parametrize(
    ("function", "payload", "expected"),
    [
        (model, RESIZE, RESIZED),
        (model_and_context, RESIZE, RESIZED),
        (Callback(), RESIZE, RESIZED),
        (functools.partial(model_and_context), RESIZE, RESIZED),
        (stdlib, {"to": "a", "size": {"width": 1}}, Mail("a", size=Size(width=1))),
        (union, {"kind": "number"}, ByNumber(kind="number")),
        (late, {"number": 4}, Late(4)),
    ],
)
def test_a_handler_gets_the_model_it_asks_for(
    function: Callable[..., Any], payload: dict[str, Any], expected: Any
) -> None:
    assert call(function, payload) == expected


async def test_an_async_one_too() -> None:
    assert await call(asynchronous, RESIZE) == RESIZED


def test_a_strict_model_takes_what_json_can_say() -> None:
    taken = call(strict, {"day": "2026-01-02", "pair": [1, 2]})
    assert taken == Strict(day=datetime.date(2026, 1, 2), pair=(1, 2))
    with pytest.raises(InvalidPayload, match=r"pair\.0"):
        call(strict, {"day": "2026-01-02", "pair": ["1", 2]})


@pytest.mark.parametrize("function", [unannotated, plain, mapping, known_to_type_checkers, text])
def test_other_annotations_get_the_dict_untouched(function: Callable[..., Any]) -> None:
    payload = {"a": object()}
    assert call(function, payload) is payload
    made(function)


def test_every_wrong_field_is_named_and_nothing_of_the_payload_is_shown() -> None:
    with pytest.raises(InvalidPayload) as found:
        call(model, {"sizes": [{"width": 1}, {"width": "secret"}, {"width": 0}]})
    assert found.value.fields == ("url", "sizes.1.width", "sizes.2.width")
    assert str(found.value) == (
        "the payload is not what handler 'resize' takes: url: Field required; "
        "sizes.1.width: Input should be a valid integer, unable to parse string as an integer; "
        "sizes.2.width: Input should be greater than 0"
    )


def test_an_annotation_in_quotes_is_one_as_well() -> None:
    assert call(quoted, {"url": "x"}) == Resize(url="x")


def test_the_task_is_told_and_not_tried_again() -> None:
    with pytest.raises(InvalidPayload) as found:
        call(stdlib, {})
    error = raised(found.value, 0).error
    assert error is not None
    assert (error.type, error.retryable) == ("InvalidPayload", False)
    assert "to: Field required" in error.message


def test_the_error_text_is_bounded() -> None:
    @dataclass
    class Wide:
        limits: dict[str, int]

    payload = {"limits": {f"{n}-{'x' * 5000}": "no number" for n in range(500)}}
    handler = made(_taking(Wide))
    with pytest.raises(InvalidPayload, match="and 492 more") as found:
        handler(payload, None)  # type: ignore[arg-type]
    assert len(str(found.value)) < 2000
    assert len(found.value.fields) == 8


def _taking(kind: Any) -> Callable[..., Any]:
    def handler(payload: Any) -> Any:
        return payload

    handler.__annotations__["payload"] = kind
    return handler


def nested(levels: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for _ in range(levels):
        found = {"a": found}
    return found


@pytest.mark.parametrize(
    "payload", [nested(1000), nested(100_000), {"url": "\ud800"}], ids=["deep", "deeper", "text"]
)
def test_what_cannot_be_read_at_all_is_an_invalid_payload(payload: dict[str, Any]) -> None:
    with pytest.raises(InvalidPayload, match="handler 'resize' takes"):
        call(model, payload)


def test_an_annotation_that_cannot_be_found_is_a_mistake_told_before_any_message() -> None:
    registry = HandlerRegistry()
    registry.register(unreachable)
    with pytest.raises(TypeError, match=r"'unreachable': .*'Unreachable'.* TYPE_CHECKING"):
        registry.prepare()


def test_a_model_pydantic_cannot_check_is_one_as_well() -> None:
    @dataclass
    class Holder:
        socket: HandlerRegistry

    registry = HandlerRegistry()
    registry.register(_taking(Holder), name="holder")
    with pytest.raises(TypeError, match="'holder': its payload cannot be checked as Holder"):
        registry.prepare()


def test_the_adapter_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made_of: list[Any] = []
    original = pydantic.TypeAdapter

    def counting(annotation: Any) -> Any:
        made_of.append(annotation)
        return original(annotation)

    monkeypatch.setattr(pydantic, "TypeAdapter", counting)
    handler = made(stdlib)
    for _ in range(3):
        handler({"to": "a"}, None)  # type: ignore[arg-type]
    assert made_of == [Mail]


def test_pydantic_is_imported_by_those_who_use_it_only(tmp_path: Path) -> None:
    (tmp_path / "handlers.py").write_text(
        "from dataclasses import dataclass\n"
        "from taskqueue import task\n"
        "@task\n"
        "def plain(payload: dict): ...\n"
        "@dataclass\n"
        "class Mail:\n"
        "    to: str\n"
        "@task\n"
        "def mail(payload: Mail): ...\n"
    )
    code = (
        "import sys, handlers\n"
        "from taskqueue.worker.sdk import registry\n"
        "registry['plain']({}, None)\n"
        "print('pydantic' in sys.modules)\n"
        "registry.prepare()\n"
        "print('pydantic' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert done.stdout.split() == ["False", "True"]


def test_a_dataclass_stays_one() -> None:
    assert dataclasses.asdict(call(stdlib, {"to": "a"})) == {"to": "a", "copies": [], "size": None}
