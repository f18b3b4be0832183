"""Signatures of webhooks, verified by the library of Standard Webhooks."""

from __future__ import annotations

import base64
import secrets
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from taskqueue.controller.completions.webhook_signature import (
    SigningSecretInvalid,
    SigningSecrets,
    webhook_id,
)

KEYS = st.binary(min_size=24, max_size=64)
#: What a body of JSON in UTF-8 can be.
BODIES = st.text(st.characters(codec="utf-8")).map(str.encode)


def spelled(key: bytes, *, prefix: bool = True) -> str:
    return ("whsec_" if prefix else "") + base64.b64encode(key).decode()


def headers(secrets: SigningSecrets, message_id: str, body: bytes) -> dict[str, str]:
    now = int(time.time())
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(now),
        "webhook-signature": secrets.sign(message_id, now, body),
    }


@given(st.lists(KEYS, min_size=1, max_size=2), BODIES, st.sampled_from(" \n\t"), st.booleans())
def test_each_secret_alone_verifies_what_is_signed(
    keys: list[bytes], body: bytes, between: str, prefix: bool
) -> None:
    text = between.join(spelled(key, prefix=prefix) for key in keys)
    sent = headers(SigningSecrets.parse(f"{text}\n"), "uid.1", body)
    for key in keys:
        Webhook(spelled(key)).verify(body, sent, json_parse=False)


@given(KEYS, BODIES, st.sampled_from(["body", "id", "time", "key"]))
def test_nothing_else_is_verified(key: bytes, body: bytes, changed: str) -> None:
    sent = headers(SigningSecrets.parse(spelled(key)), "uid.1", body)
    if changed == "body":
        body += b" "
    elif changed == "id":
        sent["webhook-id"] = "uid.2"
    elif changed == "time":
        sent["webhook-timestamp"] = str(int(sent["webhook-timestamp"]) + 1)
    else:
        key = bytes([key[0] ^ 1]) + key[1:]
    with pytest.raises(WebhookVerificationError):
        Webhook(spelled(key)).verify(body, sent, json_parse=False)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "0 signing secrets"),
        (" ".join([spelled(b"x" * 32)] * 3), "3 signing secrets"),
        ("whsec_not base64", "openssl rand"),
        ("pa$$word", "openssl rand"),
        (spelled(b"x" * 23), "23 bytes"),
        (spelled(b"x" * 65), "65 bytes"),
        ("whsec_", "0 bytes"),
    ],
)
def test_a_secret_that_cannot_be_used_is_said_and_not_quoted(text: str, said: str) -> None:
    with pytest.raises(SigningSecretInvalid, match=said.replace("$", r"\$")) as raised:
        SigningSecrets.parse(text)
    assert text == "" or text.split()[0] not in str(raised.value).replace("whsec_$", "")


def test_no_secret_is_in_its_text() -> None:
    key = secrets.token_bytes(32)
    assert "keys" not in repr(SigningSecrets.parse(spelled(key)))


@given(st.text())
def test_an_id_fits_a_header_and_is_that_of_its_event(event_id: str) -> None:
    found = webhook_id(event_id)
    assert found == webhook_id(event_id)
    assert found.isascii()
    assert found.isprintable()
    assert " " not in found
    assert 1 <= len(found) <= 128


@given(st.text(), st.text())
def test_two_events_have_two_ids(one: str, other: str) -> None:
    assert (webhook_id(one) == webhook_id(other)) is (one == other)
