"""How the outbox of a webhook is drained, with stand-ins and in virtual time."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from itertools import pairwise

import pytest
from standardwebhooks.webhooks import Webhook

from taskqueue.contract.outbox import RETRY_SECONDS, retry_delay
from taskqueue.controller.completions.webhook_client import (
    EXPLANATIONS,
    WebhookFailure,
    WebhookTrouble,
)
from taskqueue.controller.queues.webhook_sender import AT_ONCE, AWAY_FAILURES
from taskqueue.limits import WEBHOOK_SECONDS
from taskqueue.model.task import Phase
from taskqueue.model.webhook import SecretKey
from tests.unit.controller.queues.webhook_case import (
    CONFIG,
    NOW,
    REFUSED,
    SIGNING,
    Case,
    end,
)

pytestmark = pytest.mark.looptime


@pytest.fixture
async def case(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Case]:
    case = Case(monkeypatch)
    yield case
    await case.sender.loop.close()


async def test_each_end_is_sent_signed_and_leaves_the_outbox(case: Case) -> None:
    await case.start(replace(CONFIG, headers=(("X-Shop", "north"),)))
    bodies = [end(f"t-{number}") for number in range(30)]
    case.broker.put(*bodies)
    await asyncio.sleep(1)
    assert sorted(case.receiver.accepted) == sorted(bodies)
    assert case.broker.waiting == 0
    assert case.state.reason == "Delivered"
    for _, url, headers, body in case.receiver.requests:
        assert url == CONFIG.url
        assert headers["X-Shop"] == "north"
        assert headers["Content-Type"] == "application/cloudevents+json"
        event = Webhook(SIGNING).verify(body, dict(headers))
        assert headers["webhook-id"] == event["id"]


async def test_a_few_are_sent_at_once_and_the_rest_is_not_in_memory(case: Case) -> None:
    case.receiver.seconds = 1
    await case.start()
    case.broker.put(*(end(f"t-{number}") for number in range(100)))
    await asyncio.sleep(200)
    assert len(case.receiver.accepted) == 100
    assert case.receiver.most_at_once == AT_ONCE
    assert case.broker.most <= 2 * AT_ONCE


async def test_an_end_that_is_refused_holds_up_no_other_and_is_sent_again_with_its_id(
    case: Case,
) -> None:
    refused = end("bad")
    tries = 0

    def judge(body: bytes) -> WebhookFailure | None:
        nonlocal tries
        tries += body == refused
        return REFUSED if body == refused and tries < 6 else None

    case.receiver.judge = judge
    await case.start()
    case.broker.put(refused, *(end(f"t-{number}") for number in range(20)))
    await asyncio.sleep(1)
    assert len(case.receiver.accepted) == 20
    assert case.broker.waiting == 0  # it waits beside the outbox
    assert (case.state.connected, case.state.reason) == (True, "Retrying")
    assert EXPLANATIONS[WebhookTrouble.REFUSED] in case.state.message
    await asyncio.sleep(300)
    again = [
        (at, sent["webhook-id"]) for at, _, sent, body in case.receiver.requests if body == refused
    ]
    assert {one for _, one in again} == {"uid-bad.1"}
    pauses = [later - earlier for (earlier, _), (later, _) in pairwise(again)]
    assert pauses == [retry_delay(number) for number in range(1, 6)]
    assert refused in case.receiver.accepted
    await asyncio.sleep(100)
    assert case.state.reason == "Delivered"


async def test_nothing_is_read_while_the_receiver_is_away_and_all_is_sent_when_it_is_back(
    case: Case,
) -> None:
    await case.start()
    case.receiver.judge = lambda body: WebhookFailure(WebhookTrouble.UNREACHABLE)
    bodies = [end(f"t-{number}") for number in range(200)]
    case.broker.put(*bodies)
    await asyncio.sleep(600)
    assert (case.state.connected, case.state.reason) == (False, "ReceiverUnreachable")
    assert len(case.receiver.requests) < AWAY_FAILURES + AT_ONCE + 60
    assert case.broker.waiting > 100
    assert len(case.broker.unacknowledged) <= 2
    case.receiver.judge = lambda body: None
    await asyncio.sleep(max(RETRY_SECONDS) + 120)
    assert Counter(case.receiver.accepted) == Counter(bodies)
    assert case.state.reason == "Delivered"
    assert case.broker.dead == []


async def test_what_is_refused_for_a_day_is_a_dead_letter(case: Case) -> None:
    refused = end("bad")
    case.receiver.judge = lambda body: REFUSED if body == refused else None
    await case.start()
    case.broker.put(refused)
    for number in range(24):  # others are accepted meanwhile
        await asyncio.sleep(3500)
        case.broker.put(end(f"t-{number}", at=case.now()))
    assert case.broker.dead == []
    await asyncio.sleep(WEBHOOK_SECONDS / 20)
    ((body, headers),) = case.broker.dead
    assert body == refused
    assert headers["tq-exchange"] == "taskqueue.events"
    assert headers["tq-error"].startswith("webhook hook: not accepted for a day")
    assert (case.state.connected, case.state.reason) == (False, "GivenUp")
    tries = sum(one[3] == refused for one in case.receiver.requests)
    assert 50 < tries < 200
    await asyncio.sleep(3700)
    assert case.state.reason == "Delivered"
    assert sum(one[3] == refused for one in case.receiver.requests) == tries


async def test_of_a_receiver_that_stays_away_old_ends_are_dead_letters_without_another_try(
    case: Case,
) -> None:
    case.receiver.judge = lambda body: WebhookFailure(WebhookTrouble.TIMED_OUT)
    await case.start()
    case.broker.put(*(end(f"t-{number}") for number in range(300)))
    await asyncio.sleep(WEBHOOK_SECONDS + 2 * max(RETRY_SECONDS))
    assert len(case.broker.dead) == 300
    assert case.broker.waiting == 0
    assert len(case.receiver.requests) < 3000


async def test_what_is_old_is_sent_once_by_an_operator_that_was_away(case: Case) -> None:
    await case.start()
    old = end("old", at=NOW - 2 * WEBHOOK_SECONDS)
    case.broker.put(old)
    await asyncio.sleep(1)
    assert case.receiver.accepted == [old]


@pytest.mark.parametrize(
    "trouble", [WebhookTrouble.ADDRESS_NOT_ALLOWED, WebhookTrouble.URL_INVALID]
)
async def test_an_address_that_cannot_be_used_is_tried_rarely(
    case: Case, trouble: WebhookTrouble
) -> None:
    case.receiver.judge = lambda body: WebhookFailure(trouble)
    await case.start()
    case.broker.put(*(end(f"t-{number}") for number in range(100)))
    await asyncio.sleep(3600)
    assert (case.state.connected, case.state.reason) == (False, trouble.value)
    assert len(case.receiver.requests) < 120


async def test_an_address_that_is_corrected_is_not_away_any_more(case: Case) -> None:
    case.receiver.judge = lambda body: WebhookFailure(WebhookTrouble.ADDRESS_NOT_ALLOWED)
    await case.start()
    case.broker.put(end())
    await asyncio.sleep(1)
    assert case.state.reason == "AddressNotAllowed"
    await case.start(replace(CONFIG, url="https://elsewhere.example"))
    await asyncio.sleep(1)
    assert (case.state.connected, case.state.reason) == (True, "Delivered")


async def test_a_url_that_cannot_be_used_sends_nothing(case: Case) -> None:
    await case.start(replace(CONFIG, url="ftp://there"))
    case.broker.put(end())
    await asyncio.sleep(60)
    assert case.state.reason == "UrlInvalid"
    assert case.receiver.requests == []
    assert case.broker.waiting == 1


@pytest.mark.parametrize(
    ("secrets", "reason", "said"),
    [
        ({"signing": None}, "SecretNotFound", "create it"),
        ({"signing": {}}, "SecretInvalid", "has no key secret: add it"),
        ({"signing": {"secret": "pa$$word"}}, "SecretInvalid", "key secret: a signing secret is"),
        ({"place": None}, "SecretNotFound", "shop/place of spec.notifications does not exist"),
        ({"place": {"url": "pa$$word"}}, "UrlInvalid", "its URL"),
    ],
)
async def test_a_secret_that_cannot_be_used_is_said_and_read_again(
    case: Case, secrets: dict[str, dict[str, str] | None], reason: str, said: str
) -> None:
    right = {"signing": {"secret": SIGNING}, "place": {"url": "https://a.example\n"}}
    case.api.secrets = {key: one for key, one in (right | secrets).items() if one is not None}
    case.broker.put(end())
    await case.start(replace(CONFIG, url="", url_secret=SecretKey("place", "url")))
    await asyncio.sleep(5)
    assert (case.state.connected, case.state.reason) == (False, reason)
    assert said in case.state.message
    assert "pa$$word" not in case.state.message
    case.api.secrets = right
    await asyncio.sleep(120)
    assert [one[1] for one in case.receiver.requests] == ["https://a.example"]
    assert case.state.reason == "Delivered"


async def test_secrets_are_exchanged_without_a_moment_at_which_none_is_right(case: Case) -> None:
    await case.start()
    other = SIGNING.replace("c3", "d3")
    seen: list[tuple[bool, bool]] = []
    for text in (SIGNING, f"{SIGNING} {other}", other):
        case.api.secrets["signing"]["secret"] = text
        await asyncio.sleep(40)
        case.broker.put(end(f"t-{len(seen)}"))
        await asyncio.sleep(1)
        _, _, headers, body = case.receiver.requests[-1]
        seen.append((verifies(SIGNING, body, headers), verifies(other, body, headers)))
    assert seen == [(True, False), (True, True), (False, True)]


def verifies(secret: str, body: bytes, headers: object) -> bool:
    try:
        Webhook(secret).verify(body, dict(headers))  # type: ignore[call-overload]
    except Exception:
        return False
    return True


async def test_only_the_ends_that_are_chosen_are_sent(case: Case) -> None:
    await case.start(replace(CONFIG, phases=("Failed", "Cancelled")))
    wanted = [
        end("all"),
        end("named", notification_names=("other", "hook")),
        end("cancelled", phase=Phase.CANCELLED),
    ]
    case.broker.put(
        *wanted,
        end("none", notification_names=()),
        end("others", notification_names=("other",)),
        end("done", phase=Phase.SUCCEEDED),
    )
    await asyncio.sleep(1)
    assert sorted(case.receiver.accepted) == sorted(wanted)
    assert case.broker.waiting == 0


@pytest.mark.parametrize(
    "body",
    [b"", b"{}", b"[]", b"\xff", end().replace(b"shop", b"other"), end().replace(b"2026", b"x")],
)
async def test_what_cannot_be_read_stops_nothing(case: Case, body: bytes) -> None:
    await case.start()
    case.broker.put(end("one"), body, end("two"))
    await asyncio.sleep(1)
    assert len(case.receiver.accepted) == 2
    assert case.broker.waiting == 0


async def test_an_end_that_no_queue_takes_stays_in_the_outbox(case: Case) -> None:
    case.broker.refuses = re.compile("retry")
    case.receiver.judge = lambda body: REFUSED
    await case.start()
    case.broker.put(end())
    await asyncio.sleep(60)
    assert case.broker.waiting == 1
    case.broker.refuses = re.compile("(?!)")
    case.receiver.judge = lambda body: None
    await asyncio.sleep(60)
    assert case.receiver.accepted == [end()]


async def test_a_channel_that_is_lost_is_replaced_and_nothing_with_it(case: Case) -> None:
    case.receiver.seconds = 10
    await case.start()
    case.broker.put(*(end(f"t-{number}") for number in range(20)))
    await asyncio.sleep(1)
    assert case.broker._consumer is not None
    await case.broker._consumer[0].close()
    await asyncio.sleep(120)
    assert {len(one) for one in case.receiver.accepted}
    assert len(set(case.receiver.accepted)) == 20
    assert case.broker.waiting == 0
