"""The workers' credentials: whatever fails, the broker accepts those in the Secret."""

from __future__ import annotations

import asyncio
import base64
from dataclasses import replace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskqueue.contract.worker_users import permissions, worker_users
from taskqueue.controller.queues.user_sweeper import SWEEP_SECONDS, UserSweeper
from taskqueue.controller.queues.worker_credentials import BrokerAccess, WorkerCredentials
from taskqueue.direct.management_http import ManagementError
from taskqueue.kubernetes.client import ApiClient, ApiError
from taskqueue.limits import FORMER_USER_SECONDS, ROTATION_SECONDS_LEAST
from taskqueue.model.queue import CredentialsPolicy, CredentialsType, QueueConfig
from tests.unit.direct.fake_management import BROKER, ENDPOINT, FakeManagement

SHARED = QueueConfig(
    namespace="shop", name="q", uid="u", generation=1, connection_secret="rabbit", template={}
)
ROTATION = 3600
MANAGED = replace(
    SHARED,
    credentials=CredentialsPolicy(type=CredentialsType.MANAGED, rotation_seconds=ROTATION),
)
OWN = replace(SHARED, credentials=CredentialsPolicy(type=CredentialsType.SECRET, secret="own"))
ACCESS = BrokerAccess(parameters=BROKER, management=ENDPOINT)
NAMES = worker_users("default", "v", "shop", "q")
PATH = "/api/v1/namespaces/shop/secrets/q-worker"


class FakeApi:
    """Secrets by path; `failure` is raised once by the next request."""

    def __init__(self, broker: FakeManagement) -> None:
        self.secrets: dict[str, dict[str, Any]] = {}
        self.failure: ApiError | None = None
        self.forbids_writing = False
        self._broker = broker

    def _begin(self) -> None:
        failure, self.failure = self.failure, None
        if failure is not None:
            raise failure

    async def get(self, path: str) -> dict[str, Any]:
        self._begin()
        if path not in self.secrets:
            raise ApiError(404, "NotFound", "no")
        return self.secrets[path]

    async def apply(self, path: str, body: dict[str, Any], *, manager: str) -> dict[str, Any]:
        if self.forbids_writing:
            raise ApiError(403, "Forbidden", "secrets is forbidden")
        self._begin()
        self.secrets[path] = body
        user, password = self.login(path)
        assert self._broker.logs_in(user, password), "a worker that reads it would be refused"
        assert self._broker.permissions["v", user] == permissions("shop", "q")
        return body

    def login(self, path: str = PATH) -> tuple[str, str]:
        data = {key: base64.b64decode(value) for key, value in self.secrets[path]["data"].items()}
        return data["username"].decode(), data["password"].decode()

    def put(self, path: str, owner: str = "u", **data: str) -> None:
        self.secrets[path] = {
            "metadata": {"ownerReferences": [{"uid": owner}]},
            "data": {key: base64.b64encode(text.encode()).decode() for key, text in data.items()},
        }


class Case:
    def __init__(self) -> None:
        self.broker = FakeManagement()
        self.api = FakeApi(self.broker)
        self.now = 1_000.0
        self.managed: set[tuple[str, str]] | None = None
        self.restart()

    def restart(self) -> None:
        """Have another operator lead, which knows nothing."""
        self.credentials = WorkerCredentials(
            cast(ApiClient, self.api),
            installation="default",
            sweeper=UserSweeper("default", lambda: self.managed),
            monotonic=lambda: self.now,
            clock=lambda: 1e9 + self.now,
            connect=self.broker.connect,
        )

    async def step(
        self, config: QueueConfig = MANAGED, access: BrokerAccess | None = ACCESS, by: float = 60.0
    ) -> None:
        self.now += by
        self.credentials.reconcile(config, access, ("shop", "rabbit"))
        if (step := self.credentials._step) is not None:
            await asyncio.wait({step})
        assert self.broker.open == 0

    @property
    def condition(self) -> tuple[bool | None, str]:
        return self.credentials.condition.status, self.credentials.condition.reason


async def test_shared_credentials_are_said_to_be_and_make_nothing() -> None:
    case = Case()
    await case.step(SHARED)
    assert case.condition == (True, "Shared")
    assert case.credentials.secret == ("shop", "rabbit")
    assert (case.broker.asked, case.api.secrets) == ([], {})
    await case.step(replace(SHARED, template=None))
    assert case.credentials.condition.reason == "WorkersElsewhere"


async def test_managed_credentials_are_a_user_in_a_secret_that_the_taskqueue_owns() -> None:
    case = Case()
    await case.step()
    assert case.condition == (True, "Managed")
    assert case.credentials.secret == ("shop", "q-worker")
    user, password = case.api.login()
    assert user == NAMES[0]
    assert case.broker.logs_in(user, password)
    (owner,) = case.api.secrets[PATH]["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["uid"]) == ("TaskQueue", "u")
    assert password not in repr(case.credentials.condition)
    await case.step()
    assert case.api.login() == (user, password)


async def test_a_rotation_hands_out_the_other_user_and_closes_no_connection() -> None:
    case = Case()
    await case.step()
    first = case.api.login()
    await case.step(by=ROTATION)
    second = case.api.login()
    assert (first[0], second[0]) == NAMES
    assert case.broker.logs_in(*first)  # workers may not have read the Secret yet
    assert case.broker.logs_in(*second)
    await case.step(by=FORMER_USER_SECONDS)
    assert not case.broker.logs_in(*first)
    assert case.broker.logs_in(*second)
    assert first[0] in case.broker.users  # else the broker would close its connections
    await case.step(by=ROTATION)
    third = case.api.login()
    assert third[0] == first[0]
    assert third[1] not in (first[1], second[1])
    assert not [request for request in case.broker.asked if request.startswith("DELETE users")]


async def test_without_rotation_they_stay() -> None:
    case = Case()
    config = replace(MANAGED, credentials=CredentialsPolicy(type=CredentialsType.MANAGED))
    await case.step(config)
    before = case.api.login()
    await case.step(config, by=10.0 * ROTATION)
    assert case.api.login() == before


async def test_another_leader_goes_on_where_the_former_was() -> None:
    case = Case()
    await case.step()
    first = case.api.login()
    case.restart()
    assert case.credentials.secret is None
    await case.step()
    assert case.api.login() == first
    assert case.credentials.secret == ("shop", "q-worker")
    await case.step(by=ROTATION)
    case.restart()
    await case.step(by=FORMER_USER_SECONDS)
    assert not case.broker.logs_in(*first)


async def test_a_broker_that_has_lost_the_user_gets_it_again() -> None:
    case = Case()
    await case.step()
    case.broker.delete_user(NAMES[0])
    await case.step()
    assert case.broker.logs_in(*case.api.login())


async def test_another_address_of_the_broker_reaches_the_workers() -> None:
    case = Case()
    await case.step()
    login = case.api.login()
    moved = replace(ACCESS, parameters=replace(BROKER, host="other", tls=True, ca_certificate="ca"))
    await case.step(access=moved)
    data = {
        key: base64.b64decode(value).decode()
        for key, value in case.api.secrets[PATH]["data"].items()
    }
    assert (data["host"], data["tls"], data["ca.crt"]) == ("other", "true", "ca")
    assert case.api.login() == login


async def test_the_operators_client_certificate_is_not_handed_on() -> None:
    case = Case()
    parameters = replace(BROKER, tls=True, client_certificate="cert", client_key="key")
    await case.step(access=replace(ACCESS, parameters=parameters))
    assert not {"tls.crt", "tls.key"} & case.api.secrets[PATH]["data"].keys()


#: What may happen to a step: time passes, the operator is replaced, requests fail.
EVENTS = st.lists(
    st.tuples(
        st.sampled_from([0.0, 60.0, 299.0, 300.0, float(ROTATION_SECONDS_LEAST), float(ROTATION)]),
        st.sampled_from(["", "restart", "api", "lost user"]),
        st.none() | st.integers(0, 8),
    ),
    max_size=12,
)


@given(events=EVENTS)
def test_whatever_fails_the_secret_has_a_login_that_the_broker_accepts(
    events: list[tuple[float, str, int | None]],
) -> None:
    case = Case()
    fails_at: int | None = None

    def before(request: str) -> None:
        if fails_at is not None and len(case.broker.asked) > fails_at:
            raise ManagementError("the connection failed")

    async def live() -> None:
        nonlocal fails_at
        for seconds, event, fails_at in events:
            case.broker.asked.clear()
            if event == "restart":
                case.restart()
            elif event == "api":
                case.api.failure = ApiError(500, "InternalError", "no")
            elif event == "lost user":
                case.broker.users.pop(NAMES[1], None)
            await case.step(by=seconds)
            if PATH in case.api.secrets and event != "lost user" and fails_at is None:
                case.api.failure = None
        fails_at, case.api.failure = None, None
        await case.step()
        case.broker.asked.clear()
        await case.step(by=FORMER_USER_SECONDS)

    case.broker.before = before
    asyncio.run(live())
    assert case.condition == (True, "Managed")
    login = case.api.login()
    assert case.broker.logs_in(*login)
    assert case.broker.permissions["v", login[0]] == permissions("shop", "q")
    (other,) = set(NAMES) - {login[0]}
    assert not case.broker.users.get(other)


# What is missing, and what is said of it.


async def test_a_missing_management_uri_is_said() -> None:
    case = Case()
    await case.step(access=replace(ACCESS, management=None))
    assert case.condition == (False, "ManagementMissing")
    assert "add the key managementUri" in case.credentials.condition.message
    assert case.credentials.secret is None


async def test_an_unusable_management_uri_is_said() -> None:
    case = Case()
    problem = "Secret shop/rabbit: key managementUri names no host"
    await case.step(access=replace(ACCESS, management=None, problem=problem))
    assert case.credentials.condition.message == problem


async def test_a_user_that_may_not_manage_users_is_named() -> None:
    case = Case()

    def refuse(request: str) -> None:
        raise ManagementError("answered 401", 401)

    case.broker.before = refuse
    await case.step()
    assert case.condition == (False, "ManagementFailed")
    message = case.credentials.condition.message
    assert "at http://rabbit:15672 (managementUri)" in message
    assert "check the password of user admin, and give that user the tag administrator" in message
    case.broker.before = lambda request: None
    await case.step(by=10.0)
    assert case.condition == (True, "Managed")


async def test_workers_go_on_with_what_they_have_while_the_management_api_is_away() -> None:
    case = Case()
    await case.step()
    case.restart()

    def away(request: str) -> None:
        raise ManagementError("nothing listens there")

    case.broker.before = away
    await case.step()
    assert case.condition == (False, "ManagementFailed")
    assert case.credentials.secret == ("shop", "q-worker")


async def test_a_secret_of_somebody_else_is_left_alone() -> None:
    case = Case()
    case.api.put(PATH, owner="another", username="mine", password="pw")
    before = dict(case.api.secrets[PATH])
    await case.step()
    assert case.condition == (False, "SecretNotOwned")
    assert "Secret shop/q-worker" in case.credentials.condition.message
    assert case.api.secrets[PATH] == before
    assert not set(NAMES) & case.broker.users.keys()


async def test_a_right_that_is_missing_is_named() -> None:
    case = Case()
    case.api.forbids_writing = True
    await case.step()
    assert case.condition == (False, "SecretForbidden")
    assert "bind the ClusterRole taskqueue-operator-credentials" in (
        case.credentials.condition.message
    )
    case.api.forbids_writing = False
    await case.step(by=10.0)
    assert case.condition == (True, "Managed")


async def test_an_api_server_that_is_away_changes_nothing() -> None:
    case = Case()
    await case.step()
    login = case.api.login()
    case.api.failure = ApiError(0, "Unreachable", "no")
    await case.step(by=ROTATION)
    assert case.condition == (True, "Managed")
    await case.step(by=10.0)
    assert case.api.login() != login


# A Secret of the user's.


@pytest.mark.parametrize(
    ("data", "condition", "words"),
    [
        ({}, (False, "SecretNotFound"), "does not exist: create it"),
        ({"host": "r", "username": "w"}, (False, "SecretInvalid"), "key password is missing"),
        ({"host": "r", "username": "op", "password": "p"}, (False, "SameUser"), "the operator, op"),
        ({"host": "r", "username": "w", "password": "p"}, (True, "Secret"), "the workers are w"),
    ],
)
async def test_a_secret_of_the_users_is_used_and_judged(
    data: dict[str, str], condition: tuple[bool, str], words: str
) -> None:
    case = Case()
    if data:
        case.api.put("/api/v1/namespaces/shop/secrets/own", **data)
    await case.step(OWN)
    assert case.condition == condition
    assert words in case.credentials.condition.message
    assert case.credentials.secret == ("shop", "own")
    assert case.broker.asked == []


# The end.


async def test_both_users_go_with_the_taskqueue() -> None:
    case = Case()
    await case.step()
    await case.step(by=ROTATION)
    assert set(NAMES) <= case.broker.users.keys()
    for _ in range(2):
        await case.credentials.delete_users(MANAGED, ACCESS)
        assert case.broker.users == {"op": "p"}


async def test_users_that_may_be_left_are_not_forgotten() -> None:
    case = Case()
    await case.step()
    with pytest.raises(ManagementError, match="its Secret is missing"):
        await case.credentials.delete_users(MANAGED, None)
    with pytest.raises(ManagementError, match="no managementUri"):
        await case.credentials.delete_users(MANAGED, replace(ACCESS, management=None))
    del case.api.secrets[PATH]
    await case.credentials.delete_users(MANAGED, replace(ACCESS, management=None))


# What is left over.


async def test_users_of_taskqueues_that_do_not_exist_are_deleted_at_the_start() -> None:
    case = Case()
    gone = worker_users("default", "v", "shop", "gone")
    others = [
        *worker_users("team-a", "v", "shop", "gone"),
        *worker_users("default", "w", "shop", "gone"),
        "taskqueue-worker",
    ]
    case.broker.users |= dict.fromkeys([*gone, *others], "pw")
    await case.step()  # not all TaskQueues are known
    assert set(gone) <= case.broker.users.keys()
    case.managed = {("shop", "q")}
    await case.step()
    assert case.broker.users.keys() == {"op", NAMES[0], *others}


async def test_users_that_become_left_over_are_deleted_when_pods_were_replaced() -> None:
    case = Case()
    case.managed = {("shop", "q")}
    await case.step()
    case.managed = set()
    await case.step(SHARED)
    await case.step(SHARED, by=SWEEP_SECONDS)
    assert NAMES[0] in case.broker.users
    await case.step(SHARED, by=SWEEP_SECONDS)
    assert NAMES[0] not in case.broker.users


async def test_a_shared_taskqueue_looks_once_and_says_nothing_of_a_refusal(
    caplog: pytest.LogCaptureFixture,
) -> None:
    case = Case()
    case.managed = set()

    def refuse(request: str) -> None:
        raise ManagementError("answered 401", 401)

    case.broker.before = refuse
    await case.step(SHARED)
    await case.step(SHARED, by=SWEEP_SECONDS)
    assert case.broker.asked == ["GET users"]
    assert caplog.records == []
    assert case.condition == (True, "Shared")
