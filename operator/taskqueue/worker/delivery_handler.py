"""From a delivery to a run, or to an answer without one.

A delivery is not run when its token is already here (it is added to that run), has ended lately
(the outcome is published again), was named by a command (it is answered as stopped), or breaks the
contract (it is dead-lettered). Each answer is published until confirmed, and only then is the
delivery acknowledged.
"""

from __future__ import annotations

from functools import partial

from taskqueue.amqp.channel import Delivery
from taskqueue.contract.names import ContractError
from taskqueue.contract.outgoing import outcome_message
from taskqueue.contract.work import DirectMessage, WorkMessage, deliveries_so_far, parse_work
from taskqueue.logs import EventLog
from taskqueue.model.command import CommandKind
from taskqueue.worker.acknowledger import Acknowledger
from taskqueue.worker.attempt_events import payload_of, stopped_event, work_attempt
from taskqueue.worker.command_log import CommandLog
from taskqueue.worker.executor import AttemptRequest
from taskqueue.worker.outcome_cache import CachedOutcome
from taskqueue.worker.runs import DirectRun, Run, RunServices, TaskRun
from taskqueue.worker.settings import WorkerSettings

log = EventLog("taskqueue.worker")


class DeliveryHandler:
    """Turns deliveries into runs, and answers those that must not run.

    Args:
        settings: of the worker.
        services: the runs here and the outcomes of ended ones.
        commands: the commands seen so far.
    """

    def __init__(
        self, settings: WorkerSettings, services: RunServices, commands: CommandLog
    ) -> None:
        self._settings = settings
        self._services = services
        self._commands = commands

    def handle(self, acknowledger: Acknowledger, delivery: Delivery) -> Run | None:
        """Return what is to be run, or None when the delivery is answered or added to a run."""
        acknowledger.received(delivery.delivery_tag)
        try:
            message = parse_work(delivery.properties, delivery.body)
            if isinstance(message, DirectMessage):
                run: Run = self._direct_run(delivery, message)
            elif self._answer_known(acknowledger, delivery, message):
                return None
            else:
                run = self._task_run(delivery, message)
        except ContractError as error:
            self._dead_letter(acknowledger, delivery, str(error))
            return None
        run.add_delivery(acknowledger, delivery)
        return run

    def _answer_known(
        self, acknowledger: Acknowledger, delivery: Delivery, message: WorkMessage
    ) -> bool:
        """Answer a delivery whose token is here, ended lately or was named by a command."""
        token = message.token
        run = self._services.by_token.get(token)
        if run is not None:
            run.add_delivery(acknowledger, delivery)
            return True
        outcome = self._services.outcome_cache.get(token)
        if outcome is not None:
            self._answer("outcome.repeated", acknowledger, delivery, message, outcome)
            return True
        command = self._commands.get(token)
        if command is not None:
            outcome = stopped_event(message, command, worker=self._services.worker, seconds=0.0)
            event = "task.cancelled" if command is CommandKind.CANCEL else "task.released"
            self._answer(event, acknowledger, delivery, message, outcome)
            return True
        return False

    def _answer(
        self,
        event: str,
        acknowledger: Acknowledger,
        delivery: Delivery,
        message: WorkMessage,
        outcome: CachedOutcome,
    ) -> None:
        log.info(
            event,
            namespace=message.namespace,
            task=message.task,
            uid=message.uid,
            attempt=message.attempt,
            reason="not run: its message came after the end of it",
        )
        self._services.outbox.publish(
            outcome_message(outcome.key, outcome.body),
            partial(acknowledger.confirm, delivery.delivery_tag),
        )

    def _task_run(self, delivery: Delivery, message: WorkMessage) -> Run:
        deliveries = deliveries_so_far(delivery.properties, redelivered=delivery.redelivered)
        attempt = work_attempt(message, payload_of(message))
        return TaskRun(self._services, message, attempt, delivery, deliveries)

    def _direct_run(self, delivery: Delivery, message: DirectMessage) -> Run:
        deliveries = deliveries_so_far(delivery.properties, redelivered=delivery.redelivered)
        attempt = AttemptRequest(
            handler=message.handler,
            payload=message.payload,
            task=f"{self._settings.namespace}/{self._settings.queue}",
            uid=message.correlation_id or "",
            queue=self._settings.queue,
            attempt=min(deliveries + 1, self._settings.direct_max_deliveries),
            max_attempts=self._settings.direct_max_deliveries,
            timeout_seconds=self._settings.direct_timeout_seconds,
        )
        return DirectRun(self._services, attempt, delivery, deliveries)

    def _dead_letter(self, acknowledger: Acknowledger, delivery: Delivery, reason: str) -> None:
        log.warning(
            "message.dead_lettered",
            namespace=self._settings.namespace,
            queue=self._settings.queue,
            reason=reason,
            hint="it is in the dead-letter queue, with the reason in its tq-error header",
        )
        self._services.outbox.publish(
            self._services.dead_letter(delivery, reason),
            partial(acknowledger.confirm, delivery.delivery_tag),
        )
