"""The table of what was broken once: its rows, and how it is written."""

from __future__ import annotations

import ast

import pytest

from tests.faults.__main__ import Seen, in_order, markdown
from tests.faults.rows import ROWS, handlers
from tests.faults.rows.site import HANDLERS


def test_rows_are_in_the_order_of_their_numbers_without_gaps() -> None:
    names = [row.name for row in in_order([])]
    sections = {name[0] for name in names}
    for section in sections:
        numbers = [int(name[1:]) for name in names if name[0] == section]
        assert numbers == list(range(1, len(numbers) + 1))
    assert sections == {"A", "B", "C", "D", "E"}


def test_rows_are_chosen_by_name_or_section() -> None:
    assert [row.name for row in in_order(["E2", "A10", "A9"])] == ["A9", "A10", "E2"]
    assert {row.name[0] for row in in_order(["B", "A9"])} == {"A", "B"}
    with pytest.raises(ValueError, match="no row is called A99"):
        in_order(["A99"])


def test_the_table_says_what_was_seen_and_counts() -> None:
    row = ROWS["A1"]
    table = markdown([Seen(row, True, "a | b"), Seen(row, False, "two\nlines " + "x" * 300)])
    assert "a \\| b | green |" in table
    assert "| two lines xxx" in table
    assert table.endswith("\n1 of 2 rows are green.\n")


def test_handlers_that_rows_name_exist() -> None:
    defined = {
        node.name
        for node in ast.parse(HANDLERS.read_text()).body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert defined >= handlers.RETRIES | handlers.FAILS | handlers.OWN_CLASSES
