"""A webhook of a TaskQueue inside the operator: frozen values."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class SecretKey:
    """A key of a Secret in the TaskQueue's namespace."""

    name: str
    key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookConfig:
    """Who is sent the ends of a TaskQueue's Tasks.

    Attributes:
        name: a DNS label; Tasks choose by it.
        url: http or https; "" when ``url_secret`` has it.
        url_secret: has the URL, in one that is itself a secret.
        phases: of the ends that are sent: Succeeded, Failed, Cancelled.
        signing_secret: has one secret, or two while it is exchanged.
        headers: name and value of each header that is added.
        timeout_seconds: how long a receiver may take to answer.
    """

    name: str
    signing_secret: SecretKey
    url: str = field(default="", repr=False)
    url_secret: SecretKey | None = None
    phases: tuple[str, ...] = ("Succeeded", "Failed", "Cancelled")
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    timeout_seconds: int = 10
