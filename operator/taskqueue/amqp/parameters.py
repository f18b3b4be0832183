"""The broker's address and credentials: the content of a Secret as a frozen dataclass.

A Secret has either ``uri`` or the single keys ``host``, ``port``, ``username``, ``password`` and
``vhost``, and for TLS ``ca.crt``, ``tls.crt`` and ``tls.key`` (PEM texts). Anything wrong with it
raises `BrokerConfigurationError`, which names the key. No representation of the parameters and no
error shows the password or the key.

``managementUri`` names the management API, which has the statistics of the broker's queues, and its
users. It is read apart from the rest: a connection needs none, and a wrong one prevents no
connection.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self
from urllib.parse import SplitResult, unquote, urlsplit

PLAIN_PORT = 5672
TLS_PORT = 5671
_MANAGEMENT_PORT = 15672
_MANAGEMENT_TLS_PORT = 15671


class BrokerConfigurationError(ValueError):
    """The settings of the broker cannot be used; the text names the key and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerParameters:
    """Everything needed to connect; hashable, so it can be the key of a shared connection.

    Attributes:
        host: name or address.
        port: of AMQP 0-9-1.
        username: of the broker user.
        password: of the broker user.
        virtual_host: the broker's name space, ``/`` by default.
        tls: whether to speak TLS; the server's certificate is always verified.
        ca_certificate: PEM text of the authority to trust, or None: the system's.
        client_certificate: PEM text, for brokers that ask for one.
        client_key: PEM text that belongs to it.
    """

    host: str
    port: int
    username: str
    password: str = field(repr=False)
    virtual_host: str = "/"
    tls: bool = False
    ca_certificate: str | None = field(default=None, repr=False)
    client_certificate: str | None = field(default=None, repr=False)
    client_key: str | None = field(default=None, repr=False)

    @property
    def address(self) -> str:
        """``host:port/virtual host``, as errors and logs name the broker."""
        return f"{_host_in_url(self.host)}:{self.port}/{self.virtual_host.removeprefix('/')}"

    def to_mapping(self, username: str, password: str) -> dict[str, str]:
        """Return the keys of a Secret by which another user connects to this broker.

        The client certificate is not among them: where the broker takes it for a login, whoever has
        it is this user, not the other one.
        """
        data = {
            "host": self.host,
            "port": str(self.port),
            "username": username,
            "password": password,
            "vhost": self.virtual_host,
            "tls": "true" if self.tls else "false",
        }
        return data if self.ca_certificate is None else {**data, "ca.crt": self.ca_certificate}

    @classmethod
    def from_mapping(cls, data: Mapping[str, str]) -> BrokerParameters:
        """Read the keys of a Secret; keys this module does not know are ignored.

        With ``uri``, ``username`` and ``password`` are only used where the URI has none, and
        options after a ``?`` are ignored. Without, TLS is spoken if ``tls`` is ``true``, a
        certificate is given or the port is 5671. A path of ``/`` or none means the virtual host
        ``/``; any other is written without its first slash (``%2F`` for ``/`` inside a name). What
        is for TLS only is refused where the connection would not be encrypted.

        Raises:
            BrokerConfigurationError: a key is missing or its value cannot be used.
        """
        certificate, key = data.get("tls.crt") or None, data.get("tls.key") or None
        if (certificate is None) != (key is None):
            missing = "tls.crt" if certificate is None else "tls.key"
            raise BrokerConfigurationError(
                f"key {missing} is missing: a client certificate needs both tls.crt and tls.key"
            )
        address = _from_uri(data) if data.get("uri") else _from_keys(data)
        if not address.tls:
            _refuse_unused_tls(data)
        return cls(
            host=address.host,
            port=address.port,
            username=address.username,
            password=address.password,
            virtual_host=address.virtual_host,
            tls=address.tls,
            ca_certificate=data.get("ca.crt") or None,
            client_certificate=certificate,
            client_key=key,
        )


#: The Secret's key for the management API.
MANAGEMENT_URI = "managementUri"
#: A key that former versions read: the address of a Prometheus endpoint.
_REMOVED_URI = "prometheusUri"


@dataclass(frozen=True, slots=True, kw_only=True)
class ManagementEndpoint:
    """The management API of a broker; the key of a shared reader of its statistics.

    Attributes:
        url: scheme, host, port and prefix, without credentials and without a slash at the end.
        username: of the user who asks.
        password: of that user; "" for none.
        broker: whose API it is; its authority and client certificate apply here too.
    """

    url: str
    username: str
    password: str = field(default="", repr=False)
    broker: BrokerParameters

    @classmethod
    def from_mapping(
        cls, data: Mapping[str, str], broker: BrokerParameters
    ) -> ManagementEndpoint | None:
        """Read the keys of a Secret; None: it names no endpoint.

        Without credentials in the URI, those of the broker's user are used.

        Raises:
            BrokerConfigurationError: the value cannot be used, or only ``prometheusUri`` is there.
        """
        uri = (data.get(MANAGEMENT_URI) or "").strip()
        if uri:
            return cls._from_uri(uri, broker)
        if (data.get(_REMOVED_URI) or "").strip():
            raise BrokerConfigurationError(
                f"key {_REMOVED_URI} is no longer read: use {MANAGEMENT_URI}"
            )
        return None

    @classmethod
    def beside(cls, broker: BrokerParameters) -> Self:
        """Return where a broker serves it unless it is told otherwise, for the same user."""
        scheme, port = ("https", _MANAGEMENT_TLS_PORT) if broker.tls else ("http", _MANAGEMENT_PORT)
        return cls(
            url=f"{scheme}://{_host_in_url(broker.host)}:{port}",
            username=broker.username,
            password=broker.password,
            broker=broker,
        )

    @classmethod
    def _from_uri(cls, uri: str, broker: BrokerParameters) -> Self:
        key = MANAGEMENT_URI
        try:
            parts = urlsplit(uri)
            parts.port  # noqa: B018  (raises)
        except ValueError:
            raise BrokerConfigurationError(
                f"key {key} cannot be read: write http[s]://user:password@host:port, with "
                "reserved characters percent-encoded"
            ) from None
        if parts.scheme not in ("http", "https"):
            raise BrokerConfigurationError(f"key {key} must begin with http:// or https://")
        if not parts.hostname:
            raise BrokerConfigurationError(f"key {key} names no host: write http[s]://host:port")
        username, password = unquote(parts.username or ""), unquote(parts.password or "")
        if not username:
            username, password = broker.username, broker.password
        path = parts.path.rstrip("/").removesuffix("/api")  # which the reader adds itself
        return cls(
            url=f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{path}",
            username=username,
            password=password,
            broker=broker,
        )


def _host_in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


@dataclass(frozen=True, slots=True, kw_only=True)
class _Address:
    host: str
    port: int
    username: str
    password: str = field(repr=False)
    virtual_host: str
    tls: bool


def _from_uri(data: Mapping[str, str]) -> _Address:
    uri = data["uri"].strip()
    try:
        parts = urlsplit(uri)
        port = parts.port
    except ValueError:
        # Its text may quote the password: one with an unencoded slash is taken for the port.
        raise BrokerConfigurationError(
            "key uri cannot be read: write amqp://user:password@host:port/vhost, "
            "with reserved characters percent-encoded"
        ) from None
    if parts.scheme not in ("amqp", "amqps"):
        raise BrokerConfigurationError(
            "key uri must begin with amqp:// or amqps://"
            + (f", not {parts.scheme}://" if parts.scheme else "")
        )
    if not parts.hostname:
        raise BrokerConfigurationError("key uri names no host: write amqp://user:password@host")
    tls = parts.scheme == "amqps"
    return _Address(
        host=parts.hostname,
        port=port or (TLS_PORT if tls else PLAIN_PORT),
        username=_credential(parts, data, "username"),
        password=_credential(parts, data, "password"),
        virtual_host=unquote(parts.path.removeprefix("/")) or "/",
        tls=tls,
    )


def _credential(parts: SplitResult, data: Mapping[str, str], key: str) -> str:
    in_uri = parts.username if key == "username" else parts.password
    value = unquote(in_uri) if in_uri else data.get(key)
    if not value:
        raise BrokerConfigurationError(
            f"key uri has no {key}: write amqp://user:password@host, or add the key {key}"
        )
    return value


def _from_keys(data: Mapping[str, str]) -> _Address:
    for key in ("host", "username", "password"):
        if not data.get(key):
            raise BrokerConfigurationError(
                f"key {key} is missing: give uri, or host, username and password"
            )
    secured = _flag(data, "tls")
    port = _port(data)
    if secured is None:
        secured = port == TLS_PORT or bool(data.get("ca.crt") or data.get("tls.crt"))
    return _Address(
        host=data["host"],
        port=port or (TLS_PORT if secured else PLAIN_PORT),
        username=data["username"],
        password=data["password"],
        virtual_host=data.get("vhost") or "/",
        tls=secured,
    )


def _refuse_unused_tls(data: Mapping[str, str]) -> None:
    """Refuse keys that say that somebody relies on TLS, where none is spoken."""
    for key in ("ca.crt", "tls.crt", "tls.key"):
        if data.get(key):
            break
    else:
        if not _flag(data, "tls"):
            return
        key = "tls"
    plain = "key uri begins with amqp://" if data.get("uri") else "key tls is false"
    remedy = "write amqps://" if data.get("uri") else "set it to true"
    raise BrokerConfigurationError(
        f"key {key} is for TLS, and {plain}, which sends the password unencrypted: {remedy}, or "
        f"remove {key}"
    )


def _port(data: Mapping[str, str]) -> int | None:
    text = data.get("port")
    if not text:
        return None
    try:
        port = int(text)
    except ValueError:
        port = 0
    if not 0 < port < 65536:
        raise BrokerConfigurationError(f"key port must be a number from 1 to 65535, not {text!r}")
    return port


def _flag(data: Mapping[str, str], key: str) -> bool | None:
    text = (data.get(key) or "").strip().lower()
    if text in ("", "true", "false"):
        return None if not text else text == "true"
    raise BrokerConfigurationError(f"key {key} must be true or false, not {data[key]!r}")
