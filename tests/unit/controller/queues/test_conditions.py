"""The conditions of a TaskQueue, from those of its parts."""

from dataclasses import replace

import pytest

from taskqueue.controller.queues.conditions import conditions
from taskqueue.controller.queues.conditions.archive_connected import (
    archive_connected,
)
from taskqueue.controller.queues.conditions.reported import reported
from taskqueue.controller.queues.conditions.settings import ConditionSettings
from taskqueue.controller.queues.conditions.sink_state import SinkState
from taskqueue.controller.queues.conditions.transitions import ConditionTransitions
from taskqueue.controller.tasks.missing_handlers import MissingHandler, MissingHandlers
from taskqueue.limits import STATUS_MESSAGE_LENGTH
from taskqueue.model.flow import FlowPolicy, RateLimit
from taskqueue.model.queue import ArchiveConfig, Condition, QueueConfig, StopPolicy

CONFIG = QueueConfig(
    namespace="shop", name="thumbnails", uid="u", generation=1, connection_secret="rabbit"
)
UP = Condition("BrokerConnected", True, "Connected", "")
SHARED = Condition("CredentialsReady", True, "Shared", "")
AVAILABLE = Condition("WorkersAvailable", True, "Available", "")
FOLLOWING = Condition("ScalingActive", True, "Following", "")


def parts(
    config: QueueConfig = CONFIG,
    *,
    broker: Condition = UP,
    credentials: Condition = SHARED,
    credentials_missing: bool = False,
    workers: Condition = AVAILABLE,
    refused: bool = False,
    dead_letters: int | None = 0,
    many_finished: int | None = 0,
    misplaced_seconds: float | None = None,
    missing: MissingHandlers | None = None,
    limited_by: str = "",
) -> dict[str, Condition]:
    found = conditions(
        config,
        broker=broker,
        credentials=credentials,
        credentials_missing=credentials_missing,
        workers=workers,
        scaling=FOLLOWING,
        refused=refused,
        missing=missing or MissingHandlers(),
        dead_letter_count=dead_letters,
        many_finished=many_finished,
        settings=ConditionSettings(operator_namespace="system", many_dead_letters=3),
        misplaced_seconds=misplaced_seconds,
        limited_by=limited_by,
    )
    return {condition.type: condition for condition in found}


def test_all_is_well() -> None:
    found = parts()
    assert (found["Ready"].status, found["Ready"].reason) == (True, "Ready")
    assert not found.keys() & {"Reconciling", "Stalled"}
    assert (found["DeadLetters"].status, found["DeadLetters"].reason) == (False, "None")
    assert found["ProducersOutdated"].status is False


def test_credentials_that_are_missing_stall_it_and_old_ones_do_not() -> None:
    trouble = Condition("CredentialsReady", False, "ManagementFailed", "no administrator")
    assert parts(credentials=trouble)["Ready"].status is True
    found = parts(credentials=trouble, credentials_missing=True)
    assert found["CredentialsReady"] == trouble
    assert (found["Ready"].status, found["Ready"].reason) == (False, "ManagementFailed")
    assert found["Stalled"].message == "no administrator"
    assert found["WorkersAvailable"] == AVAILABLE
    down = Condition("BrokerConnected", False, "BrokerUnavailable", "")
    found = parts(broker=down, credentials=trouble, credentials_missing=True)
    assert found["Ready"].reason == "BrokerUnavailable"


def test_rate_limit_that_holds_all_back_is_named_where_there_are_limits() -> None:
    assert "DispatchLimited" not in parts(limited_by="api")
    limit = RateLimit(name="api", attempts=6, period_seconds=60)
    config = replace(CONFIG, flow=FlowPolicy(rate_limits=(limit,)))
    assert parts(config)["DispatchLimited"].status is False
    limited = parts(config, limited_by="api")["DispatchLimited"]
    assert (limited.status, limited.reason) == (True, "RateLimited")
    assert "rate limit api of spec.flow lets 6 attempts pass in 60 s" in limited.message


def test_missing_handlers_are_named_and_their_tasks_counted() -> None:
    assert parts()["HandlersMissing"].status is False
    missing = MissingHandlers()
    for number in range(12):
        missing.add(f"handler-{number % 7}", f"uid-{number}", MissingHandler(1, 0.0))
    condition = parts(missing=missing)["HandlersMissing"]
    assert (condition.status, condition.reason) == (True, "UnknownHandler")
    assert "handler-0, handler-1, handler-2, handler-3, handler-4 and 2 more" in condition.message
    assert "12 Tasks" in condition.message
    for number in range(12):
        missing.remove_task(f"uid-{number}")
    assert parts(missing=missing)["HandlersMissing"].status is False


@pytest.mark.parametrize(("seconds", "outdated"), [(0.0, True), (600.0, True), (601.0, False)])
def test_producers_are_outdated_for_a_while_after_a_direct_message_came_by_the_work_exchange(
    seconds: float, outdated: bool
) -> None:
    condition = parts(misplaced_seconds=seconds)["ProducersOutdated"]
    assert condition.status is outdated
    if outdated:
        assert condition.reason == "WorkExchangeUsed"
        assert "publish to taskqueue.direct, with the same key shop.thumbnails" in condition.message


@pytest.mark.parametrize("policy", [StopPolicy.HOLD, StopPolicy.HOLD_AND_DRAIN])
def test_a_queue_that_is_held_is_ready_and_says_so(policy: StopPolicy) -> None:
    ready = parts(replace(CONFIG, stop_policy=policy))["Ready"]
    assert (ready.status, ready.reason) == (True, "Held")
    assert f"spec.stopPolicy is {policy}" in ready.message
    assert ("the workers are removed" in ready.message) is policy.drains


@pytest.mark.parametrize(
    ("reason", "kind"),
    [("BrokerUnavailable", "Reconciling"), ("ClusterNotReady", "Reconciling"),
     ("SecretNotFound", "Stalled"), ("ClusterNotAllowed", "Stalled")],
)  # fmt: skip
def test_a_broker_in_trouble_comes_before_everything(reason: str, kind: str) -> None:
    held = replace(CONFIG, stop_policy=StopPolicy.HOLD)
    found = parts(held, broker=Condition("BrokerConnected", False, reason, "why"), refused=True)
    assert (found["Ready"].status, found["Ready"].reason) == (False, reason)
    assert found.keys() & {"Reconciling", "Stalled"} == {kind}


def test_broker_connected_says_deleting_while_the_taskqueue_is_deleted() -> None:
    found = parts(replace(CONFIG, deleting=True, delete_queues=True))
    assert (found["BrokerConnected"].status, found["Ready"].reason) == (False, "Deleting")
    assert "its queues at the broker with it" in found["BrokerConnected"].message
    assert "Reconciling" in found


def test_a_refused_deployment_stalls() -> None:
    workers = Condition("WorkersAvailable", False, "InvalidTemplate", "why")
    found = parts(workers=workers, refused=True)
    assert (found["Ready"].status, found["Ready"].reason) == (False, "InvalidTemplate")
    assert found["Stalled"].message == "why"


def test_dead_letters_condition_has_the_command_that_lists_them() -> None:
    found = parts(dead_letters=2)
    assert (found["DeadLetters"].status, found["DeadLetters"].reason) == (True, "Kept")
    assert found["DeadLetters"].message == (
        "2 messages in the dead queue; to list: kubectl exec -n system "
        "deploy/taskqueue-operator -- python3 -m taskqueue dead-letters list shop/thumbnails"
    )
    assert found["Ready"].status


def test_dead_letters_that_cannot_be_counted_are_unknown() -> None:
    assert parts(dead_letters=None)["DeadLetters"].status is None


def test_many_dead_letters_have_a_reason_of_their_own_and_the_command_too() -> None:
    condition = parts(dead_letters=3)["DeadLetters"]
    assert (condition.status, condition.reason) == (True, "ManyKept")
    assert "the broker's disk" in condition.message
    assert condition.message.endswith("dead-letters list shop/thumbnails")


@pytest.mark.parametrize(("count", "status"), [(None, None), (0, False), (12345, True)])
def test_many_finished_tasks_are_counted_and_the_message_says_what_to_do(
    count: int | None, status: bool | None
) -> None:
    found = parts(many_finished=count)
    condition = found["ManyFinishedTasks"]
    assert condition.status is status
    assert found["Ready"].status
    if status:
        assert condition.reason == "FinishedTasksKept"
        for part in ("12345", "namespace shop", "10000", "quota", "ttlSecondsAfterFinished"):
            assert part in condition.message
        assert "kubectl delete tasks.taskqueue.dev -n shop" in condition.message
        assert len(condition.message) <= STATUS_MESSAGE_LENGTH


@pytest.mark.parametrize(
    ("type_", "status", "reason", "well"),
    [
        ("BrokerConnected", False, "BrokerUnavailable", False),
        ("BrokerConnected", False, "ReadingInbox", None),
        ("ResultStoreReady", False, "SecretNotFound", False),
        ("ResultStoreReady", True, "SecretValid", True),
        ("WorkersAvailable", True, "Available", True),
        ("DeadLetters", True, "Kept", True),
        ("DeadLetters", True, "ManyKept", False),
        ("DeadLetters", None, "Unknown", None),
        ("ManyFinishedTasks", True, "FinishedTasksKept", False),
        ("ManyFinishedTasks", False, "Few", True),
        ("ManyFinishedTasks", None, "Unknown", None),
    ],
)
def test_trouble_is_reported_whether_the_condition_is_then_true_or_false(
    type_: str, status: bool | None, reason: str, well: bool | None
) -> None:
    judged = reported(Condition(type_, status, reason, "why"))
    assert judged == Condition(type_, well, reason, "why")


@pytest.mark.parametrize("type_", ["Ready", "ScalingActive", "HandlersMissing"])
def test_other_conditions_have_no_events(type_: str) -> None:
    assert reported(Condition(type_, False, "Some", "why")).status is None


def test_what_is_many_comes_from_the_environment() -> None:
    environment = {"TASKQUEUE_MANY_FINISHED_TASKS": "7", "TASKQUEUE_MANY_DEAD_LETTERS": ""}
    settings = ConditionSettings.from_environment(environment, operator_namespace="system")
    assert (settings.many_finished_tasks, settings.many_dead_letters) == (7, 1000)


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "many", "1e3", "\u0661"])
@pytest.mark.parametrize("name", ["TASKQUEUE_MANY_FINISHED_TASKS", "TASKQUEUE_MANY_DEAD_LETTERS"])
def test_what_is_many_is_a_number_above_zero(name: str, value: str) -> None:
    with pytest.raises(ValueError, match=f"{name}: .* use a whole number above 0"):
        ConditionSettings.from_environment({name: value}, operator_namespace="system")


def test_a_condition_keeps_its_time_while_its_value_lasts() -> None:
    transitions = ConditionTransitions()
    assert transitions.record((UP,), 1.0) == {"BrokerConnected": 1.0}
    assert transitions.record((replace(UP, reason="Other"),), 2.0) == {"BrokerConnected": 1.0}
    assert transitions.record((replace(UP, status=None),), 3.0) == {"BrokerConnected": 3.0}


ARCHIVED = replace(CONFIG, archive=ArchiveConfig(secret="archive"))


@pytest.mark.parametrize(
    ("state", "waiting", "behind", "status", "reason", "words"),
    [
        (SinkState(), None, False, None, "Connecting", "connecting"),
        (SinkState(True, "Connected"), 0, False, True, "Connected", "are written"),
        (SinkState(True, "Connected"), 1000, False, True, "Connected", "are written"),
        (SinkState(True, "Connected"), 1001, False, True, "Behind", "1001 ends of Tasks wait"),
        (SinkState(True, "Connected"), 0, True, True, "Backfilling", "stay until"),
        (SinkState(False, "Away", "x"), 7, False, False, "Away", "spec.archive: x; 7 ends"),
        (SinkState(False, "Away", "x"), 7, True, False, "Away", "outbox is full"),
        (SinkState(False, "Away", "x"), None, False, False, "Away", "spec.archive: x"),
    ],
)
def test_the_archive_has_a_condition(
    state: SinkState,
    waiting: int | None,
    behind: bool,
    status: bool | None,
    reason: str,
    words: str,
) -> None:
    (condition,) = archive_connected(ARCHIVED, state, waiting=waiting, is_behind=behind)
    assert (condition.status, condition.reason) == (status, reason)
    assert words in condition.message
    assert reported(condition).status is status


def test_there_is_none_without_an_archive() -> None:
    state = SinkState(True, "Connected")
    assert archive_connected(CONFIG, state, waiting=0, is_behind=False) == ()
    assert archive_connected(ARCHIVED, None, waiting=0, is_behind=False) == ()
