"""The conditions of a TaskQueue, one module each; pure.

WorkersAvailable and ScalingActive are in `taskqueue.controller.pool.conditions`.
"""

from __future__ import annotations

from taskqueue.controller.queues.conditions.broker_connected import broker_connected
from taskqueue.controller.queues.conditions.dead_letters import dead_letters
from taskqueue.controller.queues.conditions.dispatch_limited import dispatch_limited
from taskqueue.controller.queues.conditions.handlers_missing import handlers_missing
from taskqueue.controller.queues.conditions.many_finished_tasks import many_finished_tasks
from taskqueue.controller.queues.conditions.producers_outdated import producers_outdated
from taskqueue.controller.queues.conditions.ready import ready
from taskqueue.controller.queues.conditions.settings import ConditionSettings
from taskqueue.controller.tasks.missing_handlers import MissingHandlers
from taskqueue.model.queue import Condition, QueueConfig


def conditions(
    config: QueueConfig,
    *,
    broker: Condition,
    credentials: Condition,
    credentials_missing: bool,
    workers: Condition,
    scaling: Condition,
    refused: bool,
    missing: MissingHandlers,
    dead_letter_count: int | None,
    many_finished: int | None,
    settings: ConditionSettings,
    misplaced_seconds: float | None,
    limited_by: str = "",
    results: Condition | None = None,
    sinks: tuple[Condition, ...] = (),
) -> tuple[Condition, ...]:
    """Return all conditions: Ready first, then what it comes from.

    Args:
        config: what the TaskQueue asks for.
        broker: BrokerConnected, of the broker session.
        credentials: CredentialsReady, of the same.
        credentials_missing: no worker can be started without them.
        workers: WorkersAvailable.
        scaling: ScalingActive.
        refused: the API server rejects the workload.
        missing: the handlers that no worker knows.
        dead_letter_count: messages in the dead queue, None: unknown.
        many_finished: finished Tasks of the namespace; 0: few, None: unknown.
        settings: of the operator.
        misplaced_seconds: how long ago a direct message came by the exchange for work; None: never.
        limited_by: the rate limit that holds all waiting Tasks back; "": none does.
        results: ResultStoreReady, None: there is no store.
        sinks: ArchiveConnected and WebhooksDelivered, where there are such.
    """
    broker = broker_connected(config, broker)
    dead = dead_letters(config, dead_letter_count, settings)
    finished = many_finished_tasks(config, many_finished, settings.many_finished_tasks)
    producers = producers_outdated(config, misplaced_seconds)
    handlers = handlers_missing(missing)
    cause = credentials if credentials_missing else workers
    own, *progress = ready(
        config, broker=broker, workers=cause, refused=refused or credentials_missing
    )
    limited = dispatch_limited(config, limited_by)
    others = (credentials, handlers, dead, finished, producers, *limited)
    stores = () if results is None else (results,)
    return (own, broker, workers, scaling, *sinks, *others, *stores, *progress)
