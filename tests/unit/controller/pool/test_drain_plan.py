"""The plan for one look at a pool; what comes of many is in test_shrinking_model.py."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from taskqueue.controller.pool.drain_plan import GOES_NEXT, PICKED, DrainStep, plan
from taskqueue.controller.pool.worker_registry import WorkerView
from taskqueue.model.pod import Pod
from taskqueue.model.worker import WorkerState

NOW = 1_000.0
WALL = 1_800_000_000.0
LONG_AGO = WALL - 600


def pod(name: str, **changes: Any) -> Pod:
    return replace(
        Pod(name=name, uid=f"uid-{name}", owner="rs", running_since=LONG_AGO, created=LONG_AGO),
        **changes,
    )


def empty(name: str, **changes: Any) -> Pod:
    fields = {"phase": "Pending", "ready": False, "running_since": None, **changes}
    return pod(name, **fields)


def view(
    name: str, busy: int = 0, state: WorkerState = WorkerState.READY, seen: float = NOW - 1
) -> WorkerView:
    return WorkerView(pod=name, slots=4, busy=busy, running=busy, state=state, seen=seen)


def drained(name: str, seen: float = NOW - 1) -> WorkerView:
    return view(name, state=WorkerState.STOPPED, seen=seen)


def draining(name: str, busy: int = 1) -> WorkerView:
    return view(name, busy, WorkerState.DRAINING)


def shrink(pods: list[Pod], workers: list[WorkerView], *, target: int, **changes: Any) -> DrainStep:
    fields: dict[str, Any] = {
        "replicas": len(pods),
        "unused": 0.0,
        "listened": 3600.0,
        "now": NOW,
        "wall": WALL,
        **changes,
    }
    return plan(pods, {one.pod: one for one in workers}, target=target, **fields)


def marks(plan: DrainStep) -> Mapping[str, int | None]:
    return {mark.pod.name: mark.cost for mark in plan.mark}


def recycled(plan: DrainStep) -> list[str]:
    return [one.name for one in plan.recycle]


def test_nothing_is_to_be_done_at_the_target() -> None:
    assert shrink([pod("a")], [view("a", busy=1)], target=1) == DrainStep(replicas=1)


def test_growth_is_no_matter_of_this_plan() -> None:
    assert shrink([pod("a")], [view("a")], target=3) == DrainStep(replicas=3)


def test_an_idle_worker_is_told_and_marked_before_the_size_is_touched() -> None:
    plan = shrink([pod("a"), pod("b")], [view("a", busy=1), view("b")], target=1)
    assert plan.drain == ("b",)
    assert marks(plan) == {"b": GOES_NEXT}
    assert plan.replicas == 2
    assert plan.waiting_for == "1 more to go: waits for b to stop"


def test_it_goes_when_it_has_stopped_and_its_mark_is_read_back() -> None:
    workers = [view("a", busy=1), drained("b")]
    unread = shrink([pod("a"), pod("b")], workers, target=1)
    assert unread.replicas == 2
    assert unread.waiting_for == "1 more to go: waits for the deletion costs to be in place"
    read = shrink([pod("a"), pod("b", cost=GOES_NEXT)], workers, target=1)
    assert read == DrainStep(replicas=1)


def test_a_mark_alone_removes_nobody() -> None:
    workers = [view("a", busy=1), draining("b")]
    plan = shrink([pod("a"), pod("b", cost=GOES_NEXT)], workers, target=1)
    assert plan.replicas == 2
    assert plan.drain == ()  # told, and heard
    assert plan.waiting_for == "1 more to go: waits for b to finish"


def test_the_idle_go_before_the_busy_and_the_youngest_of_equals() -> None:
    pods = [
        pod("busiest"),
        pod("busy", created=WALL - 1),
        pod("idle", created=WALL - 9),
        pod("idle-young", created=WALL - 3),
    ]
    workers = [view("busiest", busy=3), view("busy", busy=1), view("idle"), view("idle-young")]
    assert shrink(pods, workers, target=3).drain == ("idle-young",)
    assert shrink(pods, workers, target=2).drain == ("idle-young", "idle")
    assert shrink(pods, workers, target=1).drain == ("idle-young", "idle", "busy")


def test_who_drains_already_counts() -> None:
    pods = [pod("a"), pod("b"), pod("c")]
    assert shrink(pods, [view("a"), draining("b"), view("c")], target=2).drain == ()


def test_who_was_picked_is_picked_again_until_it_answers() -> None:
    # It got work meanwhile, and another one is idle now: one is to go, one was told.
    pods = [pod("a"), pod("b", cost=GOES_NEXT), pod("c")]
    plan = shrink(pods, [view("a", busy=1), view("b", busy=1), view("c")], target=2)
    assert plan.drain == ("b",)
    assert marks(plan) == {"b": PICKED}  # no equal of those that may go


def test_a_busy_one_that_is_picked_is_no_equal_of_one_that_may_go() -> None:
    pods = [pod("a"), pod("b"), pod("c")]
    workers = [view("a", busy=2), draining("b"), drained("c")]
    plan = shrink(pods, workers, target=1)
    assert marks(plan) == {"b": PICKED, "c": GOES_NEXT}
    marked = [pod("a"), pod("b", cost=PICKED), pod("c", cost=GOES_NEXT)]
    assert shrink(marked, workers, target=1).replicas == 2
    # Of equals, whom the controller takes is not known.
    equal = [pod("a"), pod("b", cost=GOES_NEXT), pod("c", cost=GOES_NEXT)]
    assert shrink(equal, workers, target=1).replicas == 3


def test_a_mark_under_way_counts_against_a_removal_but_not_for_it() -> None:
    # The controller may see none of them, or one of them, or both.
    pods = [pod("a"), pod("b"), pod("c", cost=-5)]
    plan = shrink(pods, [view("a", busy=3), view("b", busy=1), drained("c")], target=1)
    assert marks(plan) == {"b": PICKED, "c": GOES_NEXT}
    assert plan.replicas == 3


def test_no_order_is_changed_while_the_controller_has_pods_to_remove() -> None:
    # A leader that has just come knows nothing of the worker that its predecessor gave up.
    pods = [pod("a", cost=GOES_NEXT), pod("b"), pod("c")]
    plan = shrink(pods, [view("b", busy=1), view("c", busy=1)], target=3, replicas=2, listened=1.0)
    assert marks(plan) == {}


def test_pods_that_do_not_exist_go_first() -> None:
    plan = shrink([pod("a")], [view("a")], target=1, replicas=4)
    assert plan == DrainStep(replicas=1)


def test_pods_that_do_not_run_go_before_anybody_is_drained() -> None:
    pods = [pod("a"), empty("b"), empty("c", assigned=False)]
    plan = shrink(pods, [view("a")], target=1)
    assert (plan.drain, plan.replicas) == ((), 1)


def test_a_crashed_container_has_no_work_but_one_heard_of_lately_may() -> None:
    crashed = pod("b", running_since=None, ready=False)
    assert shrink([pod("a"), crashed], [view("a", busy=1)], target=1).replicas == 1
    heard = shrink([pod("a"), crashed], [view("a", busy=1), view("b", busy=1)], target=1)
    assert (heard.drain, heard.replicas) == (("b",), 2)


def test_pods_that_are_over_or_leave_do_not_count() -> None:
    pods = [pod("a"), pod("b", leaving=True), pod("c", phase="Failed")]
    assert shrink(pods, [view("a"), view("b", busy=1)], target=1, replicas=1) == DrainStep(
        replicas=1
    )


def test_a_pod_that_is_not_ready_and_works_is_in_the_way_of_the_drained() -> None:
    pods = [pod("a", cost=GOES_NEXT), pod("b", ready=False), pod("c")]
    plan = shrink(pods, [drained("a"), view("b", busy=1), view("c", busy=1)], target=2)
    assert plan.replicas == 3
    assert plan.waiting_for == (
        "1 more to go: waits for b to be ready again (it works, and would be removed first)"
    )


def test_a_pod_that_is_not_ready_is_picked_before_the_idle() -> None:
    pods = [pod("a", cost=GOES_NEXT), pod("b", ready=False)]
    plan = shrink(pods, [view("a"), view("b", busy=1)], target=1)
    assert plan.drain == ("b",)
    assert marks(plan) == {"b": PICKED, "a": None}


def test_when_the_target_rises_marks_are_taken_away_and_the_drained_replaced() -> None:
    pods = [pod("a", cost=GOES_NEXT), pod("b", cost=PICKED), pod("c", cost=GOES_NEXT)]
    plan = shrink(pods, [drained("a"), draining("b"), view("c", busy=1)], target=3)
    assert recycled(plan) == ["a"]
    assert marks(plan) == {"b": None, "c": None}
    assert plan.drain == ()


def test_only_the_drained_that_are_too_many_are_replaced() -> None:
    pods = [pod("a", cost=GOES_NEXT), pod("b", cost=GOES_NEXT), pod("c")]
    plan = shrink(pods, [drained("a"), drained("b"), view("c", busy=1)], target=2)
    assert (recycled(plan), plan.replicas) == (["b"], 2)


def test_a_container_that_begins_anew_is_not_replaced_again() -> None:
    ended = pod("a", running_since=None, ready=False)
    assert recycled(shrink([ended], [drained("a")], target=1)) == []
    begun = pod("a", running_since=WALL - 5)
    assert recycled(shrink([begun], [drained("a", seen=NOW - 6)], target=1)) == []


@pytest.mark.parametrize(("began", "removed"), [(5.0, False), (6.5, False), (7.1, True)])
def test_what_a_former_process_said_is_not_believed(began: float, removed: bool) -> None:
    # Heard 6 s ago; the begin is rounded down by up to a second.
    pods = [pod("a"), pod("b", running_since=WALL - began, cost=GOES_NEXT)]
    plan = shrink(pods, [view("a", busy=1), drained("b", seen=NOW - 6)], target=1)
    assert (plan.replicas == 1) is removed


def test_a_node_whose_clock_is_ahead_does_not_hold_its_pods_for_ever() -> None:
    pods = [pod("a"), pod("b", running_since=WALL + 3600, cost=GOES_NEXT)]
    assert shrink(pods, [view("a", busy=1), drained("b")], target=1).replicas == 1


def test_silence_is_idleness_only_when_the_queue_is_long_unused() -> None:
    pods = [pod("a"), pod("b", cost=GOES_NEXT)]
    heard = [view("a")]
    assert shrink(pods, heard, target=1, unused=25.0).replicas == 1
    # What the broker tells is that old: a message may be in a plain consumer's hands.
    for unused in (0.0, 24.9):
        held = shrink(pods, heard, target=0, unused=unused)
        assert held.drain == ("a",)
        assert held.replicas == 2
        assert "b to say whether work is left" in held.waiting_for


def test_nobody_is_silent_to_someone_who_has_just_begun_to_listen() -> None:
    pods = [pod("a"), pod("b")]
    assert shrink(pods, [], target=0, unused=60.0, listened=34.0).replicas == 2
    assert shrink(pods, [], target=0, unused=60.0, listened=35.0).replicas == 0
    # Nor a container that has just begun.
    young = [replace(one, running_since=WALL - 30) for one in pods]
    assert shrink(young, [], target=0, unused=60.0).replicas == 2


def test_who_is_neither_ready_nor_heard_though_others_are_has_no_work() -> None:
    pods = [pod("a"), pod("b"), pod("mute", ready=False)]
    heard = [view("a", busy=1), view("b", busy=1)]
    assert shrink(pods, heard, target=2).replicas == 2
    # It may be coming up, or have spoken before anybody listened.
    young = [*pods[:2], replace(pods[2], running_since=WALL - 34)]
    assert shrink(young, heard, target=2).replicas == 3
    assert shrink(pods, heard, target=2, listened=34.0).replicas == 3


def starting(name: str, seconds: float = 3.0, **changes: Any) -> Pod:
    return pod(name, running_since=WALL - seconds, created=WALL - seconds, **changes)


def test_no_busy_one_is_drained_in_place_of_one_that_has_not_registered_yet() -> None:
    pods = [pod("a"), pod("b"), pod("c"), starting("new")]
    workers = [view("a"), view("b", busy=1), view("c", busy=1)]
    assert shrink(pods, workers, target=2).drain == ("a",)
    assert shrink(pods, workers, target=1).drain == ("a", "b")
    # It has registered, and is idle.
    assert shrink(pods, [*workers, view("new")], target=2).drain == ("new", "a")


def test_idle_ones_are_drained_while_others_have_not_registered_yet() -> None:
    pods = [pod("a"), pod("b"), starting("new"), starting("newer")]
    plan = shrink(pods, [view("a"), view("b")], target=2)
    assert plan.drain == ("a", "b")


def test_busy_one_that_was_picked_stays_picked_when_another_pod_starts() -> None:
    pods = [pod("a", cost=PICKED), pod("b"), starting("new")]
    plan = shrink(pods, [view("a", busy=1), view("b", busy=1)], target=2)
    assert plan.drain == ("a",)
    assert shrink(pods, [draining("a"), view("b", busy=1)], target=2).waiting_for == (
        "1 more to go: waits for a to finish"
    )


def test_pod_that_never_registers_holds_up_a_drain_for_so_long_only() -> None:
    workers = [view("a", busy=1), view("b", busy=1)]

    def drained_at(seconds: float, **changes: Any) -> int:
        pods = [pod("a"), pod("b"), starting("mute", seconds)]
        return len(shrink(pods, workers, target=2, **changes).drain)

    assert [drained_at(34.0), drained_at(35.0)] == [0, 1]
    # Neither for an operator that has just begun to listen.
    assert [drained_at(600.0, listened=34.0), drained_at(600.0, listened=35.0)] == [0, 1]


def test_spared_ones_wait_for_those_that_have_not_registered() -> None:
    pods = [pod("a"), pod("b"), starting("new")]
    plan = shrink(pods, [view("a", busy=1), view("b", busy=1)], target=2)
    assert plan.replicas == 3
    assert plan.waiting_for.startswith("1 more to go: waits for new to say whether work is left")


def test_nothing_is_wanted_so_the_busy_are_drained_beside_those_that_start() -> None:
    pods = [pod("a"), starting("new")]
    assert shrink(pods, [view("a", busy=1)], target=0).drain == ("a",)


def test_who_is_ready_is_kept_though_nobody_hears_it() -> None:
    pods = [pod("a"), pod("b"), pod("mute")]
    plan = shrink(pods, [view("a", busy=1), view("b", busy=1)], target=0)
    assert plan.replicas == 3
    assert "mute to say whether work is left" in plan.waiting_for


def test_who_is_not_heard_is_kept_where_nobody_is() -> None:
    # A program of another kind, that never sends heartbeats; or they do not get through.
    pods = [pod("a"), pod("b", ready=False)]
    assert shrink(pods, [], target=0).replicas == 2
    # What is heard of a machine that is no pod of the pool, or of a former one, tells nothing.
    former = view("a", seen=NOW - 700)
    assert shrink(pods, [view("laptop"), former], target=0).replicas == 2


def test_who_does_not_obey_is_named() -> None:
    pods = [pod("a", cost=GOES_NEXT), pod("b")]
    plan = shrink(pods, [view("a"), view("b", busy=1)], target=1)
    assert plan.drain == ("a",)
    assert plan.waiting_for == "1 more to go: waits for a to stop"


def test_pods_that_nothing_controls_are_no_part_of_the_pool() -> None:
    pods = [pod("a"), pod("b"), pod("stray", owner="")]
    workers = [view("a", busy=1), view("b", busy=1), view("stray")]
    assert shrink(pods, workers, replicas=2, target=2) == DrainStep(replicas=2)
    plan = shrink(pods, workers, replicas=2, target=1)
    assert len(plan.drain) == 1
    assert plan.drain != ("stray",)
    assert plan.replicas == 2
    drained_stray = [*workers[:2], drained("stray")]
    assert shrink(pods, drained_stray, replicas=2, target=2).recycle == ()


def rollout(old: int, new: int) -> list[Pod]:
    return [
        *(pod(f"old-{at}", owner="old") for at in range(old)),
        *(pod(f"new-{at}", owner="new", created=WALL - 3) for at in range(new)),
    ]


def test_what_a_rollout_has_beyond_the_replicas_is_no_surplus() -> None:
    pods = rollout(2, 1)
    workers = [view("old-0", busy=1), view("old-1", busy=1), view("new-0")]
    assert shrink(pods, workers, replicas=2, target=2) == DrainStep(replicas=2)
    starting = [*pods[:2], empty("new-0", owner="new")]
    assert shrink(starting, workers[:2], replicas=2, target=2) == DrainStep(replicas=2)
    # Nor where one controller makes all of them.
    one_owner = [replace(one, owner="rs") for one in pods]
    assert shrink(one_owner, workers, replicas=2, target=2) == DrainStep(replicas=2)


def test_while_a_rollout_lasts_no_more_are_told_than_are_to_go() -> None:
    pods = rollout(3, 2)
    workers = [view(one.name) for one in pods]
    assert len(shrink(pods, workers, replicas=4, target=3).drain) == 1
    busy = [view(one.name, busy=1) for one in pods]
    plan = shrink(pods, busy, replicas=4, target=3)
    assert plan.waiting_for.endswith(", for the rollout to end (the pods are 2 controllers')")
    # Nothing is wanted: all may go.
    assert len(shrink(pods, workers, replicas=4, target=0).drain) == 5


def test_while_a_rollout_lasts_pods_that_do_not_exist_are_not_taken_for_those_that_go() -> None:
    # A quota keeps the new ReplicaSet from making more, and the old one may have to give.
    pods = rollout(3, 1)
    plan = shrink(pods, [view(one.name, busy=1) for one in pods], replicas=6, target=4)
    assert plan == DrainStep(
        replicas=6,
        waiting_for="2 more to go: waits for the rollout to end (the pods are 2 controllers')",
    )
    assert shrink(pods, [drained(one.name) for one in pods], replicas=6, target=0).replicas == 0


def test_the_drained_are_replaced_also_while_a_rollout_lasts() -> None:
    workers = [drained("old-0"), view("old-1", busy=1), view("new-0")]
    assert recycled(shrink(rollout(2, 1), workers, replicas=2, target=2)) == ["old-0"]


def test_a_drained_pod_that_was_given_up_is_left_to_the_controller() -> None:
    pods = [pod("a", cost=GOES_NEXT), pod("b"), pod("c")]
    workers = [drained("a"), view("b", busy=1), view("c")]
    assert shrink(pods, workers, replicas=2, target=2) == DrainStep(replicas=2)
    # And who is to go beside it is told meanwhile.
    assert shrink(pods, workers, replicas=2, target=1).drain == ("c",)


def test_all_can_go_without_marks_but_not_while_some_work() -> None:
    pods = [pod("a"), pod("b")]
    assert marks(shrink(pods, [view("a"), view("b")], target=0)) == {}
    assert shrink(pods, [drained("a"), drained("b")], target=0).replicas == 0
    working = shrink(pods, [drained("a"), draining("b")], target=0)
    assert marks(working) == {"a": GOES_NEXT, "b": PICKED}


def test_in_a_rollout_any_of_the_replica_sets_may_have_to_give() -> None:
    old = [pod("a", owner="old"), pod("b", owner="old", cost=GOES_NEXT)]
    new = [pod("c", owner="new"), empty("d", owner="new")]
    workers = [view("a", busy=1), drained("b"), view("c", busy=1)]
    assert shrink([*old, *new], workers, target=3).replicas == 3
    assert shrink([*old, pod("c", owner="new")], workers, target=2).replicas == 3


def test_a_user_s_own_cost_is_reckoned_with() -> None:
    pods = [pod("a", cost=-(2**31)), pod("b", cost=GOES_NEXT)]
    plan = shrink(pods, [view("a", busy=1), drained("b")], target=1)
    assert plan.replicas == 2


def ordered(pods: list[Pod], workers: list[WorkerView], **changes: Any) -> DrainStep:
    return shrink(pods, workers, ordered=True, **changes)


def test_of_a_stateful_set_the_highest_go_busy_or_not() -> None:
    pods = [pod("w-0"), pod("w-1"), pod("w-10"), pod("w-2")]
    workers = [view("w-0"), view("w-1"), view("w-2", busy=1), view("w-10", busy=2)]
    plan = ordered(pods, workers, target=2, replicas=11)
    assert set(plan.drain) == {"w-10", "w-2"}
    assert plan.mark == ()
    assert plan.replicas == 11
    workers[-1] = drained("w-10")
    assert ordered(pods, workers, target=2, replicas=11).replicas == 3


def test_ordinals_may_begin_anywhere() -> None:
    pods = [pod("w-5"), pod("w-6")]
    plan = ordered(pods, [view("w-5"), drained("w-6")], target=1, first_ordinal=5)
    assert (plan.replicas, plan.drain, plan.recycle) == (1, (), ())


def test_a_stateful_set_gives_up_unready_pods_one_by_one() -> None:
    pods = [pod("w-0"), pod("w-1", ready=False), pod("w-2", ready=False)]
    workers = [view("w-0"), drained("w-1"), drained("w-2")]
    assert ordered(pods, workers, target=1).replicas == 2
    assert ordered(pods, workers, target=1, replicas=2).replicas == 2  # w-2 has yet to leave
    assert ordered(pods[:2], workers, target=1).replicas == 1


def test_a_drained_pod_of_a_stateful_set_that_stays_is_replaced() -> None:
    pods = [pod("w-0"), pod("w-1")]
    plan = ordered(pods, [drained("w-0"), drained("w-1")], target=1)
    assert (recycled(plan), plan.replicas) == (["w-0"], 1)


def test_many_names_are_counted() -> None:
    pods = [pod(name) for name in "abcdef"]
    plan = shrink(pods, [view(name, busy=1) for name in "abcdef"], target=1)
    assert plan.waiting_for == "5 more to go: waits for a, b, c and 2 more to finish"
