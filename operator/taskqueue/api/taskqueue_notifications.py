"""The webhooks of a TaskQueue: who is sent the ends of its Tasks."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field
from pydantic.config import JsonDict

from taskqueue.api.common import (
    DNS_LABEL_PATTERN,
    DNS_SUBDOMAIN_PATTERN,
    SET_LIST,
    ApiModel,
    validations,
)
from taskqueue.limits import OBJECT_NAME_LENGTH, URL_LENGTH, WEBHOOK_NAME_LENGTH, WEBHOOKS

EndPhase = Literal["Succeeded", "Failed", "Cancelled"]
NotificationName = Annotated[
    str, Field(min_length=1, max_length=WEBHOOK_NAME_LENGTH, pattern=DNS_LABEL_PATTERN)
]

#: Of ``spec.notifications``.
BY_NAME: JsonDict = {
    "x-kubernetes-list-type": "map",
    "x-kubernetes-list-map-keys": ["name"],
}
NOTIFICATIONS_MAX_ITEMS = WEBHOOKS
_HEADERS_MAX_ITEMS = 8
_HEADER_LENGTH = 1024
#: Set by the operator, or about the connection.
_OWN_HEADERS = (
    "(webhook-.*|host|content-type|content-length|content-encoding|transfer-encoding|connection|"
    "te|trailer|upgrade|expect|keep-alive|proxy-.*)"
)


class SecretKeyReference(ApiModel):
    """A key of a Secret in the namespace of the TaskQueue."""

    name: str = Field(
        min_length=1,
        max_length=OBJECT_NAME_LENGTH,
        pattern=DNS_SUBDOMAIN_PATTERN,
        description="Name of the Secret.",
    )
    key: str = Field(
        min_length=1,
        max_length=OBJECT_NAME_LENGTH,
        pattern="^[-._a-zA-Z0-9]+$",
        description="Key in the Secret.",
    )


class NotificationHeader(ApiModel):
    """A header of the requests."""

    model_config = ConfigDict(
        json_schema_extra=validations(
            (
                f"!self.name.lowerAscii().matches('^{_OWN_HEADERS}$')",
                "this header is set by the operator, or is about the connection: omit it",
            )
        )
    )

    name: str = Field(
        min_length=1,
        max_length=64,
        pattern="^[A-Za-z0-9-]+$",
        description="Name of the header.",
    )
    value: str = Field(
        max_length=_HEADER_LENGTH,
        pattern="^[ -~]*$",
        description="Its value, printable ASCII. Anybody who can read the TaskQueue can read it.",
    )


class Notification(ApiModel):
    """A webhook: a receiver that is sent the ends of Tasks over HTTP."""

    model_config = ConfigDict(
        json_schema_extra=validations(
            (
                "has(self.url) != has(self.urlSecretKeyRef)",
                "a notification has one address: give exactly one of url and urlSecretKeyRef",
            )
        )
    )

    name: NotificationName = Field(
        description=(
            "Name of the notification, a DNS label of at most 32 characters. Tasks choose by it, "
            "and the broker's queues of the webhook are named after it."
        )
    )
    url: str | None = Field(
        None,
        min_length=1,
        max_length=URL_LENGTH,
        pattern="^https?://[^/?#@]+([/?][^#]*)?$",
        description=(
            "Address that the events are posted to, http:// or https://, without user and "
            "password. Which networks it may lead to is the installer's decision. Absent when "
            "urlSecretKeyRef is given."
        ),
    )
    url_secret_key_ref: SecretKeyReference | None = Field(
        None,
        description=(
            "Key of a Secret with the address, where the address itself is a secret. Absent when "
            "url is given."
        ),
    )
    events: tuple[EndPhase, ...] = Field(
        ("Succeeded", "Failed", "Cancelled"),
        min_length=1,
        max_length=3,
        description=(
            "Which ends are sent, by the final phase: Succeeded, Failed, Cancelled. All by default."
        ),
        json_schema_extra=SET_LIST,
    )
    signing_secret_key_ref: SecretKeyReference = Field(
        description=(
            "Key of a Secret with the secret that requests are signed with, as Standard Webhooks "
            "says: whsec_ and 24 to 64 random bytes in base64. Two secrets, separated by a space "
            "or a line break, give each request two signatures, so that a receiver can change from "
            "the one to the other. Required."
        )
    )
    headers: tuple[NotificationHeader, ...] = Field(
        (),
        max_length=_HEADERS_MAX_ITEMS,
        description="Headers of each request, at most 8. None by default.",
        json_schema_extra=BY_NAME,
    )
    timeout_seconds: int = Field(
        10,
        ge=1,
        le=30,
        description=(
            "How long the receiver may take to answer, in whole seconds, 1 to 30; 10 by default."
        ),
    )
