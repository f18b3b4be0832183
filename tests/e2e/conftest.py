import pytest

from tests.e2e.fixtures import api, lab, pytest_runtest_makereport

__all__ = ["api", "lab", "pytest_runtest_makereport"]

#: Takes the broker of all others away for a while.
_LAST = "test_broker_restart.py"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name == _LAST)
