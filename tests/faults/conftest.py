from tests.e2e.fixtures import api, harness, pytest_runtest_makereport

__all__ = ["api", "harness", "pytest_runtest_makereport"]
