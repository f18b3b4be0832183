"""From a delivery to a run, or to an answer without one.

A delivery is not run when its token is already here (it belongs to that run), has ended lately
(the outcome is published again), was named by a command (it is answered as stopped), or breaks the
contract (it is dead-lettered). Each answer is published until confirmed, and only then is the
delivery acknowledged.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
from taskqueue.worker.direct_limits import DirectLimits
from taskqueue.worker.executor import AttemptRequest
from taskqueue.worker.outcome_cache import CachedOutcome
from taskqueue.worker.run_reporter import RunReporter
from taskqueue.worker.runs import DirectRun, TaskRun
from taskqueue.worker.settings import WorkerSettings

log = EventLog("taskqueue.worker")


class DeliveryHandler:
    """Turns deliveries into runs, and answers those that must not run.

    Args:
        settings: of the worker.
        reporter: publishes answers, and knows the outcomes of ended runs.
        commands: the commands seen so far.
        by_token: the ids of runs whose token must not run a second time.
        is_executed: whether an earlier run of a token, disowned by now, is still executed.
        on_checkpoint: called with what the handler of a message's run saves.

    Attributes:
        parked: messages moved to the dead queue because they cannot be read.
    """

    def __init__(
        self,
        settings: WorkerSettings,
        reporter: RunReporter,
        commands: CommandLog,
        by_token: Mapping[str, int],
        *,
        is_executed: Callable[[str], bool],
        on_checkpoint: Callable[[WorkMessage, bytes], None],
    ) -> None:
        self.parked = 0
        self._settings = settings
        self._reporter = reporter
        self._commands = commands
        self._by_token = by_token
        self._is_executed = is_executed
        self._on_checkpoint = on_checkpoint
        self._direct_limits = DirectLimits(settings)
        self._direct_task = f"{settings.namespace}/{settings.queue}"

    def handle(
        self, acknowledger: Acknowledger, delivery: Delivery
    ) -> TaskRun | DirectRun | int | None:
        """Return what is to be run, or the id of the run it belongs to, or None: it is answered."""
        acknowledger.received(delivery.delivery_tag)
        try:
            if delivery.problem:
                raise ContractError(delivery.problem)
            message = parse_work(delivery.properties, delivery.body, exchange=delivery.exchange)
            if isinstance(message, DirectMessage):
                return self._direct_run(delivery, message)
            self._check_queue(message)
            if message.checkpointed is None:
                self._reporter.on_older_operator()
            run_id = self._by_token.get(message.token)
            if run_id is not None:
                return run_id
            if self._answer_known(acknowledger, delivery, message):
                return None
            return self._task_run(delivery, message)
        except ContractError as error:
            self._dead_letter(acknowledger, delivery, str(error))
        except Exception as error:  # the last resort: no message may keep a slot for good
            log.error("message.intake_failed", exc_info=error, queue=self._settings.queue)
            self._dead_letter(acknowledger, delivery, f"the worker failed on it: {error!r}")
        return None

    def _check_queue(self, message: WorkMessage) -> None:
        """Refuse what somebody has moved here from another TaskQueue's queue.

        The broker lets a worker report for its own TaskQueue only, and closes the channel over
        anything else: the report would be tried again without end, and hold up all others.

        Raises:
            ContractError: it is for another TaskQueue.
        """
        settings = self._settings
        if (message.namespace, message.queue) != (settings.namespace, settings.queue):
            raise ContractError(
                "headers tq-namespace and tq-queue name TaskQueue "
                f"{message.namespace}/{message.queue}, this worker is of "
                f"{settings.namespace}/{settings.queue}: move it to the queue it is for"
            )

    def _answer_known(
        self, acknowledger: Acknowledger, delivery: Delivery, message: WorkMessage
    ) -> bool:
        """Answer a delivery whose token ended lately or was named by a command."""
        token = message.token
        outcome = self._reporter.cache.get(token)
        if outcome is not None:
            self._answer("outcome.repeated", acknowledger, delivery, message, outcome)
            return True
        command = self._commands.get(token)
        # Not while an execution of it has not ended: the answer frees the concurrency key.
        if command is not None and not self._is_executed(token):
            outcome = stopped_event(message, command, worker=self._settings.pod, seconds=0.0)
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
        self._reporter.outbox.publish(
            outcome_message(outcome.key, outcome.body),
            partial(acknowledger.confirm, delivery.delivery_tag),
        )

    def _task_run(self, delivery: Delivery, message: WorkMessage) -> TaskRun:
        deliveries = deliveries_so_far(delivery.properties, redelivered=delivery.redelivered)
        attempt = work_attempt(
            message,
            payload_of(message),
            redelivered=deliveries > 0,
            on_checkpoint=partial(self._on_checkpoint, message),
        )
        return TaskRun(
            message.token,
            message.fence is not None,
            deliveries,
            message.max_deliveries,
            message.timeout_seconds,
            attempt,
            message,
            returned=_is_returned(message, deliveries),
        )

    def _direct_run(self, delivery: Delivery, message: DirectMessage) -> DirectRun:
        queue = self._settings.queue
        timeout_seconds, max_deliveries = self._direct_limits.read()
        deliveries = deliveries_so_far(delivery.properties, redelivered=delivery.redelivered)
        attempt = AttemptRequest(
            handler=message.handler,
            payload=message.payload,
            task=self._direct_task,
            uid=message.correlation_id or "",
            queue=queue,
            attempt=min(deliveries + 1, max_deliveries),
            max_attempts=max_deliveries,
            timeout_seconds=timeout_seconds,
        )
        return DirectRun(
            "",
            False,
            deliveries,
            max_deliveries,
            attempt.timeout_seconds,
            attempt,
            delivery,
        )

    def _dead_letter(self, acknowledger: Acknowledger, delivery: Delivery, reason: str) -> None:
        log.warning(
            "message.dead_lettered",
            namespace=self._settings.namespace,
            queue=self._settings.queue,
            reason=reason,
            hint="it is in the dead-letter queue, with the reason in its tq-error header",
        )
        self._reporter.publish_dead_letter(
            delivery, reason, partial(self._on_parked, acknowledger, delivery.delivery_tag)
        )

    def _on_parked(self, acknowledger: Acknowledger, tag: int) -> None:
        self.parked += 1
        acknowledger.confirm(tag)


def _is_returned(message: WorkMessage, deliveries: int) -> bool:
    """Return whether a message goes back to the operator unless this is its first delivery.

    Older operators would not count its deliveries, and a Task that kills its workers would do so
    forever.
    """
    counted, keyed = message.checkpointed is not None, message.fence is not None
    return deliveries > 0 and counted and (bool(message.checkpointed) or not keyed)
