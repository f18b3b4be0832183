"""Virtual time."""

from tests.simulation.timeline import Timeline


def test_what_is_planned_happens_in_order_and_at_its_time() -> None:
    timeline, seen = Timeline(), []
    for moment in (3.0, 1.0, 2.0):
        timeline.at(moment, lambda: seen.append(timeline.now))
    timeline.run(2.5)
    assert seen == [1.0, 2.0]
    assert timeline.now == 2.5
    timeline.run(10)
    assert seen == [1.0, 2.0, 3.0]


def test_of_one_moment_what_was_planned_first_comes_first() -> None:
    timeline, seen = Timeline(), []
    for name in "abc":
        timeline.at(1.0, lambda name=name: seen.append(name))  # type: ignore[misc]
    timeline.run(1.0)
    assert seen == ["a", "b", "c"]


def test_the_past_is_now_and_intervals_do_not_end() -> None:
    timeline, seen = Timeline(), []
    timeline.run(5.0)
    timeline.at(1.0, lambda: seen.append(timeline.now))
    timeline.every(2.0, lambda: seen.append(timeline.now), first=6.0)
    timeline.run(11.0)
    assert seen == [5.0, 6.0, 8.0, 10.0]
