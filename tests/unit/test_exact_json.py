"""JSON is exact or refused with its place: the same by every way in and out."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import enum
import functools
import json
import math
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import orjson
import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taskqueue import testing
from taskqueue.client.spec import payload_object
from taskqueue.direct.async_producer import _encoded
from taskqueue.exact_json import _upper_levels, check_levels, decode, decode_outline, encode
from taskqueue.jsonable import NotJsonError, plain
from taskqueue.limits import JSON_DEPTH

INTEGERS = st.integers(-(2**63), 2**63 - 1) | st.sampled_from(
    [2**53, 2**53 + 1, 2**62, 2**63 - 1, -(2**63), 10**18]
)
WIDE = st.integers(2**63, 2**130) | st.integers(-(2**130), -(2**63) - 1)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8) | st.sampled_from(
    ["null", "9" * 30, '"[{', "\\", '\\"[', "]"]
)
SCALARS = (
    st.none() | st.booleans() | INTEGERS | st.floats(allow_nan=False, allow_infinity=False) | TEXTS
)
BAD = (
    WIDE
    | st.sampled_from([math.nan, math.inf, -math.inf])
    | st.builds(Decimal, st.integers(-5, 5))
    | st.just("\ud800")
    | st.just({1: 2})
    | st.just(object())
)


def nested(leaves: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.recursive(
        leaves,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
        max_leaves=12,
    )


def deep(levels: int, inside: Any = 0) -> Any:
    for level in range(levels):
        inside = [inside] if level % 2 else {"a": inside}
    return inside


@given(nested(SCALARS))
def test_a_value_comes_back_as_it_was(value: Any) -> None:
    assert decode(encode(value)) == value == plain(value)
    assert decode(json.dumps(value, indent=1)) == value


class Loss(float):
    """A number of a library's own class, such as NumPy's, that answers as it likes."""

    def __float__(self) -> float:
        raise RuntimeError("no float")

    __repr__ = __str__ = lambda self: "loss"


class Count(int):
    def __int__(self) -> int:
        return 7

    def __lt__(self, other: object) -> bool:
        raise RuntimeError("not comparable")

    __le__ = __gt__ = __ge__ = __lt__


@given(st.floats(allow_nan=False, allow_infinity=False), INTEGERS)
def test_a_number_of_a_subclass_is_the_number(number: float, count: int) -> None:
    for value in (Loss(number), {"a": [Loss(number), None]}, {"a": Count(count), "b": None}):
        expected = json.loads(json.dumps(_plain_numbers(value)))
        assert decode(encode(value)) == expected == plain(value)


def _plain_numbers(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain_numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain_numbers(item) for item in value]
    if isinstance(value, Loss):
        return float.__pos__(value)
    return int.__pos__(value) if isinstance(value, Count) else value


@given(st.lists(st.integers(0, 3) | TEXTS, max_size=6), BAD, nested(SCALARS))
def test_a_bad_value_is_refused_with_its_place(path: list[Any], bad: Any, beside: Any) -> None:
    value = bad
    for step in reversed(path):
        value = {step: value} if isinstance(step, str) else [beside] * step + [value]
    with pytest.raises(NotJsonError) as by_orjson:
        encode(value, "result")
    with pytest.raises(NotJsonError) as by_walking:
        plain(value, "result")
    assert str(by_orjson.value) == str(by_walking.value)
    assert by_walking.value.place.startswith("result")
    for step in path:
        named = f"[{step}]" if isinstance(step, int) else step if step.isidentifier() else ""
        assert named in by_walking.value.place


@given(nested(SCALARS | WIDE | st.sampled_from([math.nan, math.inf])))
def test_text_of_others_is_read_exactly_or_not_at_all(value: Any) -> None:
    text = json.dumps(value)
    expected = place_of(lambda: plain(value))
    assert place_of(lambda: decode(text)) == expected
    if expected is None:
        assert decode(text) == value


def place_of(read: Callable[[], Any]) -> str | None:
    """Return the place that is refused, None: nothing is."""
    try:
        read()
    except NotJsonError as error:
        return error.place
    return None


@pytest.mark.parametrize("number", ["1e400", "-1e400", "9" * 5000, "-" + "9" * 19, "1" + "0" * 30])
def test_numbers_that_no_double_and_no_integer_has_are_refused(number: str) -> None:
    with pytest.raises(NotJsonError, match=r"^a\[1\]: "):
        decode(f"[0, {number}]".encode(), "a")


@pytest.mark.parametrize(
    "levels", [JSON_DEPTH - 1, JSON_DEPTH, JSON_DEPTH + 1, 252, 253, 254, 2000]
)
def test_levels_are_counted_alike_in_values_and_in_text(levels: int) -> None:
    value, text = deep(levels), b'{"a":' * levels + b"0" + b"}" * levels
    if levels <= JSON_DEPTH:
        assert decode(encode(value)) == value
        assert decode(text) == json.loads(text)
        return
    for refused in (lambda: encode(value), lambda: plain(value), lambda: decode(text)):
        with pytest.raises(NotJsonError, match="nested"):
            refused()


@pytest.mark.parametrize(
    "text",
    [b"[" * 2_000_000, b"[" * 2_000_000 + b"]" * 2_000_000, b'{"a":' * 1_000_000, b'["' * 300_000],
    ids=["open", "closed", "objects", "texts"],
)
def test_what_would_end_the_process_is_not_parsed(text: bytes) -> None:
    with pytest.raises(ValueError, match=r"nested|brackets"):
        check_levels(text)
    with pytest.raises(ValueError, match=r"nested|brackets"):
        decode(text)


def test_brackets_in_texts_are_no_levels() -> None:
    value = ["[" * 500, '"]' * 500, "\\", {"}" * 300: ['\\"'] * 200}]
    assert decode(orjson.dumps(value)) == value
    assert decode(encode(value)) == value


class Measured(pydantic.BaseModel):
    loss: float
    steps: list[int] = []


#: What values of `CHANGING` do to the list or object that they are in when they are read.
change: Callable[[], object] = list


class ChangingModel(pydantic.BaseModel):
    size: int = 1

    @pydantic.field_serializer("size")
    def _change(self, size: int) -> int:
        change()
        return size


class ChangingEnum(enum.Enum):
    RED = 1

    @property
    def value(self) -> Any:
        change()
        return 1


@dataclasses.dataclass
class ChangingRecord:
    size: int = 1

    def __getattribute__(self, name: str) -> Any:
        change()
        return super().__getattribute__(name)


class ChangingZone(datetime.tzinfo):
    def dst(self, _: Any) -> None:
        return None

    def tzname(self, _: Any) -> None:
        return None

    def utcoffset(self, _: Any) -> datetime.timedelta:
        change()
        return datetime.timedelta(hours=1)


CHANGING: list[Any] = [
    ChangingModel(),
    ChangingEnum.RED,
    ChangingRecord(),
    datetime.datetime(2026, 1, 1, tzinfo=ChangingZone()),
]


@pytest.mark.parametrize("changing", CHANGING, ids=lambda one: type(one).__name__)
@given(SCALARS, st.integers(0, 60), st.booleans(), st.booleans())
@settings(max_examples=25)
def test_a_value_that_changes_while_it_is_read_ends_no_process(
    changing: Any, beside: Any, size: int, grows: bool, in_list: bool
) -> None:
    """Orjson crashes then, with all that runs in the process."""

    def change_list(values: list[Any]) -> None:
        if not grows:
            values.clear()
        elif len(values) < 1000:
            values.extend([beside] * 500)

    def change_object(values: dict[str, Any]) -> None:
        if grows:
            values.update({f"new{number}": beside for number in range(500)})
        else:
            values.clear()

    global change
    value: Any
    if in_list:
        value = [beside, changing, *([beside] * size)]
        change = functools.partial(change_list, value)
    else:
        value = {"first": beside, "it": changing}
        value |= {f"n{number}": [beside] for number in range(size)}
        change = functools.partial(change_object, value)
    with contextlib.suppress(NotJsonError):
        decode(encode(value, "result"))


class Broken:
    def __repr__(self) -> str:
        return "Broken()"


#: The same rule wherever a program of ours takes a value.
WAYS: dict[str, Callable[[Any], Any]] = {
    "client": payload_object,
    "producer": _encoded,
    "testing payload": lambda value: testing.run(lambda payload: None, value),
    "testing result": lambda value: testing.run(lambda payload: value),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("value", "place"),
    [
        ({"items": [0, 1, 2, {"loss": math.nan}]}, ".items[3].loss"),
        ({"loss": 2**64 - 1}, ".loss"),
        ({"loss": 2**63 + 1}, ".loss"),
        ({"loss": Decimal("1.5")}, ".loss"),
        ({"a": {5: 1}}, ".a['5']"),
        ({"a b": [b"x"]}, "['a b'][0]"),
        (Measured(loss=math.inf), ".loss"),
        (Measured(loss=0, steps=[1, 2**70]), ".steps[1]"),
        ({"a": Broken()}, ".a"),
    ],
    ids=str,
)
def test_every_way_in_names_the_place(way: str, value: Any, place: str) -> None:
    with pytest.raises(Exception, match=r"JSON|64 bits|strings") as caught:
        WAYS[way](value)
    name = "result" if way == "testing result" else "payload"
    assert f"{name}{place}: " in str(caught.value)


def cut_below(value: Any, levels: int) -> Any:
    """Return a value with null in the place of what is nested deeper."""
    if not isinstance(value, list | dict):
        return value
    if not levels:
        return None
    if isinstance(value, list):
        return [cut_below(item, levels - 1) for item in value]
    return {key: cut_below(item, levels - 1) for key, item in value.items()}


@given(nested(SCALARS), st.integers(1, 4), st.sampled_from([None, 1]))
def test_an_outline_has_the_upper_levels(value: Any, levels: int, indent: int | None) -> None:
    text = json.dumps(value, indent=indent).encode()
    assert decode_outline(text, levels) == value
    assert orjson.loads(_upper_levels(text, levels)) == cut_below(value, levels)


def is_beginning(part: Any, whole: Any) -> bool:
    """Return whether a value may be what was read of the beginning of another's text."""
    if isinstance(part, dict) and isinstance(whole, dict):
        names = list(whole)[: len(part)]
        return list(part) == names and is_beginning(
            list(part.values()), [whole[name] for name in names]
        )
    if isinstance(part, list) and isinstance(whole, list):
        count = len(part)
        return part[:-1] == whole[: max(count - 1, 0)] and (
            not part or (count <= len(whole) and is_beginning(part[-1], whole[count - 1]))
        )
    numbers = (int, float)
    return part == whole or (type(part) in numbers and type(whole) in numbers)


@given(nested(SCALARS), nested(SCALARS), st.integers(1, 4), st.data())
def test_an_outline_of_the_beginning_has_nothing_else(
    first: Any, last: Any, levels: int, data: st.DataObject
) -> None:
    value = {"first": first, "last": last}
    text = json.dumps(value).encode()
    end = data.draw(st.integers(1, len(text) - 1))
    try:
        outline = decode_outline(text[:end], levels)
    except ValueError:
        return  # cut off within a value that is to be read
    assert is_beginning(outline, cut_below(value, levels))


@pytest.mark.parametrize("inside", [b"1", b"[", b'"}]', b'"\\'])
def test_an_outline_of_text_that_no_parser_reads(inside: bytes) -> None:
    text = b'{"name":"a","payload":' + b'{"a":[' * 700 + inside
    whole = text + b"]}" * 700 + b',"uid":"b"}'
    assert decode_outline(text, 1) == {"name": "a", "payload": None}
    if inside == b"1":
        assert decode_outline(whole, 1) == {"name": "a", "payload": None, "uid": "b"}


@pytest.mark.parametrize("end", [b"", b"}}}}", b'\\"}}', b"\\"])
def test_a_string_that_is_cut_off_is_one_all_the_same(end: bytes) -> None:
    text = b'{"name":"a","payload":{"text":"x' + end
    assert decode_outline(text, 1) == {"name": "a", "payload": None}
