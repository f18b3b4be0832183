"""All scenes: each plays a part of the contract with a worker of its own."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from tests.conformance.points import Point
from tests.conformance.scenario import Scene
from tests.conformance.scenarios import (
    connections,
    cut_off,
    deliveries,
    heartbeats,
    messages,
    orders,
    outcomes,
    prefetch,
    reconnecting,
    running,
    stopping,
)


@dataclass(frozen=True)
class Play:
    """A scene's name, the point it is about, and what happens.

    Attributes:
        own_house: it takes something of the topology away, so it needs one for itself.
        declared: the topology is there from the beginning.
    """

    name: str
    point: Point
    act: Callable[[Scene], Awaitable[None]]
    own_house: bool = False
    declared: bool = True


#: The slow ones first, so that they do not run on when all others are over.
PLAYS = (
    Play("silence-deaf", Point.CUT_OFF, cut_off.a_deaf_execution),
    Play("silence", Point.CUT_OFF, cut_off.a_silent_broker),
    Play("deaf-timeout", Point.CUT_OFF, cut_off.a_deaf_execution_times_out),
    Play("running", Point.RUNNING, running.busy),
    Play("kills", Point.DELIVERIES, deliveries.killed_until_the_limit),
    Play("prefetch", Point.PREFETCH, prefetch.long_runs),
    Play("hoarding", Point.PREFETCH, prefetch.long_after_short),
    Play("orders-before", Point.ORDERS, orders.before),
    Play("orders-running", Point.ORDERS, orders.while_running),
    Play("drain", Point.ORDERS, orders.drain),
    Play("drain-again", Point.ORDERS, orders.drain_again),
    Play("heartbeats", Point.HEARTBEATS, heartbeats.turns),
    Play("cut", Point.CUT_OFF, cut_off.a_cut_connection),
    Play("timeouts", Point.RUNNING, running.deaf_and_told),
    Play("confirms", Point.OUTCOMES, outcomes.held_confirms),
    Play("confirms-kill", Point.OUTCOMES, outcomes.killed_between),
    Play("unconfirmed", Point.OUTCOMES, outcomes.refused_and_lost),
    Play("unroutable", Point.OUTCOMES, outcomes.returned, own_house=True),
    Play("sigterm", Point.STOPPING, stopping.lets_end),
    Play("grace", Point.STOPPING, stopping.releases),
    Play("idle", Point.STOPPING, stopping.idle),
    Play("closed", Point.RECONNECTING, reconnecting.connections_closed),
    Play("channel", Point.RECONNECTING, reconnecting.channel_closed),
    Play("deleted", Point.RECONNECTING, reconnecting.queue_deleted),
    Play("early", Point.RECONNECTING, reconnecting.too_early, own_house=True, declared=False),
    Play("finished", Point.DELIVERIES, deliveries.counted_and_remembered),
    Play("connections", Point.CONNECTIONS, connections.two),
    Play("direct", Point.MESSAGES, messages.direct),
    Play("malformed", Point.MESSAGES, messages.malformed),
)
