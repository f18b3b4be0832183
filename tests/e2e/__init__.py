import pytest

# What these assert is explained as in a test.
pytest.register_assert_rewrite("tests.e2e.checks", "tests.e2e.harness", "tests.e2e.lifecycle_case")
