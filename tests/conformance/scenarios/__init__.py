"""All scenarios: each tests a part of the contract with its own worker."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from tests.conformance.points import Point
from tests.conformance.scenario import Scenario
from tests.conformance.scenarios import (
    checkpoints,
    commands,
    connections,
    cut_off,
    deliveries,
    heartbeats,
    limits,
    messages,
    outcomes,
    prefetch,
    reconnecting,
    results,
    running,
    stopping,
)


@dataclass(frozen=True)
class ScenarioEntry:
    """A scenario's name, the point it tests, and the function that runs it.

    Attributes:
        own_broker_env: it needs its own virtual host, because it removes a part of the topology.
        declared: the topology exists from the start.
    """

    name: str
    point: Point
    run: Callable[[Scenario], Awaitable[None]]
    own_broker_env: bool = False
    declared: bool = True


#: The slow ones first, so that they do not run on after all others.
SCENARIOS = (
    ScenarioEntry("silence-deaf", Point.CUT_OFF, cut_off.a_deaf_execution),
    ScenarioEntry("silence", Point.CUT_OFF, cut_off.a_silent_broker),
    ScenarioEntry("deaf-timeout", Point.CUT_OFF, cut_off.a_deaf_execution_times_out),
    ScenarioEntry("running", Point.RUNNING, running.busy),
    ScenarioEntry("kills", Point.DELIVERIES, deliveries.killed_until_the_limit),
    ScenarioEntry("given-back", Point.DELIVERIES, deliveries.given_back),
    ScenarioEntry(
        "exchanges", Point.RECONNECTING, reconnecting.exchanges_deleted, own_broker_env=True
    ),
    ScenarioEntry("prefetch", Point.PREFETCH, prefetch.long_runs),
    ScenarioEntry("hoarding", Point.PREFETCH, prefetch.long_after_short),
    ScenarioEntry("commands-before", Point.COMMANDS, commands.before),
    ScenarioEntry("commands-running", Point.COMMANDS, commands.while_running),
    ScenarioEntry("drain", Point.COMMANDS, commands.drain),
    ScenarioEntry("drain-again", Point.COMMANDS, commands.drain_again),
    ScenarioEntry("heartbeats", Point.HEARTBEATS, heartbeats.turns),
    ScenarioEntry("cut", Point.CUT_OFF, cut_off.a_cut_connection),
    ScenarioEntry("timeouts", Point.RUNNING, running.deaf_and_reported),
    ScenarioEntry("confirms", Point.OUTCOMES, outcomes.held_confirms),
    ScenarioEntry("confirms-kill", Point.OUTCOMES, outcomes.killed_between),
    ScenarioEntry("unconfirmed", Point.OUTCOMES, outcomes.refused_and_lost),
    ScenarioEntry("unroutable", Point.OUTCOMES, outcomes.returned, own_broker_env=True),
    ScenarioEntry("sigterm", Point.STOPPING, stopping.lets_end),
    ScenarioEntry("grace", Point.STOPPING, stopping.releases),
    ScenarioEntry("idle", Point.STOPPING, stopping.idle),
    ScenarioEntry("closed", Point.RECONNECTING, reconnecting.connections_closed),
    ScenarioEntry("credentials", Point.RECONNECTING, reconnecting.credentials_changed),
    ScenarioEntry("channel", Point.RECONNECTING, reconnecting.channel_closed),
    ScenarioEntry("deleted", Point.RECONNECTING, reconnecting.queue_deleted),
    ScenarioEntry(
        "early", Point.RECONNECTING, reconnecting.too_early, own_broker_env=True, declared=False
    ),
    ScenarioEntry("finished", Point.DELIVERIES, deliveries.counted_and_remembered),
    ScenarioEntry("checkpoints", Point.CHECKPOINTS, checkpoints.saved_and_given_back),
    ScenarioEntry("connections", Point.CONNECTIONS, connections.two),
    ScenarioEntry("direct", Point.MESSAGES, messages.direct),
    ScenarioEntry("forged", Point.MESSAGES, messages.forged),
    ScenarioEntry("malformed", Point.MESSAGES, messages.malformed),
    ScenarioEntry("hostile-headers", Point.MESSAGES, messages.hostile_headers),
    ScenarioEntry("reserved", Point.LIMITS, limits.reserved_types),
    ScenarioEntry("announcements", Point.LIMITS, limits.announcements, own_broker_env=True),
    ScenarioEntry("error-messages", Point.LIMITS, limits.error_messages),
    ScenarioEntry("large-results", Point.LIMITS, results.large_results),
)
