"""No case is tried twice in one run."""

from __future__ import annotations

import pytest

from tests.fuzz import test_coverage


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave the cases of the intakes to `test_coverage` if that is run: it tries the same ones."""
    if any(item.path.name == "test_coverage.py" for item in items):
        items[:] = [item for item in items if not _is_tried_there(item)]


def _is_tried_there(item: pytest.Item) -> bool:
    here = item.path.parent.name == "fuzz" and item.path.name in test_coverage.INTAKES
    return here and item.get_closest_marker("long") is None
