"""What the benchmark of schedules makes of the Tasks it has seen."""

from tests.bench.schedules import SeenRuns, missing


def seen(*runs: tuple[str, str]) -> SeenRuns:
    found = SeenRuns()
    for name, uid in runs:
        found.on_upserted({"metadata": {"name": name, "uid": uid}})
    return found


def test_run_created_again_after_it_was_deleted_is_created_twice() -> None:
    found = seen(("a-10", "1"), ("b-10", "2"), ("a-10", "1"))
    found.on_deleted(("bench", "a-10"), "1")
    assert found.created_twice() == []
    found.on_upserted({"metadata": {"name": "a-10", "uid": "3"}})
    assert found.created_twice() == ["a-10"]


def test_missing_runs_are_counted_by_minute() -> None:
    found = seen(("a-10", "1"), ("a-11", "2"), ("b-11", "3"))
    assert missing(found.late, ["a", "b"], range(10, 13)) == {10: 1, 12: 2}
