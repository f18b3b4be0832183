from tests.e2e.fixtures import api, lab, pytest_runtest_makereport

__all__ = ["api", "lab", "pytest_runtest_makereport"]
