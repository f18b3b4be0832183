"""Times at which Tasks are woken, against a model that looks at all of them."""

from __future__ import annotations

import asyncio

import looptime
from hypothesis import given
from hypothesis import strategies as st

from taskqueue.controller.tasks import task_timers
from taskqueue.controller.tasks.task_timers import TaskTimers

uids = st.sampled_from("abcd")
seconds = st.sampled_from([0.0, 1.0, 1.5, 7.0])
steps = st.lists(
    st.one_of(
        st.tuples(st.just("set"), uids, seconds),
        st.tuples(st.just("cancel"), uids, st.just(0.0)),
        st.tuples(st.just("wait"), uids, seconds),
    ),
    max_size=40,
)


@given(steps)
def test_each_task_is_woken_once_at_its_time(steps: list[tuple[str, str, float]]) -> None:
    async def live() -> None:
        loop = asyncio.get_running_loop()
        woken: list[tuple[float, str]] = []
        expected: list[tuple[float, str]] = []
        timers = TaskTimers(lambda uid: woken.append((round(loop.time(), 1), uid)))
        due: dict[str, float] = {}
        now = 0.0
        for what, uid, after in [*steps, ("wait", "a", 50.0)]:
            match what:
                case "set":
                    timers.set(uid, after)
                    due[uid] = now + after
                case "cancel":
                    assert timers.cancel(uid) == (uid in due)
                    due.pop(uid, None)
                case "wait":
                    await asyncio.sleep(now + after + 0.05 - loop.time())
                    now += after
                    over = {uid: at for uid, at in due.items() if at <= now}
                    expected += sorted((at, uid) for uid, at in over.items())
                    due = {uid: at for uid, at in due.items() if at > now}
                    now = round(now + 0.05, 2)
            assert len(timers) == len(due)
            assert len(timers._heap) <= 2 * len(due) + 2
        assert sorted(uid for _, uid in woken) == sorted(uid for _, uid in expected)
        assert all(
            abs(one[0] - other[0]) <= 0.1
            for one, other in zip(sorted(woken), sorted(expected), strict=True)
        )

    loop = looptime.new_event_loop(start=0)
    slack, task_timers._SLACK = task_timers._SLACK, 2
    try:
        loop.run_until_complete(live())
    finally:
        task_timers._SLACK = slack
        loop.close()
