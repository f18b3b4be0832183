"""Who the workers of one TaskQueue are at the broker: `spec.workers.credentials`.

Managed credentials are a broker user of their own, in a Secret that the TaskQueue owns. Invariants:

* The Secret names a user only after the broker has it, with its permissions. So a worker that has
  read the Secret can log in.
* Two users take turns. A rotation gives the idle one a new password, and the Secret that user; the
  other's password is revoked `FORMER_USER_SECONDS` later, when all workers have read the Secret.
  No user is deleted, so no connection is closed: what runs, runs on.
* Whatever fails is tried again, and stands in `WorkerCredentials.condition`. Each step can be
  repeated, also by the next leader: what it has to know is in the Secret.

The steps wait for a foreign endpoint, so they run beside the TaskQueue's own loop.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from taskqueue.amqp.parameters import BrokerConfigurationError, BrokerParameters, ManagementEndpoint
from taskqueue.contract.worker_users import worker_users
from taskqueue.controller.queues.user_sweeper import UserSweeper
from taskqueue.direct.broker_users import BrokerUsers
from taskqueue.direct.management_http import ManagementClient, ManagementError
from taskqueue.kubernetes.client import ApiClient, ApiError
from taskqueue.kubernetes.ownership import worker_name
from taskqueue.kubernetes.secret_values import SecretUnusable, read_secret
from taskqueue.kubernetes.worker_secret import (
    WorkerSecret,
    apply_worker_secret,
    read_worker_secret,
)
from taskqueue.limits import FORMER_USER_SECONDS
from taskqueue.logs import EventLog
from taskqueue.model.queue import Condition, CredentialsType, QueueConfig
from taskqueue.timestamps import Clock, to_rfc3339

log = EventLog(__name__)

#: What failed is tried again after this, in seconds.
_RETRY_SECONDS = 10.0
#: While nothing else is due, it is looked this often whether Secret and user are there.
_CHECK_SECONDS = 60.0
_PASSWORD_BYTES = 32
_TYPE = "CredentialsReady"


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerAccess:
    """How the operator itself reaches a TaskQueue's broker.

    Attributes:
        parameters: by AMQP.
        management: by the management API; None: the Secret names none, or it cannot be used.
        problem: why it cannot be used; "" otherwise.
    """

    parameters: BrokerParameters
    management: ManagementEndpoint | None
    problem: str = ""


class WorkerCredentials:
    """Keeps the credentials of one TaskQueue's workers, and says what they are.

    Args:
        client: for the API server.
        installation: in the names of broker users.
        sweeper: deletes what other TaskQueues have left over.
        monotonic: seconds that never jump.
        clock: wall time, in seconds.
        connect: makes the client of a management API.

    Attributes:
        condition: CredentialsReady.
        secret: (namespace, name) of the Secret that the pods use; None: it is not known, or was not
            made yet.
    """

    def __init__(
        self,
        client: ApiClient,
        *,
        installation: str,
        sweeper: UserSweeper,
        monotonic: Callable[[], float],
        clock: Clock = time.time,
        connect: Callable[[ManagementEndpoint], ManagementClient] = ManagementClient,
    ) -> None:
        self.condition = Condition(_TYPE, None, "Connecting", "the broker is not known yet")
        self.secret: tuple[str, str] | None = None
        self._client = client
        self._installation = installation
        self._sweeper = sweeper
        self._now = monotonic
        self._clock = clock
        self._connect = connect
        self._step: asyncio.Task[None] | None = None
        #: What the last step was for: it does not wait for its turn when that has changed.
        self._served: Any = None
        self._due = 0.0
        #: The user and password that are known to be right at the broker.
        self._put: tuple[BrokerAccess, str, str] | None = None
        #: When the credentials were made whose predecessor cannot log in any more.
        self._revoked_for: float | None = None
        #: Whether this process has known managed ones, which may have left users.
        self._was_managed = False

    @property
    def is_missing(self) -> bool:
        """Whether no worker can be started, because it would have no credentials."""
        return self.secret is None and self.condition.status is False

    def reconcile(
        self, config: QueueConfig, access: BrokerAccess | None, secret: tuple[str, str] | None
    ) -> None:
        """Take the next step, if one is due and none is being taken.

        Args:
            config: what the TaskQueue asks for.
            access: how the operator reaches the broker; None: not known yet.
            secret: (namespace, name) of the operator's own connection Secret, if known.
        """
        kind = config.credentials.type
        if kind is CredentialsType.SHARED:
            self.secret, self.condition = secret, _shared(config)
        served = (config.uid, config.credentials, access)
        if served != self._served:
            if self._served is not None and served[:2] != self._served[:2]:
                self._forget(config)
            self._served, self._due = served, 0.0
        self._was_managed |= kind is CredentialsType.MANAGED
        if kind is not CredentialsType.SECRET and access is None:
            return
        if self._now() < self._due or (self._step is not None and not self._step.done()):
            return
        self._due = self._now() + _CHECK_SECONDS
        if kind is not CredentialsType.SHARED or self._is_sweep_due(access):
            self._step = asyncio.get_running_loop().create_task(
                self._take_step(config, access),
                name=f"credentials of TaskQueue {config.namespace}/{config.name}",
            )

    async def close(self) -> None:
        """Take no more steps."""
        if self._step is not None:
            self._step.cancel()
            await asyncio.wait({self._step})

    async def delete_users(self, config: QueueConfig, access: BrokerAccess | None) -> None:
        """Delete the users of a TaskQueue that is being deleted.

        Raises:
            ApiError, ManagementError, SecretUnusable: they may still be there; try again.
        """
        if access is None:
            raise ManagementError("the broker is not known: its Secret is missing")
        if access.management is None:
            if await read_worker_secret(self._client, config) is None:
                return  # none was ever made
            raise ManagementError(access.problem or "the Secret of the broker has no managementUri")
        client = self._connect(access.management)
        try:
            await BrokerUsers(client).delete(self._names(config, access))
        except ManagementError as problem:
            raise ManagementError(_explain(access.management, problem)) from None
        finally:
            await client.close()

    def _forget(self, config: QueueConfig) -> None:
        self._put = self._revoked_for = None
        if config.credentials.type is not CredentialsType.SHARED:
            self.secret = None

    def _names(self, config: QueueConfig, access: BrokerAccess) -> tuple[str, str]:
        return worker_users(self._installation, access.parameters.virtual_host, *config.key)

    async def _take_step(self, config: QueueConfig, access: BrokerAccess | None) -> None:
        try:
            match config.credentials.type:
                case CredentialsType.SECRET:
                    self.condition = await self._check_secret(config, access)
                case CredentialsType.MANAGED:
                    assert access is not None  # noqa: S101  (else no step is taken)
                    self.condition = await self._manage(config, access)
            if access is not None and access.management and self._is_sweep_due(access):
                await self._sweep(access.management)
        except SecretUnusable as problem:
            self._on_problem(config, problem.reason, str(problem))
        except ManagementError as problem:
            self._on_problem(config, "ManagementFailed", problem.text)
        except ApiError as problem:
            self._due = self._now() + (problem.retry_after or _RETRY_SECONDS)
        except Exception as problem:  # a step that ends so would be silent
            log.error("credentials.step_failed", exc_info=problem, **_fields(config))
            self._due = self._now() + _RETRY_SECONDS

    def _on_problem(self, config: QueueConfig, reason: str, message: str) -> None:
        self._due = self._now() + _RETRY_SECONDS
        if self.condition.message != message:
            log.warning("credentials.failed", **_fields(config), reason=reason, error=message)
        self.condition = Condition(_TYPE, False, reason, message)

    # A Secret of the user's.

    async def _check_secret(self, config: QueueConfig, access: BrokerAccess | None) -> Condition:
        """Look at the Secret; its pods use it whatever it says, as soon as it is there."""
        name = config.credentials.secret
        self.secret = (config.namespace, name)
        where = f"Secret {config.namespace}/{name} (spec.workers.credentials.secretRef)"
        found = await read_secret(
            self._client,
            self.secret,
            where=where,
            advice="create it with the keys of a connection Secret, for a broker user with the "
            "permissions of a worker",
        )
        try:
            parameters = BrokerParameters.from_mapping(found.data)
        except BrokerConfigurationError as problem:
            raise SecretUnusable("SecretInvalid", f"{where}: {problem}") from None
        if access is not None and parameters.username == access.parameters.username:
            return Condition(
                _TYPE,
                False,
                "SameUser",
                f"{where} has the user of the operator, {parameters.username}: make one with the "
                "permissions of a worker (docs/reference/message-contract.md)",
            )
        text = f"the workers are {parameters.username} at the broker, by Secret {name}"
        return Condition(_TYPE, True, "Secret", text)

    # A user of the operator's.

    async def _manage(self, config: QueueConfig, access: BrokerAccess) -> Condition:
        names = self._names(config, access)
        secret = await read_worker_secret(self._client, config)
        if secret is not None and secret.username not in names:
            secret = None  # of another virtual host
        if secret is not None:
            self.secret = (config.namespace, worker_name(config.name))
        endpoint = access.management
        if endpoint is None:
            raise SecretUnusable(
                "ManagementMissing",
                access.problem
                or "the operator cannot make a broker user for the workers: add the key "
                "managementUri, with a user that has the tag administrator, to the Secret of "
                "spec.broker",
            )
        client = self._connect(endpoint)
        try:
            secret = await self._put_user(config, access, secret, BrokerUsers(client))
        except ManagementError as problem:
            raise ManagementError(_explain(endpoint, problem)) from None
        finally:
            await client.close()
        return Condition(_TYPE, True, "Managed", _describe(config, secret))

    async def _put_user(
        self,
        config: QueueConfig,
        access: BrokerAccess,
        secret: WorkerSecret | None,
        users: BrokerUsers,
    ) -> WorkerSecret:
        """Have the broker and the Secret agree on a user; return what the Secret has then."""
        names, now = self._names(config, access), self._clock()
        owner = {"namespace": config.namespace, "queue": config.name}
        if secret is None or _is_over(config, secret, now):
            idle = names[1] if secret is not None and secret.username == names[0] else names[0]
            password = secrets.token_urlsafe(_PASSWORD_BYTES)
            await users.put(idle, password, **owner)
            made = WorkerSecret(data=access.parameters.to_mapping(idle, password), rotated=now)
            await apply_worker_secret(self._client, config, made.data, rotated=now)
            self.secret = (config.namespace, worker_name(config.name))
            log.info("credentials.rotated", **_fields(config), user=idle)
            secret = made
        elif self._put != (access, secret.username, secret.password) or not await users.exists(
            secret.username
        ):
            await users.put(secret.username, secret.password, **owner)
            data = access.parameters.to_mapping(secret.username, secret.password)
            if data != secret.data:
                await apply_worker_secret(self._client, config, data, rotated=secret.rotated)
        self._put = (access, secret.username, secret.password)
        if self._revoked_for != secret.rotated and now - secret.rotated >= FORMER_USER_SECONDS:
            await users.revoke_password(*(set(names) - {secret.username}))
            self._revoked_for = secret.rotated
        return secret

    def _is_sweep_due(self, access: BrokerAccess | None) -> bool:
        endpoint = None if access is None else access.management
        return endpoint is not None and self._sweeper.is_due(
            endpoint, self._now(), again=self._was_managed
        )

    async def _sweep(self, endpoint: ManagementEndpoint) -> None:
        client = self._connect(endpoint)
        try:
            await self._sweeper.sweep(BrokerUsers(client), endpoint, self._now())
        except ManagementError as problem:
            if self._was_managed:  # nothing else needs a user that may list users
                log.warning("broker_user.sweep_failed", endpoint=endpoint.url, error=problem.text)
        finally:
            await client.close()


def _is_over(config: QueueConfig, secret: WorkerSecret, now: float) -> bool:
    """Return whether the credentials have been used for long enough."""
    if not secret.password:
        return True
    seconds = config.credentials.rotation_seconds
    return seconds is not None and now - secret.rotated >= seconds


def _shared(config: QueueConfig) -> Condition:
    if config.template is None:
        text = "the operator runs no workers: those elsewhere have what they are given"
        return Condition(_TYPE, None, "WorkersElsewhere", text)
    return Condition(
        _TYPE,
        True,
        "Shared",
        "the workers, and all that they run, have the operator's own broker user: where they are "
        "not to be trusted with it, set spec.workers.credentials to Managed or Secret",
    )


def _describe(config: QueueConfig, secret: WorkerSecret) -> str:
    text = f"the workers are {secret.username} at the broker, since {to_rfc3339(secret.rotated)}"
    seconds = config.credentials.rotation_seconds
    return text if seconds is None else f"{text}; rotated every {seconds} s"


def _explain(endpoint: ManagementEndpoint, problem: ManagementError) -> str:
    """Return what an endpoint did not do, as whom, and what to do."""
    why = problem.text
    if problem.status in (401, 403):
        why = (
            f"answered {problem.status}: check the password of user {endpoint.username}, and give "
            "that user the tag administrator"
        )
    return f"broker users cannot be managed at {endpoint.url} (managementUri): {why}"


def _fields(config: QueueConfig) -> dict[str, Any]:
    return {"namespace": config.namespace, "queue": config.name}
