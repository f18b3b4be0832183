"""The queues of an outbox, and when a webhook is tried again."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from taskqueue.api.common import QUEUE_NAME_MAX_LENGTH
from taskqueue.contract.outbox import (
    ARCHIVE_OUTBOX,
    RETRY_SECONDS,
    retry_delay,
    webhook_outbox,
)
from taskqueue.limits import (
    LABEL_LENGTH,
    SHORT_STRING_BYTES,
    WEBHOOK_NAME_LENGTH,
    WEBHOOK_OUTBOX_BYTES,
    WEBHOOK_SECONDS,
)

PLACE = ("shop", "q", "default")
LABELS = st.from_regex(r"[a-z0-9]([-a-z0-9]{0,30}[a-z0-9])?", fullmatch=True)


def test_the_outbox_of_an_archive_is_what_it_was() -> None:
    """Other arguments than those of an older operator would be a conflict at the broker."""
    assert list(ARCHIVE_OUTBOX.queues(*PLACE)) == [
        (
            "taskqueue-operator.archive.shop.q",
            {
                "x-queue-type": "quorum",
                "x-single-active-consumer": True,
                "x-delivery-limit": -1,
                "x-max-length-bytes": 256 * 1024 * 1024,
                "x-overflow": "reject-publish",
            },
        )
    ]
    assert ARCHIVE_OUTBOX.binding_keys("shop", "q") == ["shop.q.#"]


def test_what_waits_for_another_try_comes_back_to_the_outbox_of_its_webhook() -> None:
    outbox = webhook_outbox("hook", ["task.failed"])
    (name, arguments), *retries = outbox.queues(*PLACE)
    assert outbox.binding_keys("shop", "q") == ["shop.q.task.failed"]
    assert name == "taskqueue-operator.webhook-hook.shop.q"
    assert len(retries) == len(RETRY_SECONDS)
    for seconds, (retry, more) in zip(RETRY_SECONDS, retries, strict=True):
        assert retry == outbox.retry_name(seconds, *PLACE)
        assert more["x-message-ttl"] == seconds * 1000
        assert (more["x-dead-letter-exchange"], more["x-dead-letter-routing-key"]) == ("", name)
        assert more["x-dead-letter-strategy"] == "at-least-once"
    for _, more in ((name, arguments), *retries):
        assert more["x-max-length-bytes"] == WEBHOOK_OUTBOX_BYTES
        assert more["x-overflow"] == "reject-publish"
        assert more["x-expires"] > (WEBHOOK_SECONDS + max(RETRY_SECONDS)) * 1000


@example({"hook", "hook-retry-5"}, "shop", "q")
@given(st.sets(LABELS, min_size=2), LABELS, LABELS)
def test_no_two_queues_have_one_name(names: set[str], namespace: str, queue: str) -> None:
    place = (namespace, queue, "default")
    boxes = [ARCHIVE_OUTBOX, *(webhook_outbox(name, ["task.failed"]) for name in names)]
    found = [name for one in boxes for name, _ in one.queues(*place)]
    assert len(set(found)) == len(found)


def test_the_longest_names_fit() -> None:
    outbox = webhook_outbox("h" * WEBHOOK_NAME_LENGTH, ["task.cancelled"])
    place = ("n" * LABEL_LENGTH, "q" * QUEUE_NAME_MAX_LENGTH, "i" * LABEL_LENGTH)
    assert all(len(name) <= SHORT_STRING_BYTES for name, _ in outbox.queues(*place))


def test_retries_are_soon_at_first_and_cost_little_later() -> None:
    delays = [retry_delay(failures) for failures in range(1, 1000)]
    assert delays[0] == RETRY_SECONDS[0]
    assert delays == sorted(delays)
    assert set(delays) == set(RETRY_SECONDS)
    tries, passed = 1, 0.0
    while passed <= WEBHOOK_SECONDS:
        passed += retry_delay(tries)
        tries += 1
    assert 50 < tries < 200  # of one end that is never accepted, in a day
