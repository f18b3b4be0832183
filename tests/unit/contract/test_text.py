"""Text is cut to bytes, and never within a character."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskqueue.contract.text import cut


@given(st.text(max_size=60), st.integers(3, 40))
def test_text_is_cut_after_a_whole_character(text: str, limit: int) -> None:
    found = cut(text, limit)
    encodable = text.encode(errors="replace").decode()
    assert len(found.encode()) <= limit
    if len(encodable.encode()) <= limit:
        assert found == encodable
    else:
        assert found.endswith("…")
        assert encodable.startswith(found[:-1])


@pytest.mark.parametrize("text", ["a" * 2000, "é" * 1000, "😀" * 500])
def test_text_of_just_the_limit_stays(text: str) -> None:
    assert cut(text, 2000) == text
