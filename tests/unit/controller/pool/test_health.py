from dataclasses import replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from taskqueue.controller.pool.health import HealthMemory, PoolHealth, assess
from taskqueue.model.pod import Pod, Trouble

PULL = Trouble("ImagePullBackOff", "container worker: no such image")
CRASH = Trouble("CrashLoopBackOff", "container worker ended with code 1, 3 times")
NO_NODE = Trouble("Unschedulable", "0/3 nodes are available: 3 Insufficient cpu")
QUOTA = 'pods "w-1" is forbidden: exceeded quota: small, requested: pods=1, used: pods=3'


def pod(name: str, trouble: Trouble | None = None, **changes: Any) -> Pod:
    return replace(Pod(name=name, uid=f"uid-{name}", running_since=1.0, trouble=trouble), **changes)


class Pool:
    """Assesses the same pool again and again."""

    def __init__(self, pods: list[Pod], *, wanted: int, replicas: int | None = None) -> None:
        self.pods = pods
        self.wanted = wanted
        self.replicas = len(pods) if replicas is None else replicas
        self.memory = HealthMemory()
        self.now = 100.0

    def look(self, refused: str = "", *, after: float = 0.0) -> PoolHealth:
        self.now += after
        health = assess(
            self.memory,
            pods=self.pods,
            refused=refused,
            replicas=self.replicas,
            wanted=self.wanted,
            available=sum(one.trouble is None for one in self.pods),
            now=self.now,
        )
        self.memory = health.memory
        return health


def test_a_pool_that_starts_is_well() -> None:
    starting = pod("a", running_since=None, ready=False, phase="Pending")
    health = Pool([starting], wanted=5).look()
    assert health == PoolHealth(memory=HealthMemory())


def test_a_pool_that_fails_grows_no_further_and_says_why() -> None:
    health = Pool([pod("a"), pod("b", PULL), pod("c", PULL)], wanted=9).look()
    assert (health.reason, health.ceiling) == ("ImagePullBackOff", 3)
    assert health.message == (
        "1 of 9 workers are available; pod b: ImagePullBackOff: container worker: no such image; "
        "one more fails"
    )
    assert health.next_check is None  # the pods' changes are seen


def test_few_failing_pods_are_reported_without_a_ceiling() -> None:
    health = Pool([pod("a"), pod("b"), pod("c", PULL)], wanted=9).look()
    assert (health.reason, health.ceiling) == ("ImagePullBackOff", None)


def test_half_that_fail_hold_it_up() -> None:
    assert Pool([pod("a"), pod("b", PULL)], wanted=9, replicas=4).look().ceiling == 4


def test_most_frequent_reason_is_reported() -> None:
    pods = [pod("a", PULL), pod("b", CRASH), pod("c", CRASH)]
    health = Pool(pods, wanted=3).look()
    assert health.reason == "CrashLoopBackOff"
    assert "pod b: CrashLoopBackOff: container worker ended" in health.message
    assert health.message.endswith("; 2 more fail")


def waiting(name: str) -> Pod:
    return pod(name, NO_NODE, assigned=False, running_since=None, ready=False, phase="Pending")


def test_unschedulable_pods_are_reported_without_a_ceiling() -> None:
    health = Pool([waiting("a"), waiting("b")], wanted=9).look()
    assert (health.reason, health.ceiling) == ("Unschedulable", None)
    assert health.message == (
        "0 of 9 workers are available; pod a: Unschedulable: 0/3 nodes are available: "
        "3 Insufficient cpu; one more fails"
    )


def test_pods_that_no_node_takes_excuse_no_others() -> None:
    health = Pool([pod("a", PULL), *map(waiting, "bcd")], wanted=9).look()
    assert (health.reason, health.ceiling) == ("ImagePullBackOff", 4)
    assert Pool([pod("a", PULL), *map(pod, "bc"), waiting("d")], wanted=9).look().ceiling is None


@settings(max_examples=200)
@given(
    looks=st.lists(
        st.tuples(
            st.lists(st.sampled_from(["well", "crashed", "crashing", "waiting"]), max_size=4),
            st.sampled_from(["", "", QUOTA]),
            st.floats(0, 15),
        ),
        min_size=1,
        max_size=8,
    )
)
def test_health_does_not_change_by_itself_before_next_check(
    looks: list[tuple[list[str], str, float]],
) -> None:
    pool = Pool([], wanted=5)
    for pods, refused, after in looks:
        pool.pods = [
            {
                "well": pod(str(at)),
                "crashed": pod(str(at), restarts=1),
                "crashing": pod(str(at), CRASH, restarts=1),
                "waiting": waiting(str(at)),
            }[kind]
            for at, kind in enumerate(pods)
        ]
        health = pool.look(refused, after=after)
    for _ in range(5):
        again = health.next_check
        assert again is None or again > pool.now
        before, now = pool.memory, pool.now
        pool.now = now + 1000.0 if again is None else max(now, again - 0.01)
        later = pool.look(refused)
        assert (later.reason, later.message, later.ceiling) == (
            health.reason,
            health.message,
            health.ceiling,
        )
        if again is None:
            break
        pool.memory, pool.now = before, again
        health = pool.look(refused)


def test_next_check_is_late_enough() -> None:
    pool = Pool([pod("a", CRASH, restarts=1)], wanted=3)
    pool.now = 65527.9  # 10 s later fewer than 10 s have passed, in binary fractions
    pool.look()
    pool.pods = [pod("a", restarts=1)]
    again = pool.look(after=1).next_check
    assert again is not None
    pool.now = again
    assert pool.look() == PoolHealth(memory=HealthMemory())


def test_pods_that_leave_do_not_count() -> None:
    pods = [pod("a", PULL, leaving=True), pod("b", PULL, phase="Failed")]
    assert Pool(pods, wanted=2).look().reason == ""


def test_it_heals_by_itself() -> None:
    pool = Pool([pod("a", PULL)], wanted=3)
    assert pool.look().ceiling == 1
    pool.pods = [pod("a")]
    assert pool.look() == PoolHealth(memory=HealthMemory())


def test_between_two_crashes_it_is_not_well() -> None:
    pool = Pool([pod("a", CRASH, restarts=1)], wanted=3)
    pool.look()
    pool.pods = [pod("a", restarts=1)]
    health = pool.look(after=1)
    assert (health.reason, health.ceiling) == ("CrashLoopBackOff", 1)
    assert health.next_check == 110.0
    assert pool.look(after=8.9).ceiling == 1
    assert pool.look(after=0.1) == PoolHealth(memory=HealthMemory())


def test_each_crash_restarts_the_recovery_time() -> None:
    pool = Pool([pod("a", CRASH, restarts=1)], wanted=3)
    for _ in range(5):
        pool.pods = [pod("a", CRASH, restarts=1)]
        assert pool.look(after=9).ceiling == 1
        pool.pods = [pod("a", restarts=1)]
        assert pool.look(after=9).ceiling == 1


def test_what_is_refused_is_not_asked_for_until_a_pause_is_over() -> None:
    pool = Pool([pod("a"), pod("b")], wanted=5, replicas=5)
    health = pool.look(QUOTA)
    assert (health.reason, health.ceiling, health.next_check) == ("QuotaExceeded", 2, 110.0)
    assert health.message == (
        f"2 of 5 workers are available; more pods are refused, the operator tries again: {QUOTA}"
    )
    # Held at two, the controller has nothing to complain of; the quota is as full as before.
    held = pool.look("", after=9.9)
    assert (held.reason, held.ceiling) == ("QuotaExceeded", 2)
    tried = pool.look("", after=0.1)
    assert (tried.reason, tried.ceiling, tried.next_check) == ("QuotaExceeded", None, 113.0)


def test_what_the_controller_said_before_the_try_is_not_its_answer() -> None:
    pool = Pool([pod("a")], wanted=5)
    pool.look(QUOTA)
    assert pool.look(QUOTA, after=10).ceiling is None
    assert pool.look(QUOTA, after=2.9).ceiling is None
    assert pool.look(QUOTA, after=0.1).ceiling == 1


def test_the_pause_doubles_to_a_minute_with_each_try_in_vain() -> None:
    pool = Pool([pod("a")], wanted=5)
    pauses = []
    health = pool.look(QUOTA)
    for _ in range(5):
        assert health.next_check is not None
        pauses.append(health.next_check - pool.now)
        assert pool.look(after=pauses[-1]).ceiling is None
        health = pool.look(QUOTA, after=3)
        assert health.ceiling == 1
    assert pauses == [10, 20, 40, 60, 60]


def test_a_try_that_gets_somewhere_begins_again_with_a_short_pause() -> None:
    pool = Pool([pod("a")], wanted=5)
    pool.look(QUOTA)
    pool.look(after=10)
    pool.look(QUOTA, after=3)
    pool.look(after=20)
    pool.pods = [pod("a"), pod("b")]
    health = pool.look(QUOTA, after=3)
    assert health.ceiling == 2
    assert health.next_check == pool.now + 10


def test_a_try_that_gets_all_ends_it() -> None:
    pool = Pool([pod("a")], wanted=2)
    pool.look(QUOTA)
    pool.look(after=10)
    pool.pods = [pod("a"), pod("b")]
    assert pool.look(after=0.5) == PoolHealth(memory=HealthMemory())


def test_a_size_that_the_ceiling_held_down_ends_no_refusal() -> None:
    pool = Pool([pod("a")], wanted=5)
    pool.look(QUOTA)
    pool.wanted = 1
    assert pool.look(after=10).reason == "QuotaExceeded"
    pool.wanted = 5
    assert pool.look(QUOTA, after=3).next_check == pool.now + 20


def test_refusal_ends_with_a_try_that_succeeds() -> None:
    pool = Pool([pod("a")], wanted=5)
    pool.look(QUOTA)
    pool.wanted = 1
    assert pool.look(after=12.9).reason == "QuotaExceeded"
    assert pool.look(after=0.1) == PoolHealth(memory=HealthMemory())


def test_a_pod_that_leaves_meanwhile_may_be_replaced() -> None:
    pool = Pool([pod("a"), pod("b")], wanted=5)
    pool.look(QUOTA)
    pool.pods = [pod("a")]
    assert pool.look(after=1).ceiling == 2


def test_a_refusal_of_another_kind_has_a_name_of_its_own() -> None:
    refused = 'pods "w-1" is forbidden: violates PodSecurity "restricted:latest"'
    health = Pool([], wanted=2).look(refused)
    assert (health.reason, health.ceiling) == ("ReplicaFailure", 0)


def test_failing_pods_are_reported_before_a_refusal_only_when_many_fail() -> None:
    many = Pool([pod("a", PULL)], wanted=5, replicas=5).look(QUOTA)
    assert (many.reason, many.ceiling) == ("ImagePullBackOff", 1)
    few = Pool([pod("a", PULL), pod("b"), pod("c")], wanted=5, replicas=5).look(QUOTA)
    assert (few.reason, few.ceiling) == ("QuotaExceeded", 3)
