"""A missing exchange closes a channel, and nothing else; what is not confirmed is kept."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskqueue.contract.heartbeat import Heartbeat
from taskqueue.contract.names import DEAD_EXCHANGE, HEARTBEATS_EXCHANGE, OUTCOMES_EXCHANGE
from taskqueue.contract.outgoing import OutgoingMessage
from taskqueue.limits import HEARTBEAT_SECONDS
from taskqueue.model.worker import WorkerState
from taskqueue.worker import outcome_publisher
from taskqueue.worker.broker_source import BrokerSource
from taskqueue.worker.heartbeat_sender import HeartbeatSender
from taskqueue.worker.outcome_outbox import OutcomeOutbox
from taskqueue.worker.outcome_publisher import OutcomePublisher
from tests.fuzz.wire_broker import WireBroker
from tests.unit.controller.virtual_time import VirtualLoop
from tests.unit.worker.fakes import BROKER

#: What is published until it is confirmed.
REPORTS = (OUTCOMES_EXCHANGE, DEAD_EXCHANGE)
HEARTBEAT = Heartbeat(
    namespace="shop",
    queue="q",
    pod="pod-1",
    node="",
    cpus=1.0,
    slots=1,
    handlers=(),
    running=(),
    state=WorkerState.READY,
)


class Worker:
    """What a worker publishes with, at a broker whose exchanges come and go."""

    def __init__(self, broker: WireBroker, source: BrokerSource) -> None:
        self.loop = VirtualLoop()
        self.broker = broker
        self.reported: Counter[int] = Counter()
        self.confirmed: Counter[int] = Counter()
        self._numbers = itertools.count()
        self.loop.run_until_complete(self._start(source))

    async def _start(self, source: BrokerSource) -> None:
        self.outbox = OutcomeOutbox(asyncio.get_running_loop())
        publisher = OutcomePublisher(
            source, name="worker", outbox=self.outbox, on_ready=lambda: None
        )
        heartbeats = HeartbeatSender(publisher, describe=lambda: HEARTBEAT)
        self.tasks = [asyncio.create_task(each.run()) for each in (publisher, heartbeats)]

    def report(self, exchange: str) -> None:
        number = next(self._numbers)
        self.reported[number] += 1
        body = str(number).encode()
        message = OutgoingMessage(exchange=exchange, key="shop.q", body=body, content_type=None)
        self.loop.do(lambda: self.outbox.publish(message, lambda: self._on_confirmed(number)))

    def _on_confirmed(self, number: int) -> None:
        self.confirmed[number] += 1

    def heartbeats_in(self, seconds: float) -> int:
        """Return how many heartbeats the broker gets in this time."""
        self.broker.published.clear()
        self.loop.pass_time(seconds)
        return sum(
            message.exchange == HEARTBEATS_EXCHANGE.encode() for message in self.broker.published
        )


@contextmanager
def running(source: BrokerSource = BROKER) -> Iterator[Worker]:
    broker = WireBroker()
    with mock.patch.object(outcome_publisher, "connect", broker.connect):
        worker = Worker(broker, source)
        try:
            worker.loop.pass_time(1)
            yield worker
            assert not worker.loop.problems
            assert not any(task.done() for task in worker.tasks)
        finally:
            worker.loop.die()


@pytest.mark.parametrize("exchange", REPORTS)
def test_heartbeats_go_on_while_an_exchange_is_missing(
    exchange: str, caplog: pytest.LogCaptureFixture
) -> None:
    with running() as worker:
        worker.broker.missing.add(exchange)
        worker.report(exchange)
        assert worker.heartbeats_in(6 * HEARTBEAT_SECONDS) >= 6
        assert worker.confirmed == {}
        lost = [one for one in caplog.records if one.getMessage() == "publisher.lost"]
        reasons = [vars(one)["fields"]["reason"] for one in lost]
        assert all(f"no exchange '{exchange}'" in reason for reason in reasons)
        assert len(reasons) == len(set(reasons)), "logged once a reason"
        worker.broker.missing.clear()
        worker.loop.pass_time(10)
        assert worker.confirmed == worker.reported
        assert len(worker.broker.connections) == 1


@pytest.mark.parametrize("missing", REPORTS)
@pytest.mark.parametrize("reported", REPORTS)
def test_nothing_is_published_before_the_exchanges_exist(missing: str, reported: str) -> None:
    with running() as worker:
        worker.broker.missing.add(missing)
        worker.report(missing)
        worker.report(reported)
        worker.loop.pass_time(1)
        worker.broker.published.clear()
        worker.loop.pass_time(30)
        found = {message.exchange.decode() for message in worker.broker.published}
        assert found == {HEARTBEATS_EXCHANGE}
        assert len(worker.broker.refused) == 1, "the one that showed it"


def test_credentials_are_read_for_each_connection_and_wrong_ones_do_not_end_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def write(password: str) -> None:
        (tmp_path / "password").write_text(password)

    variables = {"TASKQUEUE_BROKER_HOST": "rabbit", "TASKQUEUE_BROKER_USERNAME": "u"}
    write("old")
    with running(BrokerSource(variables, str(tmp_path))) as worker:
        write("")
        worker.loop.do(lambda: worker.broker.connections[-1].abort())
        worker.report(OUTCOMES_EXCHANGE)
        worker.loop.pass_time(60)
        assert worker.confirmed == {}
        assert "key password is missing" in str([vars(one) for one in caplog.records])
        write("new")
        worker.loop.pass_time(11)
        assert worker.confirmed == worker.reported
        used = [each._connection.parameters.password for each in worker.broker.connections]
        assert used == ["old", "new"]


CHANGES = st.lists(
    st.tuples(
        st.sampled_from(["delete", "declare"]), st.sampled_from([*REPORTS, HEARTBEATS_EXCHANGE])
    )
    | st.tuples(st.just("report"), st.sampled_from(REPORTS))
    | st.tuples(st.just("wait"), st.sampled_from([0.05, 0.5, 3.0, 25.0])),
    max_size=12,
)


@given(changes=CHANGES)
def test_each_report_is_confirmed_once_whichever_exchanges_come_and_go(
    changes: list[tuple[str, str | float]],
) -> None:
    with running() as worker:
        for verb, value in changes:
            match verb, value:
                case "delete", str():
                    worker.broker.missing.add(value)
                case "declare", str():
                    worker.broker.missing.discard(value)
                case "report", str():
                    worker.report(value)
                case "wait", float():
                    worker.loop.pass_time(value)
        worker.broker.missing.clear()
        worker.loop.pass_time(25)
        assert worker.confirmed == worker.reported
        assert worker.outbox.outstanding == 0
        assert len(worker.broker.connections) == 1
        assert worker.heartbeats_in(3 * HEARTBEAT_SECONDS) >= 2
