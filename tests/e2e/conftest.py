import pytest

from tests.e2e.fixtures import api, lab, pytest_runtest_makereport, stage

__all__ = ["api", "lab", "pytest_runtest_makereport", "stage"]

#: Take the operator, then the broker, of all others away for a while.
_LAST = ("test_operator_loss.py", "test_table_operator_loss.py", "test_broker_restart.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: _LAST.index(item.path.name) if item.path.name in _LAST else -1)
