"""Lists with objects that are too large or cannot be parsed, anywhere among the others."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Mapping
from typing import Any, cast

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskqueue.kubernetes import pages
from taskqueue.kubernetes.client import (
    METADATA_LIST,
    OBJECT_BYTES,
    PROBLEMS,
    TABLE,
    TOO_LARGE,
    UNREADABLE,
    ApiClient,
    ApiError,
    parse,
)
from taskqueue.kubernetes.pages import OBJECTS, PAGE, ROWS, ListForm, Page, list_pages
from tests.unit.kubernetes.fake_api import FakeApi, make, serve

#: The length of text that is no JSON for the parser, however short it is.
DEEP = b"[" * 1100 + b"]" * 1100

PLAIN, BAD, FAT, HUGE = "plain", "bad", "fat", "huge"
#: Bytes of each kind of object. Of the fat ones two do not fit a page, a huge one does not alone.
SIZES = {PLAIN: OBJECT_BYTES // PAGE // 3, BAD: 3000, FAT: OBJECT_BYTES * 2 // 3}
SIZES[HUGE] = OBJECT_BYTES + 1
#: Halvings from a whole page to one object.
HALVINGS = math.ceil(math.log2(PAGE))


class Lists:
    """Answers lists as `ApiClient` does, of objects that are not made until they are asked for."""

    def __init__(self, kinds: list[str]) -> None:
        self.kinds = kinds
        self.asked: list[int] = []
        self.most_read = 0

    async def send(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str],
        accept: str = "",
        most_bytes: int = 0,
    ) -> bytes:
        start, limit = int(params.get("continue", "0")), int(params["limit"])
        self.asked.append(limit)
        numbers = range(start, min(start + limit, len(self.kinds)))
        size = sum(SIZES[self.kinds[number]] for number in numbers)
        if size > most_bytes:
            raise ApiError(0, TOO_LARGE, "too large")
        self.most_read = max(self.most_read, size)
        bad = any(self.kinds[number] == BAD for number in numbers)
        items = [] if bad else [{"metadata": {"name": str(number)}} for number in numbers]
        page = orjson.dumps(self._page(items, numbers.stop))[:-1]
        # As long as all of it is, so that the size of pages is right.
        return page + b',"deep":' + DEEP + b"}" if bad else page + b" " * (size - len(page)) + b"}"

    async def request(
        self, method: str, path: str, *, params: Mapping[str, str], accept: str, levels: int
    ) -> dict[str, Any]:
        assert (accept, levels) == (METADATA_LIST, 4)
        assert params["limit"] == "1"
        start = int(params.get("continue", "0"))
        self.asked.append(0)
        return self._page([{"metadata": {"name": str(start)}}], start + 1)

    def _page(self, items: list[Any], end: int) -> dict[str, Any]:
        token = str(end) if end < len(self.kinds) else ""
        return {"items": items, "metadata": {"continue": token, "resourceVersion": "7"}}


async def read_all(
    lists: object, form: ListForm = OBJECTS, path: str = "/things"
) -> AsyncGenerator[Page, None]:
    async for page in list_pages(cast(ApiClient, lists), path, form=form):
        yield page


async def names_and_problems(lists: object) -> tuple[list[int], dict[int, str]]:
    names: list[int] = []
    problems: dict[int, str] = {}
    async for page in read_all(lists):
        found = [int(raw["metadata"]["name"]) for raw in page.content["items"]]
        names += found
        if page.problem:
            (name,) = found
            problems[name] = page.problem
    return names, problems


def placed(kinds: Mapping[int, str], count: int) -> list[str]:
    return [kinds.get(number, PLAIN) for number in range(count)]


@st.composite
def lists_with(draw: st.DrawFn, *kinds: str) -> list[str]:
    """Return the kinds of up to 700 objects, with some that are not plain, alone or in a row."""
    count = draw(st.integers(0, 700))
    places = st.integers(0, max(count - 1, 0))
    odd = draw(st.dictionaries(places, st.sampled_from(kinds), max_size=12))
    run = draw(st.integers(0, 12))
    start, kind = draw(places), draw(st.sampled_from(kinds))
    return placed(odd | dict.fromkeys(range(start, start + run), kind), count)


@given(lists_with(BAD))
def test_each_object_that_cannot_be_parsed_costs_some_ten_requests(kinds: list[str]) -> None:
    lists = Lists(kinds)
    names, problems = asyncio.run(names_and_problems(lists))
    assert names == list(range(len(kinds)))
    bad = [number for number, kind in enumerate(kinds) if kind == BAD]
    assert problems == dict.fromkeys(bad, PROBLEMS[UNREADABLE])
    assert len(lists.asked) <= len(kinds) // PAGE + 1 + len(bad) * (HALVINGS + 3)


@given(lists_with(BAD, FAT, HUGE))
def test_no_object_hides_another_or_fills_the_memory(kinds: list[str]) -> None:
    lists = Lists(kinds)
    names, problems = asyncio.run(names_and_problems(lists))
    assert names == list(range(len(kinds)))
    reasons = {BAD: PROBLEMS[UNREADABLE], HUGE: PROBLEMS[TOO_LARGE]}
    assert problems == {
        number: reasons[kind] for number, kind in enumerate(kinds) if kind in reasons
    }
    assert lists.most_read <= OBJECT_BYTES
    odd = len(kinds) - kinds.count(PLAIN)
    assert len(lists.asked) <= len(kinds) // PAGE + 1 + odd * (2 * HALVINGS + 4)


async def test_pages_are_as_large_as_before_behind_a_bad_object() -> None:
    lists = Lists(placed({150: BAD}, 3000))
    await names_and_problems(lists)
    assert lists.asked[:2] == [PAGE, PAGE]
    assert lists.asked[-27:] == [PAGE] * 27
    assert len(lists.asked) <= 30 + HALVINGS + 3


async def test_pages_grow_again_behind_fat_objects() -> None:
    lists = Lists(placed(dict.fromkeys(range(100, 140), FAT), 3000))
    await names_and_problems(lists)
    assert lists.asked.count(1) >= 39
    assert lists.asked[-20:] == [PAGE] * 20


async def test_a_refused_list_is_over() -> None:
    class Refusing(Lists):
        async def send(self, *args: Any, params: Mapping[str, str], **more: Any) -> bytes:
            if "continue" in params:
                raise ApiError(410, "Expired", "too old")
            return await super().send(*args, params=params, **more)

    lists = Refusing(placed({}, 300))
    found = read_all(lists)
    assert len((await anext(found)).content["items"]) == PAGE
    with pytest.raises(ApiError, match="too old"):
        await anext(found)
    assert lists.asked == [PAGE]


async def test_what_is_no_list_at_all_is_an_error() -> None:
    class Proxy(Lists):
        async def send(self, *args: Any, **more: Any) -> bytes:
            return b"<html>"

        async def request(self, *args: Any, levels: int, **more: Any) -> dict[str, Any]:
            return parse(b"<html>", "list", levels=levels)

    with pytest.raises(ApiError, match="not JSON"):
        await names_and_problems(Proxy([PLAIN]))


async def test_rows_that_cannot_be_read_are_read_in_outline() -> None:
    deep = b'{"f:a":' * 1100 + b"1" + b"}" * 1100
    metadata = b'{"metadata":{"name":"a","managedFields":[{"fieldsV1":' + deep + b"}]}}"
    row = b'{"cells":["a"],"object":' + metadata + b"}"
    table = b'{"metadata":{"resourceVersion":"7"},"rows":[' + row + b"]}"

    class Rows(Lists):
        async def send(self, *args: Any, accept: str = "", **more: Any) -> bytes:
            assert accept == TABLE
            return table

        async def request(self, *args: Any, levels: int, **more: Any) -> dict[str, Any]:
            return parse(table, "list", levels=levels)

    (page,) = [page async for page in read_all(Rows([PLAIN]), ROWS)]
    assert page.problem
    assert page.content["rows"] == [
        {"cells": ["a"], "object": {"metadata": {"name": "a", "managedFields": None}}}
    ]


async def test_bodies_are_read_up_to_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over HTTP: the client itself stops reading."""
    lengths: list[int] = []

    def parse_and_measure(raw: bytes, request: str) -> dict[str, Any]:
        lengths.append(len(raw))
        return parse(raw, request)

    monkeypatch.setattr(pages, "parse", parse_and_measure)
    text = "x" * (OBJECT_BYTES * 2 // 3)
    api = FakeApi(objects={f"o{n}": make(f"o{n}", spec={"text": text}) for n in range(5)})
    async with serve(api) as client:
        found = [page async for page in read_all(client)]
    assert [len(page.content["items"]) for page in found] == [1] * 5
    assert max(lengths) <= OBJECT_BYTES
    assert api.lists == 5 + HALVINGS - 1
